"""Class-agnostic masks without a network: graph-based segments, and GrabCut for a box or points.

Segments come from scikit-image (Felzenszwalb & Huttenlocher 2004), GrabCut (Rother et al. 2004) from OpenCV.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._common import check_image, need

_LONGEST = 400
"""Longer side at which segments are cut: their scale is in pixels."""
_SCALES = (100.0, 300.0, 900.0)
"""Felzenszwalb's k: larger ones prefer larger segments."""
_MIN_AREA = 40
_SAME = 0.9
"""Segments of two scales with a higher intersection over union are one."""
_BORDER = 0.5
"""A segment that covers more of the image than this is background, not an object."""


class SegmentMasks:
    """The teacher-like face of `segments`, for those that want ``masks(image)``."""

    def masks(self, image: Tensor) -> list[Tensor]:
        """[H, W, 3] in 0..1 to boolean [H, W] masks, largest first."""
        return segments(image)


def label_map(image: Tensor, scale: float = 300.0, min_area: int = _MIN_AREA) -> Tensor:
    """[H, W, 3] in 0..1 to int64 [H, W] segment numbers from 0: a partition along colour edges.

    Args:
        scale: k of the method; larger numbers give larger segments. In pixels of an image of 400 on its longer side.
        min_area: smaller segments join a neighbour.
    """
    felzenszwalb = need("skimage.segmentation", "segments", "scikit-image").felzenszwalb
    image = check_image(image)
    height, width = image.shape[:2]
    ratio = min(1.0, _LONGEST / max(height, width))
    seen = image
    if ratio < 1:
        size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
        seen = F.interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
    found = felzenszwalb(seen.numpy().astype(np.float64), scale=scale, sigma=0.8, min_size=min_area)
    labels = torch.from_numpy(found.astype(np.int64))
    if ratio < 1:
        labels = F.interpolate(labels[None, None].double(), (height, width), mode="nearest-exact")[0, 0].long()
    return labels


def segments(image: Tensor) -> list[Tensor]:
    """[H, W, 3] in 0..1 to boolean [H, W] masks of three scales, largest first; they may overlap.

    What covers more than half of the image is left out.
    """
    image = check_image(image)
    area = image.shape[0] * image.shape[1]
    kept: list[np.ndarray] = []
    for scale in _SCALES:
        labels = label_map(image, scale).numpy()
        for number, box in enumerate(ndimage.find_objects(labels + 1)):
            if box is None:
                continue
            inside = labels[box] == number
            if inside.sum() > _BORDER * area:
                continue
            mask = np.zeros(labels.shape, dtype=bool)
            mask[box] = inside
            if all(_iou(mask, other) < _SAME for other in kept):
                kept.append(mask)
    kept.sort(key=lambda m: -int(m.sum()))
    return [torch.from_numpy(m) for m in kept]


def segment_from_prompt(
    image: Tensor,
    points: Tensor | None = None,
    labels: Tensor | None = None,
    box: Tensor | None = None,
    rounds: int = 5,
) -> Tensor:
    """[H, W] probability that a pixel belongs to what a box or points mean, by GrabCut.

    Args:
        image: [H, W, 3] in 0..1.
        points: [P, 2] x and y in pixels, with ``labels`` [P]: 1 inside, 0 outside (default: all inside).
        box: [4] x0, y0, x1, y1; what lies outside of it is background.
        rounds: iterations of GrabCut.

    Without a box, the segments under the inside points (at the coarsest scale that keeps the outside points out) are
    the first guess. The probability is the share of GrabCut runs, over three widths of blur, that call it inside.

    Raises:
        FeaturesplatError: neither points nor a box, or a prompt outside the image.
    """
    image = check_image(image)
    inside, outside = _marks(image, points, labels)
    guess = _box_guess(image, box) if box is not None else _point_guess(image, inside, outside)
    votes = [_grabcut(image, guess, inside, outside, blur, rounds) for blur in (0.0, 0.8, 1.6)]
    return torch.stack(votes).float().mean(0)


def _marks(image: Tensor, points: Tensor | None, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Inside and outside points as integer rows (y, x)."""
    if points is None:
        none = np.zeros((0, 2), dtype=np.int64)
        return none, none
    height, width = image.shape[:2]
    at = points.detach().cpu().double().reshape(-1, 2).floor().long()
    bad = (at < 0).any(1) | (at[:, 0] >= width) | (at[:, 1] >= height)
    if bool(bad.any()):
        x, y = points.reshape(-1, 2)[bad][0].tolist()
        raise FeaturesplatError(
            f"point ({x:g}, {y:g}): lies outside of the image of {width} x {height}", "Count x to the right, y down."
        )
    yes = torch.ones(len(at), dtype=torch.bool) if labels is None else labels.detach().cpu().reshape(-1) > 0
    rows = at.flip(1).numpy()
    return rows[yes.numpy()], rows[~yes.numpy()]


def _box_guess(image: Tensor, box: Tensor) -> np.ndarray:
    """GrabCut's four labels from a box: outside is background for certain, inside is probably object."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box.reshape(-1))
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if right <= left or bottom <= top:
        raise FeaturesplatError(
            f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}): has nothing of the image of {width} x {height} in it",
            "Give x0 y0 x1 y1 with x0 < x1 and y0 < y1.",
        )
    guess = np.zeros((height, width), dtype=np.uint8)  # GC_BGD
    guess[top:bottom, left:right] = 3  # GC_PR_FGD
    return guess


def _point_guess(image: Tensor, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    if not len(inside):
        raise FeaturesplatError("prompt: expected a box or a point inside, got neither", "Click on the thing itself.")
    area = image.shape[0] * image.shape[1]
    chosen = np.zeros(tuple(image.shape[:2]), dtype=bool)
    for scale in reversed(_SCALES):
        labels = label_map(image, scale).numpy()
        wanted = np.unique(labels[inside[:, 0], inside[:, 1]])
        chosen = np.isin(labels, wanted)
        hit = len(outside) and chosen[outside[:, 0], outside[:, 1]].any()
        if not hit and chosen.sum() <= _BORDER * area:
            break
    grown = ndimage.binary_dilation(chosen, iterations=max(2, round(0.03 * max(chosen.shape))))
    return np.where(chosen, 3, np.where(grown, 2, 0)).astype(np.uint8)  # probably inside, probably outside, outside


def _grabcut(
    image: Tensor, guess: np.ndarray, inside: np.ndarray, outside: np.ndarray, blur: float, rounds: int
) -> Tensor:
    cv2: Any = need("cv2", "segments", "opencv-python-headless")
    pixels = (image * 255).round().to(torch.uint8).numpy()
    if blur > 0:
        pixels = cv2.GaussianBlur(pixels, (0, 0), blur)
    labels = guess.copy()
    _stamp(labels, inside, 1)
    _stamp(labels, outside, 0)
    if not (labels % 2).any() or (labels % 2).all():
        return torch.from_numpy(labels % 2 == 1)
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    cv2.grabCut(np.ascontiguousarray(pixels[..., ::-1]), labels, None, *models, rounds, cv2.GC_INIT_WITH_MASK)
    return torch.from_numpy(labels % 2 == 1)


def _stamp(labels: np.ndarray, points: np.ndarray, value: int) -> None:
    """A disc of two pixels around each point is certain."""
    for y, x in points:
        rows, columns = slice(max(0, y - 1), y + 2), slice(max(0, x - 1), x + 2)
        labels[rows, columns] = value


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))
