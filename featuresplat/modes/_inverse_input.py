"""Photographs that materials and light cannot be found from: refused, or warned of."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.shading import tone

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset

FEWEST = 3
"""Training views: a highlight tells of roughness and metal only by how it moves from view to view."""
LOOKED_AT = 8
"""Photographs that are looked at."""
BLACK, DARK = 1e-3, 0.01
"""Mean radiance (white is 1) that is refused, and that is warned of: below the second, 8 bits hold a dozen levels."""
WHITE, BRIGHT = 0.7, 0.15
"""Share of pixels with a channel cut at 255 that is refused, and that is warned of."""


def check_photographs(data: Dataset) -> None:
    """Warn of photographs that say little.

    Raises:
        FeaturesplatError: too few views, nothing but black, or mostly cut at white.
    """
    if len(data.train) < FEWEST:
        views = "view" if len(data.train) == 1 else "views"
        raise FeaturesplatError(
            f"inverse: {len(data.train)} training {views} cannot tell materials from light; expected at least {FEWEST}",
            "Take more photographs around the scene, or train the mode static.",
        )
    some = data.train[:: max(1, len(data.train) // LOOKED_AT)][:LOOKED_AT]
    mean, cut = (sum(values) / len(some) for values in zip(*(_levels(data, i) for i in some), strict=True))
    if mean < BLACK:
        raise FeaturesplatError(
            f"inverse: the photographs are nearly black (mean radiance {mean:.2g} of white 1)",
            "Give photographs that are exposed for the scene.",
        )
    if cut > WHITE:
        raise FeaturesplatError(
            f"inverse: {100 * cut:.0f} % of the pixels are cut at white, so their radiance is not known",
            "Give photographs with a shorter exposure.",
        )
    if mean < DARK:
        warnings.warn(
            f"the photographs are dark (mean radiance {mean:.2g} of white 1); materials will be noisy.", stacklevel=2
        )
    if cut > BRIGHT:
        warnings.warn(
            f"{100 * cut:.0f} % of the pixels are cut at white; highlights and lamps will be found too weak.",
            stacklevel=2,
        )


def _levels(data: Dataset, i: int) -> tuple[float, float]:
    """Mean radiance of a photograph, and the share of its pixels with a channel at 255; where something is."""
    image, alpha = data.image(i), data.alpha(i)
    pixels: Tensor = image.reshape(-1, 3)
    if alpha is not None:
        pixels = pixels[alpha.reshape(-1) >= 254]
    mask = data.mask(i)
    if mask is not None and alpha is None:
        pixels = pixels[mask.reshape(-1)]
    if not len(pixels):
        return 0.0, 0.0
    table = tone.linear(torch.arange(256) / 255)
    return float(table[pixels.long()].mean()), float((pixels.amax(1) == 255).float().mean())
