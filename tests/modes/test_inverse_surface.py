"""The surface of the mode inverse: quadrics through the points, surfels all over them, and what holds them there."""

from __future__ import annotations

import pytest
import torch
from directions import spiral
from torch.nn import functional as F

from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_points import PointSurface, lying
from featuresplat.modes._inverse_start import covered


def scattered(count: int, noise: float = 0.0) -> torch.Tensor:
    """[N, 3] random points of the unit sphere, off it by the standard deviation ``noise``."""
    draw = torch.Generator().manual_seed(0)
    out = F.normalize(torch.randn(count, 3, generator=draw), dim=1)
    return out * (1 + noise * torch.randn(count, 1, generator=draw))


def surface_of(points: torch.Tensor) -> PointSurface:
    found = PointSurface.of(points)
    assert found is not None
    return found


def test_points_that_are_too_few_or_too_noisy_have_no_surface():
    g = torch.Generator().manual_seed(0)
    assert PointSurface.of(None) is None
    assert PointSurface.of(spiral(50)) is None
    assert PointSurface.of(torch.rand(2000, 3, generator=g)) is None
    assert PointSurface.of(spiral(2000)) is not None


def test_gaussians_are_pulled_to_where_the_points_are():
    surface = surface_of(spiral(2000))
    g = torch.Generator().manual_seed(1)
    out = F.normalize(torch.randn(300, 3, generator=g), dim=1)
    near = 1 + surface.spacing * (2 * torch.rand(300, 1, generator=g) - 1)
    means = torch.cat([out * near, torch.tensor([[3.0, 0.0, 0.0]])])
    quats, log_scales = torch.randn(301, 4, generator=g), torch.tensor([-4.0, -4.0, -8.0]).repeat(301, 1)
    foot, normal, sure = surface.planes(means)
    before = surface.pull(means, quats, log_scales, (foot, normal, sure))
    there = (sure > 0)[:, None]
    laid, turned = torch.where(there, foot, means), torch.where(there, lying(normal), quats)
    after = surface.pull(laid, turned, log_scales, surface.planes(laid))
    assert float(after) < 0.1 * float(before)
    torch.testing.assert_close(laid[:300].norm(dim=1), torch.ones(300), atol=0.02, rtol=0)
    axes = px.shortest_axes(turned, log_scales)[:300]
    assert float((axes * out).sum(1).abs().min()) > 0.85
    assert float(sure[300]) == 0  # far from all points: left alone


def test_normals_of_a_bent_surface_are_those_of_the_place_that_is_asked_for():
    """Planes through as many points are six degrees off: each has the normal of the middle of its points."""
    surface = surface_of(scattered(400, noise=0.002))
    at = spiral(1000)
    foot, normal, sure = surface.planes(at)
    angle = torch.rad2deg((normal * at).sum(1).abs().clamp(max=1).acos())
    assert float(angle.mean()) < 1.5
    assert float((foot.norm(dim=1) - 1).abs().mean()) < 0.004
    assert float(sure.mean()) > 0.9


def test_where_two_surfaces_meet_less_is_sure():
    """Two balls that touch."""
    ball = scattered(1500)
    surface = surface_of(torch.cat([ball, ball.flip(0) + torch.tensor([1.9, 0.0, 0.0])]))
    angle = torch.linspace(0, 6.2, 60)[:, None]
    seam = torch.cat([torch.full_like(angle, 0.95), 0.32 * angle.cos(), 0.32 * angle.sin()], 1)
    _, _, edge = surface.planes(seam)
    _, normal, open_ = surface.planes(torch.tensor([[-1.0, 0.0, 0.0], [1.9, 1.0, 0.0]]))
    assert float(edge.mean()) < 0.75
    assert float(open_.min()) > 0.95
    torch.testing.assert_close(normal.abs(), torch.tensor([[1.0, 0, 0], [0.0, 1, 0]]), atol=0.03, rtol=0)


def table(noise: float = 0.0) -> torch.Tensor:
    """A box and a ball on a table, which has the fewest points for its size."""
    draw = torch.Generator().manual_seed(2)
    top = torch.cat([4 * torch.rand(500, 2, generator=draw) - 2, torch.zeros(500, 1)], 1)
    faces = torch.rand(5, 160, 3, generator=draw) - 0.5
    for k, (axis, side) in enumerate(((0, -0.5), (0, 0.5), (1, -0.5), (1, 0.5), (2, 0.5))):
        faces[k, :, axis] = side
    box = faces.reshape(-1, 3) + torch.tensor([-0.8, 0.0, 0.5])
    ball = 0.5 * scattered(600) + torch.tensor([0.8, 0.0, 0.5])
    hidden = (top[:, 0] + 0.8).abs().maximum(top[:, 1].abs()) < 0.5
    points = torch.cat([top[~hidden], box, ball])
    return points + noise * torch.randn(points.shape, generator=draw)


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_flat_pieces_end_where_they_meet(noise):
    surface = surface_of(table(noise))
    assert len(surface.flat) == 6  # and none of the ball
    assert bool((surface.flat[:, :3].abs().amax(1) > 0.999).all())
    foot = torch.tensor(
        [[-0.27, 0.0, 0.0], [0.8, -0.1, 0.0], [1.5, 1.5, 0.0]]
    )  # at the box, under the ball, in the open
    wall = torch.tensor([[-0.3, 0.2, 0.03], [-0.8, 0.5, 0.97]])
    _, normal, sure = surface.planes(torch.cat([foot, wall, torch.tensor([[1.3, 0.0, 0.5]])]))
    expected = torch.tensor([[0.0, 0, 1]] * 3 + [[1.0, 0, 0], [0.0, 1, 0], [1.0, 0, 0]])
    torch.testing.assert_close(normal.abs(), expected, atol=0.01 if noise == 0 else 0.06, rtol=0)
    assert float(sure[:5].min()) == 1


def test_a_corner_of_which_all_is_flat():
    draw = torch.Generator().manual_seed(1)
    flat = torch.rand(2, 1500, 2, generator=draw)
    floor = torch.cat([flat[0], torch.zeros(1500, 1)], 1)
    wall = torch.cat([torch.zeros(1500, 1), flat[1]], 1)
    surface = surface_of(torch.cat([floor, wall]))
    assert len(surface.flat) == 2
    along = torch.linspace(0.1, 0.9, 60)[:, None] * torch.tensor([0.0, 1, 0])
    for axis, out in ((2, [1.0, 0, 0]), (0, [0.0, 0, 1])):
        _, normal, _ = surface.planes(along + 0.5 * surface.spacing * torch.tensor(out))
        assert float((normal[:, axis].abs() > 0.999).float().mean()) > 0.9


def test_surfels_of_flat_pieces_lie_in_them():
    surface = surface_of(table())
    places, normals, _ = surface.surfels(8000, seed=0)
    low = (places[:, 2].abs() < 0.06) & ((places[:, 0] - 0.8).square() + places[:, 1].square() > 0.3)
    low &= (places[:, :2] - torch.tensor([-0.8, 0.0])).abs().amax(1) > 0.6  # of the table, a little away from the box
    assert int(low.sum()) > 2000
    assert float(places[low, 2].abs().max()) < 1e-3
    assert float(normals[low, 2].abs().min()) > 0.999
    top = torch.cartesian_prod(torch.linspace(-1.9, 1.9, 30), torch.linspace(-1.9, 1.9, 30))
    top = torch.cat([top, torch.zeros(900, 1)], 1)
    free = (top[:, :2] - torch.tensor([-0.8, 0.0])).abs().amax(1) > 0.5
    assert float(torch.cdist(top[free], places).amin(1).max()) < 0.3, "a hole"


def test_surfels_cover_the_surface():
    surface = surface_of(scattered(600))
    places, normals, log_sizes = surface.surfels(3000, seed=0)
    assert 2500 < len(places) <= 3000
    torch.testing.assert_close(places.norm(dim=1), torch.ones(len(places)), atol=0.01, rtol=0)
    assert float((F.normalize(places, dim=1) * normals).sum(1).abs().mean()) > 0.999
    gap = torch.cdist(spiral(2000), places).amin(1)
    assert float(gap.quantile(0.95)) < 3 * float(log_sizes.exp().median())
    assert float(gap.max()) < 2 * surface.spacing, "a hole"
    assert torch.equal(places, surface.surfels(3000, seed=0)[0])


def test_surfels_take_the_place_of_what_is_near_the_points_alone():
    surface = surface_of(scattered(600))
    means = torch.tensor([[1.02, 0.0, 0.0], [0.0, 0.99, 0.0], [0.0, 0.0, 3.0]])
    params = {
        "means": means,
        "quats": torch.tensor([[1.0, 0, 0, 0]]).repeat(3, 1),
        "log_scales": torch.full((3, 3), -3.0),
        "logit_opacities": torch.tensor([0.1, 0.2, 0.3]),
        "sh0": torch.ones(3, 1, 3),
        "shN": torch.ones(3, 15, 3),
    }
    tensors, surfels = covered(params, surface, 1000, 0.02, seed=0)
    assert len(tensors["means"]) == surfels + 1 <= 1000
    torch.testing.assert_close(tensors["means"][surfels:], means[2:])
    torch.testing.assert_close(tensors["shN"][surfels:], params["shN"][2:])
    axes = px.shortest_axes(tensors["quats"], tensors["log_scales"])[:surfels]
    assert float((axes * F.normalize(tensors["means"][:surfels], dim=1)).sum(1).abs().mean()) > 0.999


@pytest.mark.parametrize(("towards", "sign"), [((0.0, 0.0, 1.0), 1), ((0.0, 0.0, -1.0), -1), ((1.0, 0.0, -0.1), 1)])
def test_a_wall_that_is_seen_from_behind_turns_its_normal(towards, sign):
    """At an outline, where normals point a little away, they stay."""
    features = torch.zeros(1, 1, px.CHANNELS)
    features[..., 8] = 1.0
    ray = -F.normalize(torch.tensor(towards), dim=0)
    one = torch.ones(1, 1, 1)
    pixels = px.pixels_of(features, one, one, torch.zeros(3), ray[None, None])
    torch.testing.assert_close(pixels.surface.normal, torch.tensor([[0.0, 0.0, float(sign)]]))


def test_an_outline_turns_its_normal_until_it_grazes():
    view = F.normalize(torch.tensor([[1.0, 0, -0.2], [1.0, 0, 0.05], [0.0, 0, 1.0], [1.0, 0, 1.0]]), dim=1)
    normal = torch.tensor([[0.0, 0, 1.0]]).expand(4, 3)
    found = px.towards_view(normal, view)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    assert torch.equal(found[2:], normal[2:])
    cosine = (found * view).sum(1)
    assert (cosine[:2] > 0.09).all()
    assert (cosine[:2] < 0.12).all()
    assert (found[:2] * normal[:2]).sum(1).min() > 0.94, "by no more than that"
