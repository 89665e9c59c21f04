"""Cameras between the browser and us: both OpenCV axes; viser gives a vertical field of view and a window."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featuresplat.geometry import quat_to_rotmat, rotmat_to_quat
from featuresplat.paths import focus_point, up_axis
from featuresplat.scene import Scene
from featuresplat.types import Cameras

NARROWEST, WIDEST = math.radians(5), math.radians(150)


@dataclass(frozen=True)
class Pose:
    """A place to look from.

    Attributes:
        position: [3] world.
        wxyz: camera-to-world rotation.
        fov: vertical, radians.
        width, height: of the window, pixels.
    """

    position: tuple[float, float, float]
    wxyz: tuple[float, float, float, float]
    fov: float
    width: int
    height: int

    @staticmethod
    def of(camera) -> Pose | None:
        """From a viser camera handle; None where what the browser says makes no sense."""
        position, wxyz = np.asarray(camera.position, float), np.asarray(camera.wxyz, float)
        numbers = [*position, *wxyz, camera.fov, camera.image_width, camera.image_height]
        if not np.isfinite(numbers).all() or not NARROWEST <= camera.fov <= WIDEST or not np.linalg.norm(wxyz) > 1e-6:
            return None
        width, height = int(camera.image_width), int(camera.image_height)
        if not (1 <= width <= 16384 and 1 <= height <= 16384):
            return None
        return Pose(tuple(position), tuple(wxyz / np.linalg.norm(wxyz)), float(camera.fov), width, height)

    def camera(self, pixels: int | None = None, time: float | None = None) -> Cameras:
        """One camera at a time, its image shrunk to at most ``pixels`` of the window's shape."""
        scale = 1.0 if pixels is None else min(1.0, math.sqrt(pixels / (self.width * self.height)))
        width, height = max(1, round(self.width * scale)), max(1, round(self.height * scale))
        focal = 0.5 * height / math.tan(0.5 * self.fov)
        R = quat_to_rotmat(torch.tensor(self.wxyz, dtype=torch.float64)).T
        viewmat = torch.eye(4, dtype=torch.float64)
        viewmat[:3, :3], viewmat[:3, 3] = R, -(R @ torch.tensor(self.position, dtype=torch.float64))
        # Pixels of the shrunken image are as good as square: rounding the size may stretch them by half a pixel.
        focal_x = focal * (width / self.width) / (height / self.height)
        K = torch.tensor([[focal_x, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)
        times = None if time is None else torch.tensor([time], dtype=torch.float64)
        return Cameras(viewmat[None], K[None], width, height, times)

    @property
    def forward(self) -> np.ndarray:
        return quat_to_rotmat(torch.tensor(self.wxyz, dtype=torch.float64)).numpy()[:, 2]


@dataclass(frozen=True)
class Home:
    """Where a browser starts: [3] vectors and the vertical field of view in radians."""

    position: np.ndarray
    look_at: np.ndarray
    up: np.ndarray
    fov: float


def home(scene: Scene, up: tuple[float, float, float] | None = None) -> Home:
    """The first photograph's place, looking at what all photographs look at; up as the cameras were held.

    Where there are no cameras: from outside, a little from above; ``up`` is -y then, as in most files, if not given.
    """
    cameras = scene.cameras
    if len(cameras) == 0:
        means = scene.gaussians.means.double().cpu()
        middle = means.median(dim=0).values if len(means) else torch.zeros(3, dtype=torch.float64)
        reach = float((means - middle).norm(dim=1).quantile(0.8)) if len(means) else 1.0
        above = torch.tensor(up or (0.0, -1.0, 0.0), dtype=torch.float64)
        back = torch.tensor([0.0, 0.0, -1.0] if above[2] == 0 else [0.0, -1.0, 0.0], dtype=torch.float64)
        place = middle + 2.5 * max(reach, 1e-6) * (0.35 * above + back)
        return Home(place.numpy(), middle.numpy(), above.numpy(), math.radians(50))
    position = cameras.positions[0].double().cpu()
    focus = focus_point(cameras)
    forward = cameras.viewmats[0, 2, :3].double().cpu()
    along = float((focus - position) @ forward)
    target = position + forward * along if along > 1e-6 else focus
    above = up_axis(cameras).numpy() if up is None else np.array(up)
    return Home(position.numpy(), target.numpy(), above, vertical_fov(cameras))


def vertical_fov(camera: Cameras) -> float:
    """Radians, of the first camera."""
    return 2 * math.atan(0.5 * camera.sizes[0][1] / float(camera.Ks[0, 1, 1]))


def fitting_fov(camera: Cameras, width: int, height: int) -> float:
    """The vertical field of view with which a window shows all of a camera's image."""
    w, h = camera.sizes[0]
    across = 0.5 * w / float(camera.Ks[0, 0, 0])
    up = 0.5 * h / float(camera.Ks[0, 1, 1])
    return min(2 * math.atan(max(up, across * height / width)), WIDEST)


def wxyz_of(camera: Cameras) -> np.ndarray:
    """Camera-to-world rotation of the first camera."""
    return rotmat_to_quat(camera.viewmats[0, :3, :3].double().cpu().T).numpy()


def bounds(scene: Scene) -> tuple[Tensor, Tensor]:
    """The box that holds 98 % of the Gaussians along each axis, a tenth larger."""
    means = scene.gaussians.means.float().cpu()
    if len(means) == 0:
        return -torch.ones(3), torch.ones(3)
    sample = means[torch.linspace(0, len(means) - 1, min(len(means), 50_000)).long()]
    low, high = torch.quantile(sample, 0.01, dim=0), torch.quantile(sample, 0.99, dim=0)
    margin = 0.1 * (high - low).clamp_min(1e-3)
    return low - margin, high + margin


def warped(photograph: Tensor, taken: Cameras, seen: Cameras) -> tuple[Tensor, Tensor]:
    """A photograph as it would look from ``seen``, a camera at the same place that may be turned and zoomed.

    Args:
        photograph: [H, W, 3] in 0..1. taken, seen: one camera each.

    Returns:
        [h, w, 3], and bool [h, w] where the photograph reaches.
    """
    w, h = seen.sizes[0]
    K, L = seen.Ks[0].double(), taken.Ks[0].double()
    x = (torch.arange(w, dtype=torch.float64) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(h, dtype=torch.float64) + 0.5 - K[1, 2]) / K[1, 1]
    rays = torch.stack([x.expand(h, w), y[:, None].expand(h, w), torch.ones(h, w, dtype=torch.float64)], dim=-1)
    R = taken.viewmats[0, :3, :3].double() @ seen.viewmats[0, :3, :3].double().T
    rays = rays @ R.T
    z = rays[..., 2].clamp_min(1e-9)
    W, H = taken.sizes[0]
    u = (rays[..., 0] / z * L[0, 0] + L[0, 2]) / W
    v = (rays[..., 1] / z * L[1, 1] + L[1, 2]) / H
    inside = (rays[..., 2] > 1e-9) & (u >= 0) & (u <= 1) & (v >= 0) & (v <= 1)
    grid = (2 * torch.stack([u, v], dim=-1) - 1).float()[None]
    image = torch.nn.functional.grid_sample(
        photograph.permute(2, 0, 1)[None].float(), grid, padding_mode="border", align_corners=False
    )
    return image[0].permute(1, 2, 0), inside


def along(points: Sequence[Pose]) -> Cameras:
    """Key frames as cameras of one size: the first one's window."""
    first = points[0]
    poses = [Pose(p.position, p.wxyz, p.fov, first.width, first.height).camera() for p in points]
    return Cameras(torch.cat([p.viewmats for p in poses]), torch.cat([p.Ks for p in poses]), first.width, first.height)
