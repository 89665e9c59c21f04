"""Coarse maps brought to an image's size along the image's edges: joint bilateral upsampling (Kopf et al. 2007)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError

_BLOCK = 1 << 25
"""Numbers gathered at a time."""


def upsample(
    features: Tensor,
    image: Tensor,
    size: tuple[int, int] | None = None,
    radius: int = 1,
    sigma_space: float = 0.7,
    sigma_color: float = 0.1,
) -> Tensor:
    """[h, w, F] to [H', W', F]: each pixel takes a mean of the cells around it that look like it.

    out(p) = sum_c k(p, c) f(c) / sum_c k(p, c) over the (2 radius + 1)^2 cells c around p, with
    k = exp(-|p - c|^2 / (2 sigma_space^2) - |I(p) - I(c)|^2 / (2 sigma_color^2)), where I(c) is the image averaged
    over the cell. Where no cell looks like the pixel, the nearest in space and colour still decide.

    Args:
        features: [h, w, F].
        image: [H, W, 3] in 0..1.
        size: H' and W'; default the image's. A smaller size saves memory: the image is averaged down to it.
        radius: cells on each side.
        sigma_space: in cells.
        sigma_color: in the image's units.

    Raises:
        FeaturesplatError: features or image of another shape, or a size below the map's.
    """
    if features.ndim != 3 or image.ndim != 3 or image.shape[2] != 3 or 0 in features.shape:
        raise FeaturesplatError(
            f"upsample: expected features [h, w, F] and image [H, W, 3], got {list(features.shape)} and "
            f"{list(image.shape)}",
            "Give one map and one image.",
        )
    rows, columns = features.shape[:2]
    height, width = size or (image.shape[0], image.shape[1])
    if height < rows or width < columns:
        raise FeaturesplatError(
            f"upsample: expected a size of at least the map's {rows} x {columns}, got {height} x {width}",
            "Average the map down instead.",
        )
    planes = image.permute(2, 0, 1)[None].to(features)
    pixels = F.adaptive_avg_pool2d(planes, (height, width))[0].flatten(1).T  # [P, 3]
    cells = F.adaptive_avg_pool2d(planes, (rows, columns))[0].flatten(1).T  # [h w, 3]
    at, distance = _neighbours(height, width, rows, columns, radius)
    color = ((pixels[:, None] - cells[at]) ** 2).sum(-1)
    weight = (-distance / (2 * sigma_space**2) - color / (2 * sigma_color**2)).softmax(1)  # [P, K]
    flat, count = features.flatten(0, 1), features.shape[2] * at.shape[1]
    parts = [
        (w[:, None] @ flat[a])[:, 0]
        for a, w in zip(at.split(max(1, _BLOCK // count)), weight.split(max(1, _BLOCK // count)), strict=True)
    ]
    return torch.cat(parts).view(height, width, -1)


def _neighbours(height: int, width: int, rows: int, columns: int, radius: int) -> tuple[Tensor, Tensor]:
    """Cells around each pixel [P, K] and their squared distances in cells; outside of the map: infinitely far."""
    y = (torch.arange(height) + 0.5) * rows / height - 0.5
    x = (torch.arange(width) + 0.5) * columns / width - 0.5
    steps = torch.arange(-radius, radius + 1)
    near_y, near_x = y.round()[:, None] + steps, x.round()[:, None] + steps  # [H', S], [W', S]
    gap_y = torch.where((near_y >= 0) & (near_y < rows), (near_y - y[:, None]) ** 2, torch.inf)
    gap_x = torch.where((near_x >= 0) & (near_x < columns), (near_x - x[:, None]) ** 2, torch.inf)
    cell_y, cell_x = near_y.clamp(0, rows - 1).long(), near_x.clamp(0, columns - 1).long()
    at = cell_y[:, None, :, None] * columns + cell_x[None, :, None, :]
    distance = gap_y[:, None, :, None] + gap_x[None, :, None, :]
    return at.reshape(height * width, -1), distance.reshape(height * width, -1)
