"""Edge-aware upsampling on cases that a person can check."""

from __future__ import annotations

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._upsample import upsample


def test_a_constant_map_stays_constant(picture):
    features = torch.full((4, 5, 3), 2.5)
    torch.testing.assert_close(upsample(features, picture(16, 20)), torch.full((16, 20, 3), 2.5))


def test_features_follow_the_images_edge_inside_a_cell():
    """The edge lies at column 5, in the middle of the cell of columns 4..7; the map knows it only to the cell."""
    image = torch.zeros(8, 12, 3)
    image[:, 5:] = 1.0
    features = torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])[..., None]
    out = upsample(features, image, sigma_space=1.0, sigma_color=0.1)[..., 0]
    assert bool((out[:, :5] < 0.01).all())
    assert bool((out[:, 5:] > 0.99).all())


def test_without_edges_it_is_a_weighting_by_distance():
    image = torch.full((2, 8, 3), 0.5)
    features = torch.tensor([[[0.0], [4.0]]])
    out = upsample(features, image, sigma_space=0.7, sigma_color=0.1)
    # Pixel 0 has its centre at cell coordinate -3/8: 3/8 from cell 0, 11/8 from cell 1.
    near, far = torch.tensor([-(0.375**2), -(1.375**2)]).div(2 * 0.49).exp()
    torch.testing.assert_close(out[0, 0, 0], 4 * far / (near + far))
    torch.testing.assert_close(out, out.flip(1).mul(-1).add(4))  # symmetric about the middle


def test_cells_outside_of_the_map_do_not_count():
    out = upsample(torch.ones(1, 1, 2) * 3, torch.rand(5, 7, 3))
    torch.testing.assert_close(out, torch.full((5, 7, 2), 3.0))


def test_a_smaller_size_may_be_asked_for(picture):
    features = torch.rand(4, 4, 6, generator=torch.Generator().manual_seed(0))
    assert upsample(features, picture(32, 32), size=(8, 16)).shape == (8, 16, 6)


def test_blocks_change_nothing(picture, monkeypatch):
    from featuresplat.teachers import _upsample

    features = torch.rand(4, 4, 6, generator=torch.Generator().manual_seed(0))
    whole = upsample(features, picture(16, 16))
    monkeypatch.setattr(_upsample, "_BLOCK", 500)
    torch.testing.assert_close(upsample(features, picture(16, 16)), whole)


@pytest.mark.parametrize(
    ("features", "image", "size", "message"),
    [
        (torch.zeros(4, 4), torch.zeros(8, 8, 3), None, r"features \[h, w, F\]"),
        (torch.zeros(4, 4, 2), torch.zeros(8, 8), None, r"image \[H, W, 3\]"),
        (torch.zeros(4, 4, 2), torch.zeros(8, 8, 3), (3, 8), "at least the map's 4 x 4"),
    ],
)
def test_what_does_not_fit_is_said(features, image, size, message):
    with pytest.raises(FeaturesplatError, match=message):
        upsample(features, image, size)
