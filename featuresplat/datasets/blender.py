"""Blender's NeRF scenes: ``transforms_train.json`` with ``_test`` (and ``_val``), a field of view and RGBA images.

The same poses as :mod:`featuresplat.datasets.transforms`, told apart by what is not there: no focal length. Endings are
left out of the paths, images are laid over the configured background.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from featuresplat.config import DataConfig
from featuresplat.datasets._frames import read_files
from featuresplat.datasets._recording import Recording
from featuresplat.datasets._truths import Truths, ViewTruth, alpha_of, normals_of, then
from featuresplat.errors import FeaturesplatError

ORDER = 30
LAYOUT = "Blender: transforms_train.json and transforms_test.json with camera_angle_x"


def detect(path: Path) -> bool:
    """Whether there is a readable transforms_train.json with a field of view and no focal length."""
    try:
        meta = json.loads((path / "transforms_train.json").read_text(encoding="utf-8-sig"))
        first = meta["frames"][0]
        return "camera_angle_x" in {**meta, **first} and "fl_x" not in meta and "fl_x" not in first
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return False


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """Train and test frames; ``_val`` is the test split only where there is no ``_test``.

    Raises:
        FeaturesplatError: no transforms_train.json, and as :func:`featuresplat.datasets._frames.read_files`.
    """
    files = {part: path / f"transforms_{part}.json" for part in ("train", "test", "val")}
    files = {part: file for part, file in files.items() if file.is_file()}
    if "train" not in files:
        raise FeaturesplatError(f"{path}: there is no transforms_train.json.", f"Expected {LAYOUT}.")
    if "test" in files:
        files.pop("val", None)
    recording = read_files(files)
    # Without a test file nothing is the data's own split: every n-th is held out then.
    recording.own_split = len(files) > 1
    return recording


def truths(path: Path) -> Truths:
    """Normals of the test views, where ``r_0_normal.png`` lies beside ``r_0.png``: world frame, (n + 1) / 2.

    So they do in Shiny Blender (``internal/datasets.py`` of github.com/google-research/multinerf, class Blender).
    """
    file = path / "transforms_test.json"
    if not file.is_file():
        return Truths()
    recording = read_files({"test": file})
    views = {}
    for frame in recording.frames:
        normal = frame.image_path.with_name(f"{frame.image_path.stem}_normal.png")
        if normal.is_file():
            name = f"{frame.image_path.parent.name}/{frame.image_path.name}"
            views[name] = ViewTruth(then(frame.image_path, alpha_of), normal=then(normal, normals_of))
    return Truths(views)
