"""Atomic writes: a reader sees the old file or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from featuresplat.errors import FeaturesplatError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp(\.\w+)?")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; when the block ends well, it becomes ``path`` in one step.

    The temporary file is hidden, has the same ending (so libraries that go by endings work), is flushed to
    the disk before the rename, and is removed when the block fails. Missing parent folders are made.

    Raises:
        FeaturesplatError: on any error of the operating system (disk full, no permission, ...); the file that
            was at ``path`` before is untouched.
    """
    path = Path(path)
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    _flush_to_disk(path.parent)


def make_folder(path: str | Path) -> Path:
    """Make a folder and what is missing above it; errors as :func:`atomic_path`."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    return path


def check_folder(path: str | Path) -> None:
    """Raise now what writing into a folder that need not be there yet would raise at the end of long work."""
    path = Path(path)
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir():
        raise write_error(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(above, os.W_OK):
        raise write_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def atomic_write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` atomically; errors as :func:`atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` as UTF-8 with plain newlines, atomically; errors as :func:`atomic_path`."""
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: str | Path, value: Any) -> None:
    """Write ``value`` to ``path`` as indented JSON, atomically; errors as :func:`atomic_path`."""
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def temporary_beside(path: Path) -> Path:
    """A fresh hidden name in the folder of ``path``, with its ending."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")


def write_error(path: Path, error: OSError) -> FeaturesplatError:
    """The sentence and the remedy for a failed write of ``path``."""
    staged = _TEMPORARY.fullmatch(path.name)
    if staged:  # a file that is itself part of a larger atomic write; its final name says more
        path = path.with_name(staged[1] + (staged[2] or ""))
    kept = "what was written before is untouched"
    if error.errno in _FULL:
        return FeaturesplatError(
            f"{path}: the disk is full; {kept}.", "Free some space, or write to another disk, and try again."
        )
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return FeaturesplatError(
            f"{path}: no permission to write there; {kept}.",
            "Choose another folder, or change its permissions.",
        )
    if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        return FeaturesplatError(
            f"{path}: a folder stands in the place of the file, or a file in that of its folder; {kept}.",
            "Choose another name.",
        )
    reason = error.strerror or str(error)
    return FeaturesplatError(f"{path}: could not be written ({reason}); {kept}.", "Choose another place.")


def _flush_to_disk(path: Path) -> None:
    """fsync a file, or a folder (so that a rename in it lasts); systems that cannot open folders skip it."""
    if path.is_dir():
        with suppress(OSError):
            _fsync_opened(path, os.O_RDONLY)
    else:
        _fsync_opened(path, os.O_RDWR)


def _fsync_opened(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
