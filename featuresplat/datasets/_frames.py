"""The frames of transforms files, as nerfstudio, instant-ngp and Blender's NeRF scenes write them.

Poses in them are camera-to-world with OpenGL axes (x right, y up, camera looks down -z). ``ply_file_path`` is in the
frame of the poses: nerfstudio's ``applied_transform`` has been applied to both when the file was written, so it is
not applied again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from featuresplat.datasets._recording import Frame, Lens, Recording, check_images, find_mask, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.io.ply import read_point_cloud
from featuresplat.types import PointCloud

_ENDINGS = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG", ".webp", ".tif", ".tiff", ".bmp")
_PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "PERSPECTIVE")
_SPLITS = {"train": "train", "test": "test", "val": "test"}


def read_files(files: dict[str, Path]) -> Recording:
    """The frames of several files: ``train``, ``test`` and ``val`` say their split, ``all`` leaves it to the frames.

    Raises:
        FeaturesplatError: broken JSON, missing or wrong entries, missing images.
    """
    frames: list[Frame] = []
    points, own = None, "all" not in files
    for part, file in files.items():
        meta = read_json(file)
        more = [_frame(file, meta, entry, k) for k, entry in enumerate(meta["frames"])]
        if part in _SPLITS:
            for frame in more:
                frame.split = _SPLITS[part]
        else:
            own = _own_split(meta, more)
        frames += more
        points = points if points is not None else _points(file, meta)
    check_images(frames, str(next(iter(files.values()))))
    images = _name_frames(frames, next(iter(files.values())).parent)
    return Recording(frames, points, own, images)


def read_json(file: Path) -> dict[str, Any]:
    """The object in a transforms file, with its list of frames.

    Raises:
        FeaturesplatError: not JSON, or no frames in it.
    """
    try:
        meta = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeaturesplatError(f"{file}: is not valid JSON ({error}).", "Export it again.") from None
    frames = meta.get("frames") if isinstance(meta, dict) else None
    if not isinstance(frames, list) or not all(isinstance(f, dict) for f in frames):
        raise FeaturesplatError(
            f"{file}: expected an object with a list of `frames`.",
            "Expected transforms.json as nerfstudio, instant-ngp or Blender's NeRF scenes have it.",
        )
    return meta


def _frame(file: Path, meta: dict, entry: dict, number: int) -> Frame:
    stored = entry.get("file_path")
    if not isinstance(stored, str) or not stored:
        raise FeaturesplatError(f"{file}: frame {number} has no `file_path`.", "Name its image, relative to the file.")
    where = f"{file}: {stored}"
    try:
        c2w = np.array(entry.get("transform_matrix"), np.float64)
    except (TypeError, ValueError):
        c2w = np.zeros(0)
    c2w = rigid(c2w, where)
    rotation, centre = c2w[:3, :3] * [1, -1, -1], c2w[:3, 3]  # OpenGL to OpenCV: y and z of the camera turn round
    viewmat = np.eye(4)
    viewmat[:3, :3], viewmat[:3, 3] = rotation.T, -rotation.T @ centre
    image = _image(file, stored)
    lens, angle = _lens({**meta, **entry}, image, where)
    frame = Frame(image, stored, viewmat, lens, angle)
    if entry.get("mask_path"):
        frame.mask_path = _existing(file, entry["mask_path"], "mask")
    if entry.get("depth_file_path"):
        frame.depth_path = _existing(file, entry["depth_file_path"], "depth map")
    unit = next((meta[k] for k in ("depth_unit_scale_factor", "integer_depth_scale") if k in meta), 1e-3)
    frame.depth_scale = _number({"unit": unit}, "unit", where)
    if "time" in entry:
        frame.time = _number(entry, "time", where)
    return frame


def _lens(values: dict, image: Path, where: str) -> tuple[Lens | None, float]:
    """The lens, or a field of view where neither focal length nor size is given."""
    model = str(values.get("camera_model", "FISHEYE" if values.get("is_fisheye") else "OPENCV")).upper()
    fisheye = "FISHEYE" in model
    if not fisheye and model not in _PERSPECTIVE:
        raise FeaturesplatError(
            f"{where}: the camera model {model} cannot be read.",
            f"Readable are {', '.join(_PERSPECTIVE)} and OPENCV_FISHEYE; undistort the images first.",
        )

    def number(key: str, default: float = 0.0) -> float:
        return _number(values, key, where) if key in values else default

    angle = number("camera_angle_x")
    if "fl_x" not in values and not 0 < angle < math.pi:
        raise FeaturesplatError(
            f"{where}: neither a focal length `fl_x` nor a `camera_angle_x` between 0 and pi.", "Add the intrinsics."
        )
    if "w" not in values or "h" not in values:
        if "fl_x" not in values:
            return None, angle
        from featuresplat.io.images import image_size

        if not image.is_file():  # reported with all others that are missing
            return None, 1.0
        width, height = image_size(image)
    else:
        width, height = round(number("w")), round(number("h"))
    fx = number("fl_x") if "fl_x" in values else 0.5 * width / math.tan(0.5 * angle)
    fy = number("fl_y", fx)
    k = tuple(0.0 if "PINHOLE" in model else number(f"k{i}") for i in range(1, 5))
    p = (0.0, 0.0) if fisheye or "PINHOLE" in model else (number("p1"), number("p2"))
    cx, cy = number("cx", width / 2), number("cy", height / 2)
    lens = Lens(width, height, fx, fy, cx, cy, k, tangential=p, fisheye=fisheye)  # pyright: ignore[reportArgumentType]
    return lens.check(where), angle


def _number(values: dict, key: str, where: str) -> float:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise FeaturesplatError(f"{where}: `{key}` is {value!r}, expected a finite number.", "Mend that entry.")
    return float(value)


def _inside(file: Path, stored: Any) -> Path:
    """The path of ``stored``, which may not leave the folder of ``file`` (links that the user laid may)."""
    if not isinstance(stored, str) or not stored or "\0" in stored:
        raise FeaturesplatError(f"{file}: expected a file name, got {stored!r}.", "Mend that entry.")
    depth = 0
    for part in PurePosixPath(stored.replace("\\", "/")).parts:
        depth += -1 if part == ".." else 1
        if depth < 0 or part == "/" or PureWindowsPath(part).drive:
            raise FeaturesplatError(
                f"{file}: the path '{stored}' points outside of the folder.",
                "Put the file there and name it relative to the json.",
            )
    return file.parent / stored.replace("\\", "/")


def _image(file: Path, stored: str) -> Path:
    """The image's path; an ending that was left out is found."""
    path = _inside(file, stored)
    if not path.is_file():
        for ending in _ENDINGS:
            if (whole := path.with_name(path.name + ending)).is_file():
                return whole
    return path


def _existing(file: Path, stored: Any, what: str) -> Path:
    path = _inside(file, stored)
    if not path.is_file():
        raise FeaturesplatError(
            f"{file}: the {what} {stored} does not exist.", "Put it there, or remove the entry from the frame."
        )
    return path


def _points(file: Path, meta: dict) -> PointCloud | None:
    """The points that the file names, or ``points3d.ply`` beside it."""
    stored = meta.get("ply_file_path")
    if stored:
        return read_point_cloud(_existing(file, stored, "point cloud"))
    beside = file.parent / "points3d.ply"
    return read_point_cloud(beside) if beside.is_file() else None


def _own_split(meta: dict, frames: list[Frame]) -> bool:
    """Apply ``train_filenames``, ``test_filenames`` and ``val_filenames``; whether there are any to hold out."""
    lists = {part: meta.get(f"{part}_filenames") for part in ("train", "test", "val")}
    lists = {part: {PurePosixPath(n).as_posix() for n in names} for part, names in lists.items() if names}
    held = lists.get("test") or lists.get("val")
    if held is None:
        return False
    for frame in frames:
        name = PurePosixPath(frame.name.replace("\\", "/")).as_posix()
        if name in held:
            frame.split = "test"
        elif "train" not in lists or name in lists["train"]:
            frame.split = "train"
    return True


def _name_frames(frames: list[Frame], root: Path) -> Path:
    """Name the frames relative to the folder that holds all of them, find masks beside it; returns that folder."""
    folders = [f.image_path.relative_to(root).parent.parts for f in frames]
    common = folders[0]
    for parts in folders:
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    base = root.joinpath(*common)
    for frame in frames:
        frame.name = frame.image_path.relative_to(base).as_posix()
        if frame.mask_path is None:
            frame.mask_path = find_mask((base.parent if common else base) / "masks", frame.name)
    return base
