"""Lights that need no file: skies and studios made of a gradient and soft round lamps, +z up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featuresplat.shading import cubemap

HEIGHT = 128
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Disc:
    """A lamp: azimuth (counter-clockwise from +x), elevation and radius in degrees; radiance."""

    azimuth: float
    elevation: float
    radius: float
    color: Color


@dataclass(frozen=True)
class Recipe:
    """Radiance at the zenith, at the horizon and of the ground, and lamps; ``level`` is the irradiance / pi that an
    upward surface gets in the end, mean of the three channels.
    """

    zenith: Color
    horizon: Color
    ground: Color
    discs: Sequence[Disc]
    level: float = 0.9


PRESETS: dict[str, Recipe] = {
    "even": Recipe((1, 1, 1), (1, 1, 1), (1, 1, 1), ()),
    "overcast": Recipe((1.0, 1.05, 1.15), (0.7, 0.72, 0.75), (0.25, 0.24, 0.22), ()),
    "noon": Recipe((0.30, 0.50, 1.00), (0.80, 0.85, 0.90), (0.20, 0.18, 0.15), (Disc(40, 60, 5, (90, 85, 75)),)),
    "evening": Recipe(
        (0.10, 0.16, 0.40), (0.90, 0.55, 0.30), (0.10, 0.08, 0.06), (Disc(-70, 14, 7, (80, 42, 16)),), 0.7
    ),
    "studio": Recipe(
        (0.15, 0.15, 0.15),
        (0.12, 0.12, 0.12),
        (0.06, 0.06, 0.06),
        (Disc(30, 50, 18, (12, 12, 12)), Disc(150, 35, 14, (7, 7.5, 8.5)), Disc(-90, 40, 10, (10, 9, 8))),
    ),
    "colours": Recipe(
        (0.05, 0.05, 0.07),
        (0.08, 0.08, 0.10),
        (0.03, 0.03, 0.03),
        (Disc(0, 40, 15, (16, 3, 10)), Disc(120, 40, 15, (3, 14, 6)), Disc(240, 40, 15, (3, 7, 18))),
        0.8,
    ),
}
"""Lights by name."""


def environment(name: str, height: int = HEIGHT) -> Tensor:
    """[height, 2 height, 3] linear radiance of one of `PRESETS`."""
    recipe = PRESETS[name]
    dirs = cubemap.equirect_directions(height, 2 * height)
    z = dirs[..., 2:]
    zenith, horizon, ground = (
        torch.tensor(c, dtype=torch.float32) for c in (recipe.zenith, recipe.horizon, recipe.ground)
    )
    up = horizon + (zenith - horizon) * z.clamp_min(0) ** 0.6
    # The horizon is no edge: half a degree of haze.
    out = torch.where(z > 0, up, ground + (horizon - ground) * (1 + z / 0.01).clamp(0, 1))
    for disc in recipe.discs:
        a, e = math.radians(disc.azimuth), math.radians(disc.elevation)
        axis = torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        angle = torch.rad2deg((dirs @ axis).clamp(-1, 1).acos())
        soft = ((disc.radius - angle) / 1.5 + 0.5).clamp(0, 1)[..., None]
        out = out + soft * torch.tensor(disc.color, dtype=torch.float32)
    theta = math.pi * (torch.arange(height) + 0.5) / height
    area = (theta.sin() * (math.pi / height) ** 2)[:, None, None]
    irradiance = float((out * z.clamp_min(0) * area).sum() / math.pi / 3)
    return out * (recipe.level / irradiance)
