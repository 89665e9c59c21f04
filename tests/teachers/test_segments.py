"""Masks without a network: segments, levels, crops, GrabCut."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import MaskTeacher, masks_of
from featuresplat.teachers._levels import crop, levels
from featuresplat.teachers._segments import SegmentMasks, label_map, segment_from_prompt, segments

needs_skimage = pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
needs_cv2 = pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="OpenCV is not installed")


def disc(height: int = 90, width: int = 120, y: float = 40, x: float = 50, radius: float = 22) -> Tensor:
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 < radius**2


def scene(mask: Tensor, seed: int = 0) -> Tensor:
    """A red thing on a greenish ground, with some noise."""
    noise = 0.03 * torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(seed))
    colors = torch.where(mask[..., None], torch.tensor([0.8, 0.15, 0.1]), torch.tensor([0.3, 0.5, 0.35]))
    return (colors + noise).clamp(0, 1)


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


@needs_skimage
def test_a_segment_is_the_object():
    mask = disc()
    found = segments(scene(mask))
    assert max(iou(m, mask) for m in found) > 0.9
    assert all(m.shape == mask.shape and m.dtype == torch.bool for m in found)
    areas = [int(m.sum()) for m in found]
    assert areas == sorted(areas, reverse=True)
    assert max(areas) <= 0.5 * mask.numel()
    assert isinstance(SegmentMasks(), MaskTeacher)


@needs_skimage
def test_a_teachers_own_masks_come_first():
    mask = disc()

    class Own:
        def masks(self, image):
            return [mask]

    assert masks_of(Own(), scene(mask)) == [mask]  # pyright: ignore[reportArgumentType]
    assert max(iou(m, mask) for m in masks_of(None, scene(mask))) > 0.9


@needs_skimage
def test_large_images_are_cut_at_a_fixed_size_and_brought_back():
    mask = disc(600, 900, 300, 400, 150)
    labels = label_map(scene(mask))
    assert labels.shape == mask.shape
    inside = int(labels[300, 400])
    assert iou(labels == inside, mask) > 0.9


@needs_skimage
@needs_cv2
def test_a_point_a_box_and_negative_points():
    mask = disc()
    image = scene(mask)
    at = torch.tensor([[50.0, 40.0]])
    assert iou(segment_from_prompt(image, at) > 0.5, mask) > 0.9
    box = torch.tensor([24.0, 14.0, 76.0, 66.0])
    assert iou(segment_from_prompt(image, box=box) > 0.5, mask) > 0.9
    both = mask | disc(y=45, x=100, radius=15)
    two = scene(both)
    points, labels = torch.tensor([[50.0, 40.0], [100.0, 45.0]]), torch.tensor([1, 0])
    assert iou(segment_from_prompt(two, points, labels) > 0.5, mask) > 0.85
    assert iou(segment_from_prompt(two, points) > 0.5, both) > 0.85
    probability = segment_from_prompt(image, at)
    assert bool(((probability >= 0) & (probability <= 1)).all())
    torch.testing.assert_close(segment_from_prompt(image, at), probability, rtol=0, atol=0)


@needs_skimage
@needs_cv2
def test_prompts_that_hit_nothing():
    image = scene(disc())
    with pytest.raises(FeaturesplatError, match="outside of the image of 120 x 90"):
        segment_from_prompt(image, torch.tensor([[120.0, 10.0]]))
    with pytest.raises(FeaturesplatError, match="nothing of the image"):
        segment_from_prompt(image, box=torch.tensor([200.0, 10, 300, 50]))
    with pytest.raises(FeaturesplatError, match="nothing of the image"):
        segment_from_prompt(image, box=torch.tensor([50.0, 10, 40, 50]))
    with pytest.raises(FeaturesplatError, match="a box or a point inside"):
        segment_from_prompt(image)
    with pytest.raises(FeaturesplatError, match="a box or a point inside"):
        segment_from_prompt(image, torch.tensor([[5.0, 5.0]]), torch.tensor([0]))


def test_levels_follow_nesting():
    whole, part, subpart = disc(radius=30), disc(radius=20), disc(radius=10)
    twin, speck = disc(radius=30.3), disc(radius=3)
    found = levels([subpart, whole, twin, part, speck])
    assert [int(m.sum()) for m in found["whole"]] == [int(twin.sum())]  # the larger of two that are the same
    assert [int(m.sum()) for m in found["part"]] == [int(twin.sum()), int(part.sum())]
    assert [int(m.sum()) for m in found["subpart"]] == [int(twin.sum()), int(part.sum()), int(subpart.sum())]
    assert levels([]) == {"whole": [], "part": [], "subpart": []}


def test_a_crop_is_square_and_filled():
    image = torch.ones(20, 30, 3)
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[5:9, 10:18] = True  # 4 x 8: padded to 8 x 8
    out = crop(image, mask, 8)
    assert out.shape == (1, 3, 8, 8)
    expected = torch.zeros(8, 8)
    expected[2:6] = 1
    torch.testing.assert_close(out[0], expected.expand(3, 8, 8))
    wide = crop(image, mask, 16, margin=0.5, fill=0.25)
    torch.testing.assert_close(wide[0, 0, 0], torch.full((16,), 0.25))
    torch.testing.assert_close(wide[0, 0, 8, 4:12], torch.ones(8))


def test_a_crop_may_reach_over_the_border():
    mask = torch.zeros(20, 30, dtype=torch.bool)
    mask[0:2, 0:30] = True
    out = crop(torch.ones(20, 30, 3), mask, 30)
    torch.testing.assert_close(out[0, 0].sum(), torch.tensor(60.0))
