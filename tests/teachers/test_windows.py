"""Windows and sizes of photographs as teachers see them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from featuresplat.teachers import _windows


@pytest.mark.parametrize(("size", "window"), [(32, 32), (40, 32), (64, 32), (448, 224), (1000, 200), (72, 64)])
def test_windows_cover_and_overlap(size, window):
    starts = _windows.windows(size, window, 8)
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert all(s % 8 == 0 for s in starts)
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= window - 8 for gap in gaps)


def test_over_windows_of_a_local_function_is_the_function():
    """When a cell's features depend on that cell alone, windows must not be seen in the result."""
    planes = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))

    def encode(part):
        return torch.nn.functional.avg_pool2d(part, 8)[0].permute(1, 2, 0)

    torch.testing.assert_close(_windows.over_windows(planes, (24, 24), 8, encode), encode(planes))


def test_over_windows_fades_at_the_windows_edges():
    """Two windows of 4 cells over 6: weights 1 3 3 1 (eighths). In the overlap of cells 2 and 3: 3:1, then 1:3."""
    calls = iter((0.0, 8.0))

    def encode(part):
        return torch.full((1, 4, 1), next(calls))

    out = _windows.over_windows(torch.zeros(1, 3, 8, 48), (8, 32), 8, encode)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([0.0, 0, 2, 6, 8, 8]))


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 320), (160, 224)), ((320, 240), (224, 160)), ((10, 900), (32, 224))]
)
def test_fitted_keeps_the_aspect_in_whole_patches(size, expected):
    assert _windows.fitted(torch.zeros(*size, 3), 224, 32) == expected
