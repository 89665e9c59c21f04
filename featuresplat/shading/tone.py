"""From linear radiance to what a photograph shows, and back: tone maps and the sRGB curve."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError

TONE_MAPS = ("none", "aces")


def srgb(linear: Tensor) -> Tensor:
    """The sRGB curve (IEC 61966-2-1), continued past 1 and linear below 0; differentiable everywhere."""
    large = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, large)


def linear(encoded: Tensor) -> Tensor:
    """The inverse of `srgb`."""
    large = ((encoded.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(encoded <= 0.04045, encoded / 12.92, large)


def aces(radiance: Tensor) -> Tensor:
    """Narkowicz's fit (2015) of the ACES film curve: [0, inf) to [0, 1)."""
    x = radiance.clamp_min(0)
    return x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)


def display(radiance: Tensor, tone: str = "none") -> Tensor:
    """Linear radiance as a photograph shows it, 0..1: tone map, sRGB curve, clipping.

    The clipping lets gradients through (straight-through): where the render is too bright and the photograph is not,
    the loss must be able to say so; where both are clipped, their difference is zero anyway.

    Raises:
        FeaturesplatError: an unknown tone map.
    """
    if tone not in TONE_MAPS:
        raise FeaturesplatError(f"tone: there is no tone map '{tone}'", f"Use {' or '.join(TONE_MAPS)}.")
    shown = srgb(aces(radiance) if tone == "aces" else radiance)
    return shown + (shown.clamp(0, 1) - shown).detach()
