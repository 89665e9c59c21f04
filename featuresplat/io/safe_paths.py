"""Paths stored inside a run folder may not leave it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from featuresplat.errors import FeaturesplatError


def inside(folder: str | Path, stored: str, where: str = "scene.json") -> Path:
    """The path of ``stored`` inside ``folder``; it need not exist.

    Args:
        folder: the run folder.
        stored: relative path with forward slashes, as found in a file.
        where: the file that it was found in, for the message.

    Raises:
        FeaturesplatError: for anything but a relative path that stays inside: absolute paths (POSIX or
            Windows), ``..``, and symbolic links that lead out.
    """
    folder = Path(folder)
    if not isinstance(stored, str) or not stored or "\0" in stored:
        raise FeaturesplatError(f"{folder / where}: expected a file name, got {stored!r}.", _HINT)
    windows = PureWindowsPath(stored)
    absolute = stored.startswith(("/", "\\", "~")) or bool(windows.drive)
    if absolute or ".." in windows.parts or ".." in PurePosixPath(stored).parts:
        raise FeaturesplatError(f"{folder / where}: the path '{stored}' points outside of the folder.", _HINT)
    path = folder / stored
    if not path.resolve().is_relative_to(folder.resolve()):
        raise FeaturesplatError(
            f"{folder / where}: the path '{stored}' is a link that leads outside of the folder.", _HINT
        )
    return path


_HINT = "Put the file into the folder and name it relative to it; a scene from a stranger may be up to no good."
