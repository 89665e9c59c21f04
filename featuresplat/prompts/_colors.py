"""Colours by name, and colour changes as affine maps of red, green and blue."""

from __future__ import annotations

import math

import torch
from PIL import ImageColor
from torch import Tensor

from featuresplat.errors import FeaturesplatError

LUMA = torch.tensor([0.2126, 0.7152, 0.0722])
"""Weights of red, green and blue in lightness (ITU-R BT.709)."""
EXTRA = {"golden": "#d4af37", "gold": "#d4af37", "dark": "#202020", "bright": "#f0f0f0", "grey": "#808080"}


def color_of(name: str) -> Tensor:
    """[3] in 0..1 of a CSS name (spaces allowed, ``dark blue``) or ``#rrggbb``.

    Raises:
        FeaturesplatError: no such colour.
    """
    plain = name.strip().lower()
    try:
        rgb = ImageColor.getrgb(EXTRA.get(plain, plain.replace(" ", "").replace("-", "")))
    except (ValueError, AttributeError):
        raise FeaturesplatError(
            f"color: there is none called '{name}'", "Use a name such as 'blue' or '#3366cc'."
        ) from None
    return torch.tensor(rgb[:3], dtype=torch.float32) / 255


def is_color(name: str) -> bool:
    """Whether `color_of` knows it."""
    try:
        color_of(name)
    except FeaturesplatError:
        return False
    return True


def hue_matrix(degrees: float) -> Tensor:
    """[3, 3] that turns hues and keeps lightness: a turn about the grey axis, sheared to keep luma."""
    angle = math.radians(degrees)
    axis = torch.ones(3) / 3**0.5
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turn = math.cos(angle) * torch.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * torch.outer(axis, axis)
    # Grey stays grey whatever is added along it: put back the luma that the turn took.
    return turn + torch.outer(torch.ones(3), LUMA - LUMA @ turn)


def saturation_matrix(factor: float) -> Tensor:
    """[3, 3] that stretches the distance from grey."""
    return factor * torch.eye(3) + (1 - factor) * torch.outer(torch.ones(3), LUMA)


def tint_matrix(color: Tensor, mean_luma: float) -> Tensor:
    """[3, 3] that gives every colour the hue of ``color``, as light as it was, and ``color`` itself at the mean."""
    return torch.outer(color, LUMA) / max(mean_luma, 1e-3)
