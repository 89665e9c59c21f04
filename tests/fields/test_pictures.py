"""Fields as colours."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.fields.pictures import feature_colors, render_features
from featuresplat.types import FeatureField


def test_groups_get_colours_far_apart_and_the_same_ones_each_time():
    g = torch.Generator().manual_seed(0)
    groups = torch.randn(4, 16, generator=g)
    which = torch.randint(0, 4, (400,), generator=g)
    codes = groups[which] * (0.2 + torch.rand(400, 1, generator=g)) + 0.01 * torch.randn(400, 16, generator=g)
    field = FeatureField(codes, confidence=torch.rand(400, generator=g) + 0.1)
    colors = feature_colors(field)(codes)
    assert colors.shape == (400, 3)
    assert float(colors.min()) >= 0
    assert float(colors.max()) <= 1
    centres = torch.stack([colors[which == k].mean(0) for k in range(4)])
    spread = max(float((colors[which == k] - centres[k]).norm(dim=1).mean()) for k in range(4))
    apart = torch.cdist(centres, centres).masked_fill(torch.eye(4, dtype=torch.bool), 9.0).min()
    assert float(apart) > 5 * spread
    assert torch.equal(feature_colors(field)(codes), colors)
    torch.testing.assert_close(feature_colors(field)(codes[:7]), colors[:7])  # products of other shapes round otherwise


@pytest.mark.parametrize("dim", [1, 2, 3, 40])
def test_any_number_of_channels_has_colours(toy, dim):
    codes = torch.randn(60, dim, generator=torch.Generator().manual_seed(0))
    scene = replace(toy.scene, fields={"f": FeatureField(codes)})
    picture = render_features(scene, scene.cameras[:2])
    assert picture.shape == (2, 18, 24, 3)
    assert bool(picture.isfinite().all())
    assert float(picture.std()) > 0


def test_empty_and_broken_codes_are_no_crash(toy):
    codes = torch.zeros(60, 4)
    codes[3] = torch.nan
    field = FeatureField(codes, confidence=torch.zeros(60))
    assert bool(feature_colors(field)(codes[:3]).isfinite().all())
    with pytest.raises(FeaturesplatError, match="no feature field"):
        render_features(toy.scene, toy.scene.cameras[0])
