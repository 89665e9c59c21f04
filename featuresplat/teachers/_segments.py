"""Class-agnostic masks without a network: graph-based segments, and GrabCut for a box or points.

Segments come from scikit-image (Felzenszwalb & Huttenlocher 2004), GrabCut (Rother et al. 2004) from OpenCV.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import ndimage as _ndimage
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._weights import need
from featuresplat.teachers._windows import check_image

ndimage: Any = _ndimage  # its functions say they may give nothing, which they do not

_LONGEST = 400
"""Longer side at which segments are cut: their scale is in pixels."""
_SCALES = (100.0, 300.0, 900.0)
"""Felzenszwalb's k: larger ones prefer larger segments."""
_MIN_AREA = 40
_SAME = 0.9
"""Segments of two scales with a higher intersection over union are one."""
_BORDER = 0.5
"""A segment that covers more of the image than this is background, not an object."""
_SMALL = 160
"""Longer side at which guesses from points are compared."""
_RADII = (0.06, 0.1, 0.16, 0.25, 0.4)
_PROMPT_SCALES = (40.0, 100.0, 300.0, 900.0)
"""Sizes of guesses: discs in shares of the longer side, and Felzenszwalb's k."""
_BACKGROUND, _OBJECT, _MAYBE_BACKGROUND, _MAYBE_OBJECT = 0, 1, 2, 3
"""OpenCV's numbers; odd ones are the object."""


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

    Points leave the size of the thing open. Discs of several sizes around them, and the segments under them at several
    scales, are each cut out of a small image; the cut whose outline follows strong edges, and which most guesses lead
    to, is the first guess at full size. The probability is the share of runs, over three widths of blur, that call
    a pixel inside.

    Raises:
        FeaturesplatError: neither points nor a box, or a prompt outside the image.
    """
    image = check_image(image)
    inside, outside = _marks(image, points, labels)
    guess = _box_guess(image, box) if box is not None else _point_guess(image, inside, outside)
    votes = [_grabcut(_bytes(image, blur), guess, inside, outside, rounds) for blur in (0.0, 0.8, 1.6)]
    mean = np.mean(votes, axis=0).astype(np.float32)
    kept = _kept(mean > 0.5, inside)
    return torch.from_numpy(np.where(kept, np.maximum(mean, 0.6), np.minimum(mean, 0.5)))


def _marks(image: Tensor, points: Tensor | None, labels: Tensor | None) -> tuple[np.ndarray, np.ndarray]:
    """Inside and outside points as integer rows (y, x)."""
    if points is None:
        none = np.zeros((0, 2), dtype=np.int64)
        return none, none
    height, width = image.shape[:2]
    at = points.detach().cpu().double().reshape(-1, 2).floor().long()
    bad = (at < 0).any(1) | (at[:, 0] >= width) | (at[:, 1] >= height)
    if bool(bad.any()):
        x, y = points.reshape(-1, 2)[bad.to(points.device)][0].tolist()
        raise FeaturesplatError(
            f"point ({x:g}, {y:g}): lies outside of the image of {width} x {height}", "Count x to the right, y down."
        )
    yes = torch.ones(len(at), dtype=torch.bool) if labels is None else labels.detach().cpu().reshape(-1) > 0
    rows = at.flip(1).numpy()
    return rows[yes.numpy()], rows[~yes.numpy()]


def _box_guess(image: Tensor, box: Tensor) -> np.ndarray:
    """Background outside of the box, probably object in an ellipse in it, certainly in the ellipse's middle."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = (float(v) for v in box.reshape(-1))
    left, top = max(0, int(np.floor(x0))), max(0, int(np.floor(y0)))
    right, bottom = min(width, int(np.ceil(x1))), min(height, int(np.ceil(y1)))
    if right <= left or bottom <= top:
        raise FeaturesplatError(
            f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g}): has nothing of the image of {width} x {height} in it",
            "Give x0 y0 x1 y1 with x0 < x1 and y0 < y1.",
        )
    y, x = np.mgrid[:height, :width] + 0.5
    r = ((y - (top + bottom) / 2) * 2 / (bottom - top)) ** 2 + ((x - (left + right) / 2) * 2 / (right - left)) ** 2
    guess = np.full((height, width), _BACKGROUND, dtype=np.uint8)
    guess[top:bottom, left:right] = _MAYBE_BACKGROUND
    guess[r < 0.8] = _MAYBE_OBJECT
    guess[r < 0.02] = _OBJECT
    return guess


def _point_guess(image: Tensor, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """The best cut of a small image, brought to full size: its middle certain, a band around its outline open."""
    if not len(inside):
        raise FeaturesplatError("prompt: expected a box or a point inside, got neither", "Click on the thing itself.")
    height, width = image.shape[:2]
    ratio = min(1.0, _SMALL / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    seen = F.interpolate(image.permute(2, 0, 1)[None], size, mode="area")[0].permute(1, 2, 0)
    scale = np.array([size[0] / height, size[1] / width])
    near, far = ((p * scale).astype(np.int64) for p in (inside, outside))
    best = torch.from_numpy(_best_cut(seen, near, far)).float()
    mask = (F.interpolate(best[None, None], (height, width), mode="bilinear")[0, 0] > 0.5).numpy()
    band = max(2, round(0.015 * max(height, width)))
    guess = np.full((height, width), _BACKGROUND, dtype=np.uint8)
    guess[ndimage.binary_dilation(mask, iterations=band)] = _MAYBE_BACKGROUND
    guess[mask] = _MAYBE_OBJECT
    guess[ndimage.binary_erosion(mask, iterations=band)] = _OBJECT
    return guess


def _best_cut(image: Tensor, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """bool [h, w]: of all guesses' cuts the one with the best outline that most other guesses lead to as well."""
    pixels, edges = _bytes(image, 0.0), _edges(image)
    cuts, scores = [], []
    for guess in _guesses(image, inside):
        cuts.append(ndimage.binary_fill_holes(_kept(_grabcut(pixels, guess, inside, outside, 4), inside)))
        scores.append(_outline_score(cuts[-1], guess != _BACKGROUND, edges))
    agreement = [sum(_iou(cut, other) for other in cuts) - _iou(cut, cut) for cut in cuts]
    return cuts[int(np.argmax(np.multiply(scores, agreement)))]


def _guesses(image: Tensor, inside: np.ndarray) -> Iterator[np.ndarray]:
    """GrabCut labels: discs of several sizes around the points, and the segments under them at several scales."""
    shape = tuple(image.shape[:2])
    away = np.ones(shape, dtype=bool)
    away[inside[:, 0], inside[:, 1]] = False
    distance, longest = np.asarray(ndimage.distance_transform_edt(away)), max(shape)
    for radius in _RADII:
        rings = [distance < radius * longest, distance < 1.7 * radius * longest]
        yield np.select(rings, [_MAYBE_OBJECT, _MAYBE_BACKGROUND], _BACKGROUND).astype(np.uint8)
    for scale in _PROMPT_SCALES:
        labels = label_map(image, scale, min_area=15).numpy()
        mask = np.isin(labels, labels[inside[:, 0], inside[:, 1]])
        if mask.mean() <= _BORDER:
            grown = ndimage.binary_dilation(mask, iterations=max(2, round(0.04 * longest)))
            yield np.select([mask, grown], [_MAYBE_OBJECT, _MAYBE_BACKGROUND], _BACKGROUND).astype(np.uint8)


def _outline_score(mask: np.ndarray, limit: np.ndarray, edges: np.ndarray) -> float:
    """Mean strength of the edges under a mask's outline, less for an outline that is the guess's limit or the image's
    border, more for larger masks (a spot of strong contrast on a thing is not the thing); 0 for what is no thing.

    Exponents and the factor of agreement were chosen on 40 clicks in three scenes (benchmarks/clicks.py).
    """
    outline = mask & ~_shrunk(mask)
    if outline.sum() < 4 or not 0.0008 < mask.mean() < 0.6:
        return 0.0
    at_limit = (outline & limit & ~_shrunk(limit)).sum() / outline.sum()
    border = int(mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum())
    cut_off = border / (border + outline.sum())
    return float(edges[outline].mean() * (1 - at_limit) ** 6 * (1 - cut_off) * mask.mean() ** 0.3)


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """One pixel less on all sides but the image's."""
    return np.asarray(ndimage.binary_erosion(np.pad(mask, 1, mode="edge")))[1:-1, 1:-1]


def _edges(image: Tensor) -> np.ndarray:
    """[h, w] strength of edges in CIELAB, spread by a pixel."""
    cv2: Any = need("cv2", "segments", "opencv-python-headless")
    lab = cv2.GaussianBlur(cv2.cvtColor(_bytes(image, 0.0), cv2.COLOR_BGR2LAB).astype(np.float32), (0, 0), 1.0)
    slopes = [cv2.Sobel(lab[..., c], cv2.CV_32F, dx, 1 - dx) for c in range(3) for dx in (0, 1)]
    return cv2.dilate(np.sqrt(sum(s * s for s in slopes)), np.ones((3, 3)))


def _bytes(image: Tensor, blur: float) -> np.ndarray:
    """uint8 [H, W, 3] in OpenCV's order, blurred."""
    cv2: Any = need("cv2", "segments", "opencv-python-headless")
    pixels = np.ascontiguousarray((image * 255).round().to(torch.uint8).numpy()[..., ::-1])
    return cv2.GaussianBlur(pixels, (0, 0), blur) if blur > 0 else pixels


def _grabcut(pixels: np.ndarray, guess: np.ndarray, inside: np.ndarray, outside: np.ndarray, rounds: int) -> np.ndarray:
    """bool [H, W]: GrabCut from a guess; the points are certain, with a pixel around them."""
    cv2: Any = need("cv2", "segments", "opencv-python-headless")
    labels = guess.copy()
    for points, value in ((inside, _OBJECT), (outside, _BACKGROUND)):
        for y, x in points:
            labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = value
    ours = labels % 2 == 1
    if ours.any() and not ours.all():
        cv2.setRNGSeed(0)  # its mixtures begin at random
        cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), rounds, cv2.GC_INIT_WITH_MASK)
    return labels % 2 == 1


def _kept(mask: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The parts of a mask under the points, or where there are none, those of a tenth of the largest at least."""
    parts, count = ndimage.label(mask)
    if len(inside):
        wanted = np.unique(parts[inside[:, 0], inside[:, 1]])
        return np.isin(parts, wanted[wanted > 0])
    if count == 0:
        return mask
    areas = np.bincount(parts.ravel())[1:]
    return np.isin(parts, 1 + np.flatnonzero(areas > 0.1 * areas.max()))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))
