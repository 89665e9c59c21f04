"""COLMAP's sparse models, binary or text: ``sparse/0``, ``sparse`` or the model folder itself, beside ``images``.

Formats after COLMAP's documentation ("Output Format"): poses are world-to-camera with OpenCV axes, quaternions
wxyz, pixel centres at +0.5, which is what we use everywhere.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featuresplat.config import DataConfig
from featuresplat.datasets._recording import Frame, Lens, Recording, check_images, find_mask, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.types import PointCloud

ORDER = 10
"""Asked before the other readers: poses of one's own go before plain photographs."""
LAYOUT = "COLMAP: sparse/0 or sparse with cameras, images and points3D (.bin or .txt), beside images/"

# Model names by id, and how many parameters each has.
_MODELS = (
    ("SIMPLE_PINHOLE", 3), ("PINHOLE", 4), ("SIMPLE_RADIAL", 4), ("RADIAL", 5), ("OPENCV", 8), ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12), ("FOV", 5), ("SIMPLE_RADIAL_FISHEYE", 4), ("RADIAL_FISHEYE", 5), ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
)  # fmt: skip
_READABLE = "SIMPLE_PINHOLE, PINHOLE, SIMPLE_RADIAL, RADIAL, OPENCV, FULL_OPENCV and their FISHEYE kin"


def detect(path: Path) -> bool:
    """Whether there is a sparse model in the folder."""
    return find_model(path) is not None


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """All registered images and points of the model in ``path``.

    Raises:
        FeaturesplatError: no model, damaged files, an unreadable camera model, no registered image, images missing.
    """
    model = find_model(path)
    if model is None:
        raise FeaturesplatError(f"{path}: there is no COLMAP model.", f"Expected {LAYOUT}.")
    return read_model(model, None)


def find_model(path: Path) -> Path | None:
    """The folder of the sparse model: ``sparse/0``, ``sparse``, ``colmap/sparse/0`` or ``path`` itself."""
    for folder in (path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0", path):
        if any((folder / f"cameras{e}").is_file() and (folder / f"images{e}").is_file() for e in (".bin", ".txt")):
            return folder
    return None


def read_model(model: Path, images: Path | None, masks: Path | None = None) -> Recording:
    """A sparse model whose images lie in ``images`` (None: found beside the model).

    Args:
        model: folder with cameras, images and, if there are any, points3D, ``.bin`` or ``.txt``.
        images: the folder that the names in the model are relative to.
        masks: folder of training masks; None: ``masks`` beside the folder of images.

    Raises:
        FeaturesplatError: as :func:`read`.
    """
    ending = ".bin" if (model / "cameras.bin").is_file() else ".txt"
    readers = (_cameras_bin, _images_bin, _points_bin) if ending == ".bin" else (_cameras_txt, _images_txt, _points_txt)
    lenses = _parsed(model / f"cameras{ending}", readers[0])
    poses = _parsed(model / f"images{ending}", readers[1])
    points_file = model / f"points3D{ending}"
    points = _parsed(points_file, readers[2]) if points_file.is_file() else None
    where = f"{model / 'images'}{ending}"
    if images is None:
        images = _image_folder(model, [name for name, *_ in poses])
    frames = [_frame(images, masks, where, lenses, *pose) for pose in poses]
    check_images(frames, where)
    return Recording(frames, points if points is not None and len(points) else None, images=images)


def _image_folder(model: Path, names: list[str]) -> Path:
    """The folder that holds most of the images: ``images`` or the folder itself, beside or above the model."""
    above = [model, model.parent, model.parent.parent]
    if model.parent.parent.name == "colmap":
        above.append(model.parent.parent.parent)
    folders = [f / "images" for f in above] + [f / "input" for f in above] + above
    counts = [sum((folder / name).is_file() for name in names) for folder in folders if folder.is_dir()]
    there = [folder for folder in folders if folder.is_dir()]
    if counts and max(counts) > 0:
        return there[counts.index(max(counts))]
    root = model.parent.parent if model.parent.name == "sparse" else model.parent
    return root / "images"


def _frame(images, masks, where, lenses, name, quaternion, translation, camera) -> Frame:
    parts = Path(name.replace("\\", "/")).parts
    if not name or Path(name).is_absolute() or ".." in parts:
        raise FeaturesplatError(f"{where}: the image name '{name}' leaves the folder of images.", "Rename it.")
    if camera not in lenses:
        raise FeaturesplatError(f"{where}: {name} refers to camera {camera}, which does not exist.", "Export it again.")
    at = f"{where}: {name}"
    norm = float(np.linalg.norm(quaternion))
    if not norm > 1e-6:
        raise FeaturesplatError(f"{at}: the pose holds NaN or a zero rotation.", "Export the model again.")
    w, x, y, z = quaternion / norm
    viewmat = np.eye(4)
    viewmat[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    viewmat[:3, 3] = translation
    folder = images.parent / "masks" if masks is None else masks
    return Frame(images / name, "/".join(parts), rigid(viewmat, at), lenses[camera], mask_path=find_mask(folder, name))


def lens_of(model: str, params, width: int, height: int, where: str) -> Lens:
    """COLMAP's camera model as a :class:`Lens`.

    Raises:
        FeaturesplatError: an unknown model, or another number of parameters.
    """
    known = dict(_MODELS)
    p = [float(v) for v in params]
    if model not in known or model in ("FOV", "THIN_PRISM_FISHEYE", "RAD_TAN_THIN_PRISM_FISHEYE"):
        raise FeaturesplatError(
            f"{where}: the camera model {model} cannot be read.",
            f"Readable are {_READABLE}; undistort with `colmap image_undistorter` first.",
        )
    if len(p) != known[model]:
        raise FeaturesplatError(
            f"{where}: {model} has {known[model]} parameters, got {len(p)}.", "Export the model again."
        )
    # Models with one focal length begin f, cx, cy; the others fx, fy, cx, cy.
    single = model.startswith(("SIMPLE", "RADIAL"))
    fx, fy, cx, cy = (p[0], p[0], p[1], p[2]) if single else p[:4]
    k = p[3:] if single else p[4:]
    if "FISHEYE" in model:
        n1, n2, n3, n4 = (k + [0.0] * 4)[:4]
        return Lens(width, height, fx, fy, cx, cy, (n1, n2, n3, n4), fisheye=True).check(where)
    if single or not k:  # k1 and k2 at most
        k1, k2, p1, p2, k3, k4, k5, k6 = ((k + [0.0] * 2)[:2]) + [0.0] * 6
    else:
        k1, k2, p1, p2, k3, k4, k5, k6 = k + [0.0] * (8 - len(k))
    return Lens(width, height, fx, fy, cx, cy, (k1, k2, k3, 0.0), (k4, k5, k6), (p1, p2)).check(where)


def _parsed(path: Path, parse):
    """``parse(path)``, with every way a damaged file can fail told as one sentence."""
    try:
        return parse(path)
    except (struct.error, ValueError, IndexError, UnicodeDecodeError, MemoryError, OverflowError) as error:
        raise FeaturesplatError(f"{path}: is truncated or damaged ({error}).", "Export the model again.") from error


class _Bytes:
    """A cursor over a little-endian file."""

    def __init__(self, path: Path):
        self.data, self.at = path.read_bytes(), 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self.data.index(b"\0", self.at)
        text = self.data[self.at : end].decode()
        self.at = end + 1
        return text

    def skip(self, count: int) -> None:
        self.at += count
        if count < 0 or self.at > len(self.data):
            raise ValueError("it ends early")


def _cameras_bin(path: Path) -> dict[int, Lens]:
    file = _Bytes(path)
    out = {}
    for _ in range(file.take("Q")[0]):
        number, model, width, height = file.take("iiQQ")
        if not 0 <= model < len(_MODELS):
            raise ValueError(f"camera model number {model}")
        name, count = _MODELS[model]
        out[number] = lens_of(name, file.take(f"{count}d"), width, height, f"{path}: camera {number}")
    return out


def _images_bin(path: Path) -> list[tuple]:
    file = _Bytes(path)
    out = []
    for _ in range(file.take("Q")[0]):
        values = file.take("i7di")
        name = file.text()
        file.skip(24 * file.take("Q")[0])  # x, y and the point of each feature
        out.append((name, np.array(values[1:5]), np.array(values[5:8]), values[8]))
    return out


def _points_bin(path: Path) -> PointCloud:
    file = _Bytes(path)
    data, at, end = file.data, 8, len(file.data)
    count = file.take("Q")[0]
    if count * 51 > end:  # a point without a track is that long
        raise ValueError("it ends early")
    layout = struct.Struct("<Q3d3BdQ")
    xyz, rgb = np.empty((count, 3)), np.empty((count, 3), np.uint8)
    for i in range(count):
        _, x, y, z, r, g, b, _, track = layout.unpack_from(data, at)
        xyz[i], rgb[i] = (x, y, z), (r, g, b)
        at += 51 + 8 * track
    if at > end:
        raise ValueError("it ends early")
    return _cloud(xyz, rgb)


def _cloud(xyz: np.ndarray, rgb: np.ndarray) -> PointCloud:
    good = np.isfinite(xyz).all(axis=1)
    return PointCloud(torch.from_numpy(xyz[good]), torch.from_numpy(rgb[good].astype(np.float32) / 255))


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def _cameras_txt(path: Path) -> dict[int, Lens]:
    out = {}
    for words in map(str.split, _lines(path)):
        if words:
            number = int(words[0])
            size = int(words[2]), int(words[3])
            out[number] = lens_of(words[1], words[4:], *size, f"{path}: camera {number}")
    return out


def _images_txt(path: Path) -> list[tuple]:
    """Two lines an image; the second, the features, may be empty."""
    out, lines = [], iter(_lines(path))
    for line in lines:
        if not line.strip():
            continue
        words = line.split(maxsplit=9)
        values = [float(w) for w in words[1:8]]
        out.append((words[9].strip(), np.array(values[:4]), np.array(values[4:]), int(words[8])))
        next(lines, None)
    return out


def _points_txt(path: Path) -> PointCloud:
    rows = [line.split(maxsplit=7)[1:7] for line in _lines(path) if line.strip()]
    values = np.array(rows, np.float64).reshape(-1, 6)
    return _cloud(values[:, :3], values[:, 3:].clip(0, 255).astype(np.uint8))
