"""TensoIR-Synthetic: a folder per view, ``train_000`` and ``test_000``, with ``metadata.json`` and pictures.

Taken from the loader ``dataLoader/tensoIR_relighting_test.py`` and from ``models/relight_utils.py`` of
github.com/Haian-Jin/TensoIR (what files there are, what they mean; no code):

- ``metadata.json``: ``cam_transform_mat``, 16 numbers with commas between, camera-to-world with OpenGL axes;
  ``cam_angle_x``; ``imw``, ``imh``.
- ``rgba.png`` under the light to train on (else ``rgba_sunset.png``), ``rgba_NAME.png`` under others; sRGB with alpha.
- ``albedo.png``: linear values; ``normal.png``: world frame, (n + 1) / 2.
- environment maps ``NAME.hdr``, anywhere in a folder whose name begins with ``env`` or ends with ``envmaps`` or
  ``Environment_Maps`` beside the scene or one level above; Blender's directions, which are ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from featuresplat.config import DataConfig
from featuresplat.datasets import _truths as t
from featuresplat.datasets._recording import Frame, Lens, Recording, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import read_environment
from featuresplat.io.images import read_image

ORDER = 24
LAYOUT = "TensoIR: folders train_000 ..., test_000 ... with metadata.json and rgba.png"
PARTS = ("train", "test")


def detect(path: Path) -> bool:
    """Whether there is a train_000/metadata.json, or the like."""
    return path.is_dir() and any((f / "metadata.json").is_file() for f in path.glob("train_*"))


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """Train and test views; ``val_*`` is left out.

    Raises:
        FeaturesplatError: no views, damaged metadata, missing pictures.
    """
    frames = [_frame(folder) for part in PARTS for folder in sorted(path.glob(f"{part}_*")) if _is_view(folder)]
    if not frames:
        raise FeaturesplatError(f"{path}: there are no views.", f"Expected {LAYOUT}.")
    return Recording(frames, None, any(f.split == "test" for f in frames), path)


def truths(path: Path) -> t.Truths:
    """Base colours, normals and relit pictures of the test views."""
    views, relit = {}, {}
    lights = {f.stem: f for f in _maps(path)}
    for folder in sorted(path.glob("test_*")):
        if not _is_view(folder):
            continue
        image = _image(folder)
        name = f"{folder.name}/{image.name}"
        objects = t.then(image, t.alpha_of)
        albedo, normal = folder / "albedo.png", folder / "normal.png"
        views[name] = t.ViewTruth(
            objects,
            t.then(albedo, _linear_albedo) if albedo.is_file() else None,
            t.then(normal, t.normals_of) if normal.is_file() else None,
        )
        for file in sorted(folder.glob("rgba_*.png")):
            light = file.stem.removeprefix("rgba_")
            if file != image and light in lights:
                seen = t.RelitView(name, t.then(file, t.linear_of), objects, t.then(lights[light], read_environment))
                relit.setdefault(light, []).append(seen)
    return t.Truths(views, relit)


def _linear_albedo(path: Path):
    return read_image(path)[0].float() / 255


def _is_view(folder: Path) -> bool:
    return (folder / "metadata.json").is_file()


def _image(folder: Path) -> Path:
    found = next((folder / n for n in ("rgba.png", "rgba_sunset.png") if (folder / n).is_file()), None)
    if found is None:
        raise FeaturesplatError(f"{folder}: there is no rgba.png.", f"Expected {LAYOUT}.")
    return found


def _frame(folder: Path) -> Frame:
    where = str(folder / "metadata.json")
    try:
        meta = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        numbers = [float(v) for v in str(meta["cam_transform_mat"]).split(",")]
        c2w = np.array(numbers).reshape(4, 4)
        angle, width, height = float(meta["cam_angle_x"]), int(meta["imw"]), int(meta["imh"])
        focal = 0.5 * width / np.tan(0.5 * angle)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise FeaturesplatError(f"{where}: is damaged or no metadata of a view ({error}).", "Get it again.") from None
    c2w = rigid(c2w, where)
    viewmat = np.eye(4)
    viewmat[:3, :3] = (c2w[:3, :3] * [1, -1, -1]).T
    viewmat[:3, 3] = -viewmat[:3, :3] @ c2w[:3, 3]
    image = _image(folder)
    lens = Lens(width, height, focal, focal, width / 2, height / 2).check(where)
    split = "train" if folder.name.startswith("train") else "test"
    return Frame(image, f"{folder.name}/{image.name}", viewmat, lens, angle, split=split)


def _maps(path: Path) -> list[Path]:
    """Environment maps beside the scene, the smallest first where there are several of one name."""
    found = []
    for root in (path, path.parent, path.parent.parent):
        for folder in sorted(root.glob("*")) if root.is_dir() else ():
            name = folder.name.lower()
            if folder.is_dir() and (name.startswith("env") or name.endswith(("envmaps", "environment_maps"))):
                found += [f for f in folder.rglob("*.hdr")]
        if found:
            break
    return sorted(found, key=lambda f: -f.stat().st_size)
