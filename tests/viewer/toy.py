"""A scene that can be judged by eye: a red, a green and a blue ball in a row, seen from a circle of cameras.

The field ``objects`` holds one channel per ball and a table of phrases, so text works without any teacher's weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featuresplat.paths import look_at
from featuresplat.scene import Scene
from featuresplat.types import SH_C0, Cameras, FeatureField, Gaussians, TextTable

NAMES = ("red ball", "green ball", "blue ball")
COLORS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.9]])
CENTERS = torch.tensor([[-1.4, 0.0, 0.0], [0.0, 0.0, 0.0], [1.4, 0.0, 0.0]])
EACH = 120
WIDTH, HEIGHT = 160, 120


def toy_scene(field: bool = True, views: int = 8) -> Scene:
    """360 opaque Gaussians; y points down, as in the cameras."""
    generator = torch.Generator().manual_seed(0)
    shell = torch.nn.functional.normalize(torch.randn(3 * EACH, 3, generator=generator), dim=1)
    which = torch.arange(3).repeat_interleave(EACH)
    means = CENTERS[which] + 0.32 * shell
    n = len(means)
    gaussians = Gaussians(
        means,
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        torch.full((n, 3), math.log(0.07)),
        torch.full((n,), 5.0),
        ((COLORS[which] - 0.5) / SH_C0)[:, None],
        torch.zeros(n, 0, 3),
    )
    codes = torch.nn.functional.one_hot(which, 3).float()
    fields = {}
    if field:
        table = TextTable(NAMES, torch.eye(3))
        fields = {"objects": FeatureField(codes, "precomputed", text=table, confidence=torch.ones(n))}
    info = {"split": {"train": [f"view_{i}.png" for i in range(1, views)], "test": ["view_0.png"]}}
    return Scene(gaussians, cameras(views), fields, info=info)


def cameras(views: int) -> Cameras:
    """On a part of a circle of radius 4 around the middle, all in front of the row."""
    angles = torch.linspace(-0.6, 0.6, views, dtype=torch.float64)
    eyes = torch.stack([4 * angles.sin(), torch.full_like(angles, -0.8), -4 * angles.cos()], dim=1)
    viewmats = look_at(eyes, torch.zeros(3, dtype=torch.float64), torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64))
    focal = 0.5 * HEIGHT / math.tan(0.4)
    K = torch.tensor([[focal, 0.0, WIDTH / 2], [0.0, focal, HEIGHT / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(viewmats, K.repeat(views, 1, 1), WIDTH, HEIGHT, names=[f"view_{i}.png" for i in range(views)])


def ball(index: int) -> Tensor:
    """bool [N]: the Gaussians of one ball."""
    mask = torch.zeros(3 * EACH, dtype=torch.bool)
    mask[index * EACH : (index + 1) * EACH] = True
    return mask
