"""Numbers as colours: one perceptual scale, dark violet over blue and green to light yellow."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# Oklab to linear sRGB: Ottosson, "A perceptual color space for image processing" (2020).
_LMS = [
    [1.0, 0.3963377774, 0.2158037573],
    [1.0, -0.1055613458, -0.0638541728],
    [1.0, -0.0894841775, -1.2914855480],
]
_RGB = [
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
]


def colormap(values: Tensor) -> Tensor:
    """Colours uint8 [..., 3] of numbers [...] in 0..1 (clamped); NaN is black.

    Lightness rises in equal steps of Oklab from 0.2 to 0.95 while the hue runs from violet to yellow, so
    equal differences look alike, also in grey and to colour-blind eyes.
    """
    values = values.detach().cpu().float()
    index = (values.nan_to_num(0.0).clamp(0, 1) * 255).round().long()
    return torch.where(values.isnan()[..., None], torch.zeros(3, dtype=torch.uint8), _table()[index])


def colorize_depth(
    depth: Tensor, near: float | None = None, far: float | None = None, alpha: Tensor | None = None
) -> Tensor:
    """A picture uint8 [H, W, 3] of a depth map [H, W]: near is light, far is dark, nothing is black.

    Args:
        depth: camera z, scene units; 0, negative, NaN and infinite values mean nothing there.
        near, far: depths of the two ends; by default the 2nd and 98th percentile of what is there.
        alpha: [H, W]; below 0.5 there is nothing there.
    """
    depth = depth.detach().cpu().float()
    there = depth.isfinite() & (depth > 0)
    if alpha is not None:
        there &= alpha.detach().cpu() >= 0.5
    seen = depth[there].sort().values
    if len(seen) == 0:
        return torch.zeros(*depth.shape, 3, dtype=torch.uint8)
    near = float(seen[round(0.02 * (len(seen) - 1))]) if near is None else near
    far = float(seen[round(0.98 * (len(seen) - 1))]) if far is None else far
    # One depth throughout is as near as it is far: the middle of the scale.
    share = (far - depth) / (far - near) if far > near else torch.full_like(depth, 0.5)
    return torch.where(there[..., None], colormap(share.nan_to_num(0.0)), torch.zeros(3, dtype=torch.uint8))


@cache
def _table() -> Tensor:
    """The 256 colours, uint8 [256, 3]: as colourful as the screen allows on the way, at most 0.14 of
    chroma.
    """
    t = torch.linspace(0, 1, 256, dtype=torch.float64)
    lightness = 0.2 + 0.75 * t
    hue = torch.deg2rad(300 - 195 * t)
    low, high = torch.zeros_like(t), torch.full_like(t, 0.14)
    for _ in range(30):  # bisect for the largest chroma inside the gamut
        middle = (low + high) / 2
        linear = _linear_rgb(lightness, middle, hue)
        fits = ((linear >= 0) & (linear <= 1)).all(dim=1)
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    linear = _linear_rgb(lightness, low, hue).clamp(0, 1)
    encoded = torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return (encoded * 255).round().to(torch.uint8)


def _linear_rgb(lightness: Tensor, chroma: Tensor, hue: Tensor) -> Tensor:
    lab = torch.stack([lightness, chroma * hue.cos(), chroma * hue.sin()], dim=1)
    lms = (lab @ torch.tensor(_LMS, dtype=torch.float64).T) ** 3
    return lms @ torch.tensor(_RGB, dtype=torch.float64).T
