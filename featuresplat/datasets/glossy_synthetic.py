"""Glossy Synthetic (NeRO): ``K.png``, ``K-camera.pkl`` and ``K-depth.png`` for K = 0, 1, ... in one folder.

Taken from ``dataset/database.py`` (GlossySyntheticDatabase) of github.com/liuyuan-pal/NeRO, branch main (what files
there are, what they mean; no code): the pickle holds the world-to-camera pose [3, 4], OpenCV axes, and intrinsics
[3, 3]; the depth is z-depth * 65535 / 15, and 14.5 and more is background. Only plain arrays are unpickled: nothing in
a file can name a function to call.

Relit truth is looked for as ``relit/LIGHT/`` in the scene's folder, or ``relight_gt/SCENE_LIGHT/`` one or two levels
above, in the same layout; environment maps ``LIGHT.exr`` or ``.hdr`` in a folder ``hdr*`` or ``env*`` beside
``relight_gt``, or in ``relit/``. The split is every n-th image, or a test.txt with names (``3.png``): NeRO's own is a
pickle in its repository.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.config import DataConfig
from featuresplat.datasets import _truths as t
from featuresplat.datasets._recording import Frame, Lens, Recording, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import read_environment
from featuresplat.io.images import image_size, read_image
from featuresplat.types import Cameras

ORDER = 26
LAYOUT = "Glossy Synthetic: 0.png with 0-camera.pkl, 1.png ..."
FAR, BACKGROUND = 15.0, 14.5
"""Depth of the largest stored number, and where the background begins."""
_ALLOWED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode")}
_ALLOWED |= {("numpy._core.numeric", "_frombuffer")}


class _Arrays(pickle.Unpickler):
    """Reads arrays, lists, tuples and numbers, and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def detect(path: Path) -> bool:
    """Whether there are pictures with a pickled camera."""
    return path.is_dir() and (path / "0-camera.pkl").is_file() and (path / "0.png").is_file()


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """All frames; transparent where the depth says background.

    Raises:
        FeaturesplatError: no frames, a camera that is damaged or holds more than arrays.
    """
    frames = [_frame(file) for file in _images(path)]
    if not frames:
        raise FeaturesplatError(f"{path}: there are no images.", f"Expected {LAYOUT}.")
    return Recording(frames, None, False, path)


def truths(path: Path) -> t.Truths:
    """Relit pictures, each with its own camera."""
    relit = {}
    for light, folder, environment in _relit(path):
        views = []
        for file in _images(folder):
            w2c, K = read_camera(file.with_name(f"{file.stem}-camera.pkl"))
            width, height = image_size(file)
            camera = Cameras(torch.from_numpy(w2c)[None], torch.from_numpy(K)[None], width, height, names=[file.name])
            covered = t.then(_covered(file), t.inner)
            seen = t.RelitView(file.name, t.then(file, t.linear_of), covered, t.then(environment, read_environment))
            views.append(t.RelitView(seen.name, seen.image, seen.objects, seen.environment, camera))
        relit[light] = views
    return t.Truths({}, relit)


def read_camera(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """World-to-camera [4, 4] and intrinsics [3, 3], float64.

    Raises:
        FeaturesplatError: missing, damaged, or more than arrays.
    """
    try:
        pose, K = _Arrays(io.BytesIO(path.read_bytes())).load()[:2]
        pose, K = np.array(pose, np.float64), np.array(K, np.float64)
        if K.shape != (3, 3) or not np.isfinite(K).all():
            raise ValueError(f"intrinsics of {K.shape}")
    except Exception as error:  # a pickle can fail in any way
        raise FeaturesplatError(f"{path}: is no pickled camera ({error}).", "Get it again.") from None
    return rigid(pose, str(path)), K


def _images(path: Path) -> list[Path]:
    found = [f for f in path.glob("*.png") if f.stem.isdigit() and f.with_name(f"{f.stem}-camera.pkl").is_file()]
    return sorted(found, key=lambda f: int(f.stem))


def _frame(file: Path) -> Frame:
    w2c, K = read_camera(file.with_name(f"{file.stem}-camera.pkl"))
    width, height = image_size(file)
    lens = Lens(width, height, K[0, 0], K[1, 1], K[0, 2], K[1, 2]).check(str(file))
    depth = file.with_name(f"{file.stem}-depth.png")
    return Frame(file, file.name, w2c, lens, alpha=_opacity(file) if depth.is_file() else None)


def _covered(file: Path):
    """Reads bool [H, W]: the depth is that of a thing."""

    def read() -> Tensor:
        from featuresplat.datasets._views import read_depth

        depth = torch.from_numpy(read_depth(file.with_name(f"{file.stem}-depth.png"), FAR / 65535))
        return (depth > 0) & (depth < BACKGROUND)

    def opaque() -> Tensor:
        alpha = read_image(file)[1]
        return torch.ones(image_size(file)[::-1], dtype=torch.bool) if alpha is None else alpha >= 254

    return read if file.with_name(f"{file.stem}-depth.png").is_file() else opaque


def _opacity(file: Path):
    covered = _covered(file)
    return lambda: covered().to(torch.uint8) * 255


def _relit(path: Path) -> list[tuple[str, Path, Path]]:
    """(light, folder, map)."""
    found = []
    places: list[tuple[str, Path, tuple[Path, ...]]] = [
        (f.name, f, (path / "relit",)) for f in sorted((path / "relit").glob("*")) if f.is_dir()
    ]
    for root in (path.parent, path.parent.parent, path.parent.parent / "glossy_relight"):
        for f in sorted((root / "relight_gt").glob(f"{path.name}_*")):
            maps = [d for d in sorted(root.glob("*")) if d.is_dir() and d.name.lower().startswith(("hdr", "env"))]
            places.append((f.name.removeprefix(f"{path.name}_"), f, tuple(maps)))
    for light, folder, maps in places:
        files = [d / f"{light}{e}" for d in maps for e in (".hdr", ".exr", ".npy")]
        environment = next((f for f in files if f.is_file()), None)
        if environment is not None and _images(folder):
            found.append((light, folder, environment))
    return found
