"""Named tensors with a few words of metadata: one safetensors file."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path, write_error


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically; any device, shape and dtype, exactly as they are.

    Raises:
        FeaturesplatError: the disk is full and the like; the file that was there before is untouched.
    """
    path = Path(path)
    ready: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        storage = value.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory; a file has no use for sharing.
        ready[name] = value.clone() if storage in seen else value
        seen.add(storage)
    with atomic_path(path) as temporary:
        try:
            save_file(ready, temporary, metadata=dict(metadata or {}))
            _as_other_files(temporary)
        except SafetensorError as error:
            # The library tells the system's error only in words.
            full = any(
                word in str(error) for word in ("No space left", "StorageFull", "QuotaExceeded", "File too large")
            )
            cause = OSError(errno.ENOSPC if full else errno.EIO, str(error))
            raise write_error(path, cause) from error


def _as_other_files(path: Path) -> None:
    """The permissions of any new file; the library leaves the file to its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors of a safetensors file, and its metadata.

    Raises:
        FeaturesplatError: missing, truncated, or not safetensors.
    """
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: str | Path) -> dict[str, str]:
    """The metadata alone; the header is checked against the file's length, so a truncated file does not pass.

    Raises:
        FeaturesplatError: as :func:`read_tensors`.
    """
    with _opened(path) as file:
        return file.metadata() or {}


def _opened(path: str | Path):
    if not Path(path).is_file():
        raise FeaturesplatError(f"{path}: there is no such file.", "Check the path.")
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise FeaturesplatError(
            f"{path}: is truncated or no safetensors file ({error}).", "Take another one."
        ) from error


def unflatten(flat: Mapping[str, Tensor], separator: str = "/") -> dict:
    """``{"a/b": t}`` to ``{"a": {"b": t}}``."""
    nested: dict = {}
    for name, value in flat.items():
        *parents, last = name.split(separator)
        at = nested
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return nested


def flatten(nested: Mapping, separator: str = "/") -> dict[str, Tensor]:
    """``{"a": {"b": t}}`` to ``{"a/b": t}``; keys are strings without the separator, leaves are tensors."""
    flat: dict[str, Tensor] = {}
    for key, value in nested.items():
        if not isinstance(key, str) or not key or separator in key:
            raise TypeError(f"expected keys that are strings without '{separator}', got {key!r}")
        if isinstance(value, Mapping):
            flat.update({f"{key}{separator}{rest}": leaf for rest, leaf in flatten(value, separator).items()})
        elif isinstance(value, torch.Tensor):
            flat[key] = value
        else:
            raise TypeError(f"{key}: expected a tensor or a dict of tensors, got {type(value).__name__}")
    return flat
