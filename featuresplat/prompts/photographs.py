"""A scene's own views by the names of their photographs, at the photographs' full size."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.scene import Scene


def full_size_views(scene: Scene, names: list[str] | None = None) -> Cameras:
    """The scene's cameras, or those of some names, as their photographs lie on disk.

    A run that does not remember the sizes reads its photographs once; where they are gone, views have the size that
    training used.
    """
    cameras = scene.cameras
    sizes = scene.info.get("full_sizes") or _sizes_of(scene)
    if sizes and len(sizes) == len(cameras):
        cameras = cameras.resized([int(w) for w, _ in sizes], [int(h) for _, h in sizes])
    if names is None:
        return cameras
    return cameras[[list(cameras.names).index(name) for name in names]]


def view_named(scene: Scene, name: str) -> Cameras:
    """The view of one photograph at its full size; its name may lack folder and ending.

    Raises:
        FeaturesplatError: the scene has no such view, or several.
    """
    names = list(scene.cameras.names)
    found = [n for n in names if n == name] or [n for n in names if name in (Path(n).name, Path(n).stem)]
    if len(found) == 1:
        return full_size_views(scene, found)
    if found:
        raise FeaturesplatError(f"view: '{name}' could be any of {', '.join(found[:4])}", "Give the whole name.")
    close = difflib.get_close_matches(name, names + [Path(n).stem for n in names], n=1)
    listed = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    hint = f"Perhaps you meant '{close[0]}'." if close else f"Views are named as the photographs: {listed}."
    raise FeaturesplatError(f"view: this scene has none called '{name}'", hint)


def _sizes_of(scene: Scene) -> list[tuple[int, int]] | None:
    source = scene.info.get("source")
    if not source or scene.config is None or not Path(source).exists():
        return None
    key = (str(source), repr(scene.config.data))
    if key not in _read:
        try:
            _read[key] = load_dataset(Path(source), scene.config.data).full_sizes
        except FeaturesplatError:
            return None
    return _read[key]


_read: dict[tuple[str, str], list[tuple[int, int]]] = {}
