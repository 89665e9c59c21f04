"""Photographs as teachers see them: checked, fitted to whole patches, cut into windows and joined again."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError


def check_image(image: Tensor) -> Tensor:
    """[H, W, 3] in 0..1 as float32 on the CPU.

    Raises:
        FeaturesplatError: of another shape, with bytes for numbers, or with values that are not finite.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise FeaturesplatError(f"image: expected [H, W, 3], got {list(image.shape)}", "Give one RGB image.")
    if not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise FeaturesplatError(f"image: expected floats in 0..1, got {kind}", "Divide bytes by 255.")
    if not bool(image.isfinite().all()):
        raise FeaturesplatError("image: has NaN or infinite values", "Check the file that it came from.")
    return image.detach().to("cpu", torch.float32).clamp(0, 1)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """[H, W, 3] to [1, 3, height, width], bicubic, with anti-aliasing where it shrinks."""
    planes = image.permute(2, 0, 1)[None]
    if tuple(planes.shape[-2:]) == (height, width):
        return planes
    return F.interpolate(planes, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def fitted(image: Tensor, longest: int, multiple: int) -> tuple[int, int]:
    """Height and width for an image [H, W, 3]: the longer side ``longest``, both rounded to a ``multiple``."""
    height, width = image.shape[:2]
    scale = longest / max(height, width) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple


def along_edges(features: Tensor, image: Tensor, longest: int) -> Tensor:
    """Patch features [h, w, F] brought to a longer side of ``longest`` along the edges of the image [H, W, 3], or as
    they are where that is no more than they have."""
    if longest <= max(features.shape[:2]):
        return features
    from featuresplat.teachers._upsample import upsample

    scale = longest / max(image.shape[:2])
    height, width = (
        max(cells, round(side * scale)) for cells, side in zip(features.shape, image.shape[:2], strict=False)
    )
    return upsample(features, image, (height, width))


def windows(size: int, window: int, multiple: int) -> list[int]:
    """Starts of windows that cover 0..size with at least a third of overlap, on multiples of a patch.

    ``size`` and ``window`` are multiples of ``multiple``, and ``size >= window``.
    """
    if size == window:
        return [0]
    count = math.ceil((size - window) / (window * 2 / 3)) + 1
    steps = (size - window) // multiple
    return [round(i * steps / (count - 1)) * multiple for i in range(count)]


def over_windows(planes: Tensor, window: tuple[int, int], patch: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Features of an image larger than a network's own size, from windows that overlap.

    Args:
        planes: [1, 3, H, W], both sides multiples of ``patch`` and at least the window's.
        window: height and width of what ``encode`` takes.
        encode: [1, 3, h, w] to [h / patch, w / patch, F].

    Returns:
        [H / patch, W / patch, F]; where windows overlap, a mean whose weights fall to the windows' edges.
    """
    height, width = planes.shape[-2] // patch, planes.shape[-1] // patch
    tall, wide = window[0] // patch, window[1] // patch
    weight = _hat(tall)[:, None, None] * _hat(wide)[None, :, None]  # [tall, wide, 1]
    total, weights = torch.zeros(0), torch.zeros(height, width, 1)
    for y in windows(planes.shape[-2], window[0], patch):
        for x in windows(planes.shape[-1], window[1], patch):
            part = encode(planes[..., y : y + window[0], x : x + window[1]])
            if total.numel() == 0:
                total = part.new_zeros(height, width, part.shape[-1])
            rows, columns = slice(y // patch, y // patch + tall), slice(x // patch, x // patch + wide)
            total[rows, columns] += part * weight
            weights[rows, columns] += weight
    return total / weights


def _hat(cells: int) -> Tensor:
    at = torch.arange(cells) + 0.5
    return torch.minimum(at, cells - at) / cells
