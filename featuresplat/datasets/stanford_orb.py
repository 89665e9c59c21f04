"""Stanford-ORB in its Blender form: ``blender_LDR/OBJECT_scene00x`` with ``ground_truth/`` beside ``blender_LDR``.

Taken from README.md, ``orb/utils/test.py`` and ``orb/utils/env_map.py`` of github.com/StanfordORB/Stanford-ORB (what
files there are, what they mean; no code):

- ``transforms_train.json``, ``_test``: as Blender's; ``train/0000.png`` with ``train_mask/0000.png``: the object.
- ``ground_truth/OBJECT_scene00x/surface_normal/0000.npy``, ``pseudo_gt_albedo/0000.npy`` (or .png), under the test
  image's name.
- ``transforms_novel.json``: views of the object in other scenes, posed in this one's frame; each frame has its
  ``camera_angle_x`` and ``scene_name``. The map of that view, ``ground_truth/SCENE/env_map/0000.exr``, is in the axes
  of its camera (OpenGL; the middle of the map is where the camera looks, up is the camera's up).

The README does not say in which axes normals are stored. They are taken for the camera's (OpenGL), or for the world's
where those agree better with facing the camera; see `_world_normals`. HDR photographs (``blender_HDR``) are truth here,
not training images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config import DataConfig
from featuresplat.datasets import _truths as t
from featuresplat.datasets._frames import read_files, read_json
from featuresplat.datasets._recording import Recording, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import read_environment
from featuresplat.io.images import image_size, read_image
from featuresplat.types import Cameras

ORDER = 22
LAYOUT = "Stanford-ORB: blender_LDR/OBJECT_scene00x with train_mask/ and transforms_train.json"


def detect(path: Path) -> bool:
    """Whether there is a transforms_train.json with masks of its images in train_mask/."""
    return path.is_dir() and (path / "transforms_train.json").is_file() and (path / "train_mask").is_dir()


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """Train and test frames, transparent outside of the object's mask.

    Raises:
        FeaturesplatError: only HDR images, and as `featuresplat.datasets._frames.read_files`.
    """
    if next((path / "train").glob("*.exr"), None) is not None:
        raise FeaturesplatError(
            f"{path}: its photographs are OpenEXR files.", "Train on the same scene in blender_LDR."
        )
    recording = read_files({part: path / f"transforms_{part}.json" for part in ("train", "test")})
    for frame in recording.frames:
        mask = _mask(frame.image_path)
        frame.mask_path = None
        if mask.is_file():
            frame.alpha = t.then(mask, _grey)
    return recording


def truths(path: Path) -> t.Truths:
    """Normals and pseudo base colours of the test views, and the object in other scenes' light."""
    truth = _ground_truth(path) / path.name
    views = {}
    for frame in read_files({"test": path / "transforms_test.json"}).frames:
        stem = frame.image_path.stem
        normal = truth / "surface_normal" / f"{stem}.npy"
        albedo = [truth / "pseudo_gt_albedo" / f"{stem}{e}" for e in (".npy", ".png", ".exr")]
        albedo = next((f for f in albedo if f.is_file()), None)
        c2w = np.linalg.inv(frame.viewmat)[:3, :3] @ np.diag([1.0, -1.0, -1.0])
        lens, angle = frame.lens, frame.angle_x
        focal = lens.fx / lens.width if lens is not None else 0.5 / np.tan(0.5 * angle)
        views[_name(frame.image_path)] = t.ViewTruth(
            t.then(_mask(frame.image_path), _inside),
            None if albedo is None else t.then(albedo, t.linear_of),
            _world_normals(normal, c2w, focal) if normal.is_file() else None,
        )
    return t.Truths(views, _novel(path))


def _novel(path: Path) -> dict[str, list[t.RelitView]]:
    """Views in other scenes, by scene."""
    file, out = path / "transforms_novel.json", {}
    if not file.is_file():
        return {}
    for entry in read_json(file)["frames"]:
        try:
            scene, stem = str(entry["scene_name"]), Path(str(entry["file_path"])).stem
            c2w, angle = (
                rigid(np.array(entry["transform_matrix"], np.float64), str(file)),
                float(entry["camera_angle_x"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FeaturesplatError(f"{file}: a frame is damaged ({error}).", "Get it again.") from None
        if Path(scene).name != scene:
            raise FeaturesplatError(f"{file}: the scene name '{scene}' is a path.", "Get it again.")
        image = path.parent / scene / "test" / f"{stem}.png"
        light = _ground_truth(path) / scene / "env_map" / f"{stem}.exr"
        light = light if light.is_file() else light.with_suffix(".hdr")
        if not image.is_file() or not light.is_file():
            continue
        width, height = image_size(image)
        viewmat = np.eye(4)
        viewmat[:3, :3] = (c2w[:3, :3] * [1, -1, -1]).T
        viewmat[:3, 3] = -viewmat[:3, :3] @ c2w[:3, 3]
        focal = 0.5 * width / np.tan(0.5 * angle)
        K = torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], dtype=torch.float64)
        camera = Cameras(torch.from_numpy(viewmat)[None], K[None], width, height, names=[f"{scene}/{stem}"])
        seen = t.then(_mask(image), _inside)
        environment = t.then((light, c2w[:3, :3]), lambda given: in_world(read_environment(given[0]), given[1]))
        out.setdefault(scene, []).append(
            t.RelitView(f"{scene}/{stem}", t.then(image, t.linear_of), seen, environment, camera)
        )
    return out


def in_world(values: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """[H, 2 H, 3] a map in the axes of its camera, in our convention and the world's frame.

    Args:
        values: [H, 2 H, 3] with the camera's looking direction in the middle, its right to the right, its up on top.
        rotation: [3, 3] camera-to-world, OpenGL axes.
    """
    height, width = values.shape[:2]
    phi = np.pi - 2 * np.pi * (np.arange(width) + 0.5) / width
    theta = np.pi * (np.arange(height) + 0.5) / height
    sin = np.sin(theta)[:, None]
    dirs = np.stack(
        [sin * np.cos(phi), sin * np.sin(phi), np.broadcast_to(np.cos(theta)[:, None], (height, width))], -1
    )
    x, y, z = np.moveaxis(dirs @ rotation, -1, 0)  # rows: R^T d, in camera axes
    u = (np.arctan2(x, -z) + np.pi) / (2 * np.pi) * width - 0.5
    v = np.arccos(np.clip(y, -1, 1)) / np.pi * height - 0.5
    left, top = np.floor(u).astype(int), np.floor(v).astype(int)
    out = np.zeros_like(values)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (1 - np.abs(u - left - dx)) * (1 - np.abs(v - top - dy))
            out += weight[..., None] * values[np.clip(top + dy, 0, height - 1), (left + dx) % width]
    return out.astype(np.float32)


def _world_normals(path: Path, rotation: np.ndarray, focal: float):
    """Reads [H, W, 3] unit world normals; ``focal`` in image widths.

    Surfaces that are seen face the camera. Of the two readings, in the camera's axes and in the world's, the one under
    which more of them do is taken.
    """

    def read() -> Tensor:
        stored = F.normalize(torch.from_numpy(t.read_npy(path))[..., :3], dim=-1)
        turn = torch.from_numpy(rotation).float()
        height, width = stored.shape[:2]
        col, row = (torch.arange(width) + 0.5) / width - 0.5, (torch.arange(height) + 0.5 - 0.5 * height) / width
        rays = torch.stack(
            [col.expand(height, -1), -row[:, None].expand(-1, width), torch.full((height, width), -focal)], -1
        )
        there = stored.norm(dim=-1) > 0.5
        readings = [stored @ turn.T, stored]
        facing = [float((((n * (rays @ turn.T)).sum(-1) < 0) & there).sum()) for n in readings]
        return readings[0] if facing[0] >= facing[1] else readings[1]

    return read


def _ground_truth(path: Path) -> Path:
    return path.parent.parent / "ground_truth"


def _name(image: Path) -> str:
    return f"{image.parent.name}/{image.name}"


def _mask(image: Path) -> Path:
    return image.parent.with_name(f"{image.parent.name}_mask") / f"{image.stem}.png"


def _grey(path: Path) -> Tensor:
    """uint8 [H, W]."""
    return read_image(path)[0][..., 0]


def _inside(path: Path) -> Tensor:
    return t.inner(_grey(path) >= 254)
