"""From a lens with distortion to a pinhole: where in the file each new pixel lies.

The pinhole keeps the focal lengths, the principal point and the size of the lens, so that pixels near the centre
stay as sharp as they were. Pixels whose ray the photograph never saw, or that lie beyond the point where a distortion
polynomial folds back, have no source: they are marked, and left out of every loss by the mask.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from featuresplat.datasets._recording import Lens


def distort(lens: Lens, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates of normalised ones, (X/Z, Y/Z), through the lens (formulas: :class:`Lens`)."""
    r2 = x * x + y * y
    n1, n2, n3, n4 = lens.numerator
    if lens.fisheye:
        r = np.sqrt(r2)
        theta = np.arctan(r)
        scale = _fisheye(lens, theta) / np.maximum(r, 1e-12)
        scale = np.where(r < 1e-9, 1.0, scale)
        return lens.fx * x * scale + lens.cx, lens.fy * y * scale + lens.cy
    p1, p2 = lens.tangential
    scale = 1 + r2 * (n1 + r2 * (n2 + r2 * (n3 + r2 * n4)))
    if any(lens.denominator):
        d1, d2, d3 = lens.denominator
        scale = scale / (1 + r2 * (d1 + r2 * (d2 + r2 * d3)))
    xd = x * scale + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * scale + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return lens.fx * xd + lens.cx, lens.fy * yd + lens.cy


def sources(lens: Lens, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the rays (x, y) are found in the file.

    Args:
        lens: of the file.
        x, y: normalised coordinates, any shape.

    Returns:
        (u, v) in pixels of the file, pixel centres at +0.5, and whether the file shows that ray.
    """
    u, v = distort(lens, x, y)
    seen = (u >= 0) & (v >= 0) & (u <= lens.width) & (v <= lens.height)
    return u, v, seen & (np.hypot(x, y) < fold_radius(lens))


def fold_radius(lens: Lens) -> float:
    """The normalised radius up to which the radial distortion grows; beyond, it shows the same pixels again."""
    corners = [(u - lens.cx, v - lens.cy) for u in (0, lens.width) for v in (0, lens.height)]
    far = 2 * max(np.hypot(du / lens.fx, dv / lens.fy) for du, dv in corners)
    r = np.linspace(0.0, far, 4097)
    if lens.fisheye:
        distorted = _fisheye(lens, np.arctan(r))
    else:
        n1, n2, n3, n4 = lens.numerator
        d1, d2, d3 = lens.denominator
        r2 = r * r
        below = 1 + r2 * (d1 + r2 * (d2 + r2 * d3))
        distorted = r * (1 + r2 * (n1 + r2 * (n2 + r2 * (n3 + r2 * n4)))) / np.where(below > 0, below, np.nan)
    falling = ~(np.diff(distorted) > 0)  # NaN, too: a pole of the rational model
    return float(r[np.argmax(falling)]) if falling.any() else float("inf")


class Undistortion:
    """The way from one lens to its pinhole, computed once for all photographs it took.

    Attributes:
        valid: [H, W] bool, whether a pixel of the pinhole image has a source.
    """

    def __init__(self, lens: Lens):
        x, y = (np.arange(lens.width) + 0.5 - lens.cx) / lens.fx, (np.arange(lens.height) + 0.5 - lens.cy) / lens.fy
        u, v, seen = sources(lens, *np.meshgrid(x, y))
        # grid_sample without align_corners takes -1 and 1 as the outer edges of the outermost pixels: our convention.
        grid = np.stack([2 * u / lens.width - 1, 2 * v / lens.height - 1], axis=-1)
        self.grid = torch.from_numpy(np.nan_to_num(grid, nan=2.0, posinf=2.0, neginf=-2.0).astype(np.float32))
        self.valid = torch.from_numpy(seen)

    def apply(self, image: Tensor) -> Tensor:
        """Bilinear samples of ``image`` [H, W, C] float; pixels without a source repeat the border."""
        planes = image.permute(2, 0, 1)[None]
        out = torch.nn.functional.grid_sample(planes, self.grid[None], padding_mode="border", align_corners=False)
        return out[0].permute(1, 2, 0)


def _fisheye(lens: Lens, theta: np.ndarray) -> np.ndarray:
    n1, n2, n3, n4 = lens.numerator
    t2 = theta * theta
    return theta * (1 + t2 * (n1 + t2 * (n2 + t2 * (n3 + t2 * n4))))
