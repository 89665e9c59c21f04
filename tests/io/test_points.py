"""Points become Gaussians as wide as the points are apart."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.points import LONE_SCALE, gaussians_from_points
from featuresplat.types import PointCloud


def cloud(*xyz) -> PointCloud:
    points = torch.tensor(xyz, dtype=torch.float32).reshape(-1, 3)
    return PointCloud(points, torch.full_like(points, 0.25))


def test_four_points_on_a_line_by_hand():
    g = gaussians_from_points(cloud([0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]), sh_degree=2, opacity=0.3)
    # 0: 1 3 7 -> 11/3;  1: 1 2 6 -> 3;  3: 3 2 4 -> 3;  7: 7 6 4 -> 17/3
    assert g.scales[:, 0].tolist() == pytest.approx([11 / 3, 3, 3, 17 / 3])
    assert torch.equal(g.log_scales[:, 0], g.log_scales[:, 2])
    assert g.quats.tolist() == [[1, 0, 0, 0]] * 4
    assert g.opacities.tolist() == pytest.approx([0.3] * 4)
    assert torch.allclose(g.colors, torch.tensor(0.25))
    assert g.sh_degree == 2
    assert g.shN.abs().max() == 0
    halved = gaussians_from_points(cloud([0, 0, 0], [1, 0, 0], [3, 0, 0], [7, 0, 0]), neighbours=1, scale=0.5)
    assert halved.scales[:, 1].tolist() == pytest.approx([0.5, 0.5, 1, 2])


def test_duplicates_take_the_distance_of_their_place():
    g = gaussians_from_points(cloud(*[[0, 0, 0]] * 5, [0, 2, 0], [0, 0, 4]))
    # Places (0,0,0), (0,2,0), (0,0,4): the crowd sees 2 and 4.
    assert g.scales[:5, 0].tolist() == pytest.approx([3.0] * 5)
    assert g.scales[5, 0].item() == pytest.approx(2.0)  # its three nearest are three of the crowd
    assert g.log_scales.isfinite().all()


def test_one_point_two_points_and_one_place():
    assert gaussians_from_points(cloud([5, 5, 5])).scales[0].tolist() == pytest.approx([LONE_SCALE] * 3)
    assert gaussians_from_points(cloud([5, 5, 5], [5, 5, 5])).scales[:, 0].tolist() == pytest.approx([LONE_SCALE] * 2)
    assert gaussians_from_points(cloud([0, 0, 0], [0, 3, 4])).scales[:, 0].tolist() == pytest.approx([5, 5])


def test_nan_points_are_left_out():
    with pytest.warns(UserWarning, match="left out 1 of 3"):
        assert len(gaussians_from_points(cloud([0, 0, 0], [math.nan, 0, 0], [1, 0, 0]))) == 2


def test_bad_arguments():
    good = cloud([0, 0, 0], [1, 0, 0])
    for call, words in (
        (lambda: gaussians_from_points(cloud()), "at least one finite point"),
        (
            lambda: gaussians_from_points(good, opacity=1.0),
            "opacity: expected a number between 0 and 1, got 1.0",
        ),
        (lambda: gaussians_from_points(good, sh_degree=5), "sh_degree: expected 0 to 4, got 5"),
        (lambda: gaussians_from_points(good, neighbours=0), "at least 1 neighbour"),
        (lambda: gaussians_from_points(PointCloud(good.xyz, good.rgb[:1])), r"got \(2, 3\) and \(1, 3\)"),
    ):
        with pytest.raises(FeaturesplatError, match=words):
            call()
