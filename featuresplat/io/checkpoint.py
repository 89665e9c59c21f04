"""The state of a training in one safetensors file: ``checkpoints/STEP.safetensors``."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import flatten, read_metadata, read_tensors, unflatten, write_tensors

FORMAT = "featuresplat.checkpoint"
VERSION = 1


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        tensors: nested dict of tensors, on the CPU, bit for bit as they were saved.
        meta: what JSON can say: the step, counters, states of generators.
        path: where it was read.
    """

    tensors: dict[str, Any]
    meta: dict[str, Any]
    path: Path


class CorruptCheckpoint(FeaturesplatError):
    """A checkpoint that cannot be read, where an earlier one may do."""


def checkpoint_path(folder: str | Path, step: int) -> Path:
    """Where the checkpoint of a step lives: ``folder/STEP.safetensors``."""
    return Path(folder) / f"{step}.safetensors"


def save_checkpoint(path: str | Path, tensors: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint, atomically: when the disk is full, the last good one stays.

    Args:
        path: see :func:`checkpoint_path`.
        tensors: dict of tensors, or of such dicts; keys are strings without ``/``. Empty dicts are not kept.
        meta: anything that JSON can say; NaN and infinities pass, tuples come back as lists.

    Raises:
        FeaturesplatError: the disk is full and the like.
        TypeError: a key or value of another kind.
    """
    words = {"format": FORMAT, "version": str(VERSION), "meta": json.dumps(dict(meta))}
    write_tensors(path, flatten(tensors), words)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        CorruptCheckpoint: truncated, damaged or not a checkpoint.
        FeaturesplatError: missing, or written by a newer version.
    """
    path = Path(path)
    meta = _checked_meta(path)
    try:
        tensors, _ = read_tensors(path)
    except FeaturesplatError as error:
        raise CorruptCheckpoint(error.message, error.hint) from error
    return Checkpoint(unflatten(tensors), meta, path)


def latest_checkpoint(folder: str | Path) -> Path | None:
    """The readable checkpoint of the highest step in ``folder``, or None when there is none at all.

    One that is truncated or damaged is skipped with a warning, and the one before it is taken.

    Raises:
        FeaturesplatError: there are checkpoints but none can be read, or the newest is of a newer version.
    """
    found = _by_step(folder)
    for path in reversed(found):
        try:
            _checked_meta(path)
            return path
        except CorruptCheckpoint as error:
            warnings.warn(f"{error.message} Skipped; the checkpoint before it is taken.", stacklevel=2)
    if found:
        raise FeaturesplatError(
            f"{folder}: none of the {len(found)} checkpoints can be read.", "Train again without --resume."
        )
    return None


def prune_checkpoints(folder: str | Path, keep: int) -> list[Path]:
    """Delete all but the ``keep`` (at least 1) checkpoints of highest step, and what killed writes left
    behind.

    Call it after a successful save, never during one. Returns the checkpoints that were deleted.
    """
    if keep < 1:
        raise FeaturesplatError(f"keep: expected at least 1 checkpoint, got {keep}.", "Keep 2 to be safe.")
    doomed = _by_step(folder)[:-keep]
    leftovers = [p for p in Path(folder).glob(".*.tmp.safetensors") if re.fullmatch(_LEFTOVER, p.name)]
    for path in doomed + leftovers:
        path.unlink(missing_ok=True)
    return doomed


_LEFTOVER = r"\.\d+\.[0-9a-f]{8}\.tmp\.safetensors"


def _by_step(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    paths = folder.iterdir() if folder.is_dir() else ()
    return sorted((p for p in paths if re.fullmatch(r"\d+\.safetensors", p.name)), key=lambda p: int(p.stem))


def _checked_meta(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such checkpoint.", "Check the path.")
    try:
        words = read_metadata(path)
        if words.get("format") != FORMAT:
            raise CorruptCheckpoint(f"{path}: is no checkpoint of featuresplat.", "Take another one.")
        version, meta = int(words["version"]), json.loads(words["meta"])
    except CorruptCheckpoint:
        raise
    except FeaturesplatError as error:
        raise CorruptCheckpoint(error.message, error.hint) from error
    except (KeyError, ValueError) as error:
        raise CorruptCheckpoint(f"{path}: its metadata is damaged ({error}).", "Take another one.") from error
    if version > VERSION:
        raise FeaturesplatError(
            f"{path}: was written in checkpoint format {version}; the newest known here is {VERSION}.",
            "Update featuresplat.",
        )
    return meta
