"""Masks of different sizes: kept apart as subparts, parts and wholes, and cut out for an image encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = ("subpart", "part", "whole")
_MIN_AREA = 100
_OVERLAP = 0.8
"""Masks whose intersection over union is above are the same mask."""


def levels(masks: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """Boolean [H, W] masks by level, each level largest first (so that a smaller mask painted later stays visible).

    A mask's level is how deeply it lies inside others: `whole` is inside none, `part` inside one, `subpart` inside
    two or more. A level that has no mask at a pixel takes the next larger one there, so that every level covers what
    the masks cover (LangSplat's rule).
    """
    kept: list[Tensor] = []
    for mask in sorted(masks, key=lambda m: -int(m.sum())):
        if int(mask.sum()) >= _MIN_AREA and all(_iou(mask, other) <= _OVERLAP for other in kept):
            kept.append(mask)
    depths = [sum(_inside(mask, other) for other in kept[:i]) for i, mask in enumerate(kept)]
    whole = [m for m, d in zip(kept, depths, strict=True) if d == 0]
    part = [m for m, d in zip(kept, depths, strict=True) if d == 1]
    subpart = [m for m, d in zip(kept, depths, strict=True) if d >= 2]
    return {"whole": whole, "part": whole + part, "subpart": whole + part + subpart}


def crop(image: Tensor, mask: Tensor, size: int, margin: float = 0.0, fill: float | Tensor = 0.0) -> Tensor:
    """[1, 3, size, size]: the mask's box grown to a square, what is outside the mask filled.

    Args:
        image: [H, W, 3] in 0..1.
        mask: boolean [H, W], not empty.
        margin: added on each side, as a share of the longer side.
        fill: grey value, or [H, W, 3] to show through.
    """
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    side = max(bottom - top, right - left)
    pad = round(side * margin)
    background = fill if isinstance(fill, Tensor) else torch.full_like(image, fill)
    shown = torch.where(mask[..., None], image, background)
    y, x = (top + bottom - side) // 2 - pad, (left + right - side) // 2 - pad
    square = _window(shown, y, x, side + 2 * pad, fill if isinstance(fill, float) else 0.5)
    planes = square.permute(2, 0, 1)[None]
    return F.interpolate(planes, (size, size), mode="bilinear", antialias=True, align_corners=False)


def _window(image: Tensor, y: int, x: int, side: int, fill: float) -> Tensor:
    """[side, side, 3] at (y, x), which may lie outside of the image."""
    height, width = image.shape[:2]
    out = image.new_full((side, side, 3), fill)
    y0, y1, x0, x1 = max(y, 0), min(y + side, height), max(x, 0), min(x + side, width)
    out[y0 - y : y1 - y, x0 - x : x1 - x] = image[y0:y1, x0:x1]
    return out


def _iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def _inside(small: Tensor, large: Tensor) -> bool:
    return float((small & large).sum() / small.sum().clamp_min(1)) > 0.85
