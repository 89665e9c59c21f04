"""How normals turn along a surface of Gaussians, and that pixels show the normal and the depth of their own place."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_curvature import MOST, curvature, turned
from featuresplat.modes._inverse_points import lying


def ball(count: int, radius: float) -> Tensor:
    """[N, 3] places spread evenly over a ball (a Fibonacci spiral)."""
    k = torch.arange(count).double() + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + 5**0.5) * k
    ring = (1 - z * z).sqrt()
    return (radius * torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1)).float()


def whole(bend: Tensor) -> Tensor:
    """[N, 3, 3] of [N, 6]."""
    return bend[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)


@pytest.mark.parametrize("radius", [0.02, 1.0, 50.0])
def test_a_ball_turns_its_normals_by_one_over_its_radius(radius):
    means = ball(2000, radius)
    normals = F.normalize(means, dim=1)
    found = whole(curvature(means, normals, torch.full((2000, 3), 0.02 * radius)))
    across = torch.eye(3) - normals[:, :, None] * normals[:, None]
    assert (found - across / radius).abs().max() * radius < 0.15  # the ridge takes some
    assert (found @ normals[..., None]).abs().max() * radius < 1e-3, "along the normal nothing turns"


def test_a_plane_does_not_turn_and_neither_does_its_edge():
    u, v = torch.meshgrid(torch.linspace(-1, 1, 30), torch.linspace(0, 1, 15), indexing="ij")
    flat = torch.stack([u, v, torch.zeros_like(u)], -1).reshape(-1, 3)
    wall = torch.stack([u, torch.zeros_like(u), -v], -1).reshape(-1, 3)
    up, ahead = torch.tensor([0.0, 0, 1]).expand(450, 3), torch.tensor([0.0, -1, 0]).expand(450, 3)
    scales = torch.full((900, 3), 0.03)
    found = curvature(torch.cat([flat, wall]), torch.cat([up, ahead]), scales)
    assert found.abs().max() < 1e-5


def test_a_thin_wall_does_not_turn_into_its_back():
    """Two bent sheets, one behind the other, with opposite normals."""
    means = ball(1500, 1.0)
    normals = F.normalize(means, dim=1)
    both = torch.cat([means, 0.99 * means])
    found = whole(curvature(both, torch.cat([normals, -normals]), torch.full((3000, 3), 0.02)))
    across = torch.eye(3) - normals[:, :, None] * normals[:, None]
    assert (found[:1500] - across).abs().max() < 0.3
    assert (found[1500:] + across).abs().max() < 0.3


def test_what_is_scattered_turns_no_further_than_it_may():
    draw = torch.Generator().manual_seed(0)
    means = torch.rand(500, 3, generator=draw)
    normals = F.normalize(torch.randn(500, 3, generator=draw), dim=1)
    scales = torch.full((500, 3), 0.5)
    found = whole(curvature(means, normals, scales))
    assert torch.isfinite(found).all()
    assert (torch.linalg.matrix_norm(found) * 0.5).max() <= MOST * 1.001
    unit = turned(normals, curvature(means, normals, scales), 100 * torch.randn(500, 3, generator=draw))
    assert (unit * normals).sum(1).min() > 0.5, "and a pixel's normal stays on its side"


def test_few_gaussians():
    for n in (0, 1, 2, 3, 5):
        means = ball(n, 1.0) if n else torch.zeros(0, 3)
        assert curvature(means, F.normalize(means, dim=1), torch.ones(n, 3)).shape == (n, 6)


def splatted(means: Tensor, normals: Tensor, sigma: float, viewmat: Tensor, size: int):
    """Features over coverage, coverage and depth of opaque surfels as a camera sees them."""
    n = len(means)
    K = torch.tensor([[1.4 * size, 0, size / 2], [0, 1.4 * size, size / 2], [0, 0, 1.0]])
    centre, rays = px.view_rays(viewmat, K, size, size)
    scales = torch.tensor([sigma, sigma, 0.02 * sigma]).expand(n, 3)
    features = torch.cat([normals, curvature(means, normals, scales), means - centre], 1)
    out = raster.rasterize(
        means, lying(normals), scales, torch.full((n,), 0.98), None, viewmat[None], K[None], size, size,
        features=features,
    )  # fmt: skip
    assert out.features is not None
    alpha = out.alpha.reshape(-1, 1)
    f = out.features.reshape(len(alpha), -1) / alpha.clamp_min(1e-6)
    return f, alpha[:, 0], out.depth.reshape(-1, 1), rays.reshape(-1, 3), centre


def test_pixels_of_a_ball_have_the_normal_and_the_depth_of_their_place():
    means = ball(1200, 1.0)
    viewmat = torch.eye(4)
    viewmat[2, 3] = 4.0
    f, alpha, depth, rays, centre = splatted(means, F.normalize(means, dim=1), 0.09, viewmat, 96)
    # where rays meet the ball
    unit = F.normalize(rays, dim=1)
    along = -(unit @ centre)
    square = 1 - (centre.square().sum() - along.square())
    inside = (square > 0.1) & (alpha > 0.9)
    hit = centre + (along - square.clamp_min(0).sqrt())[:, None] * unit
    true_depth = ((hit - centre) * unit).sum(1) / rays.norm(dim=1)
    normal, z = px.shape_at(f[:, :3], f[:, 3:9], f[:, 9:], rays, depth)

    def off(found: Tensor) -> float:
        cosine = (F.normalize(found, dim=1) * hit).sum(1)[inside].clamp(-1, 1)
        return float(torch.rad2deg(torch.acos(cosine)).mean())

    assert int(inside.sum()) > 1000
    assert off(f[:, :3]) > 1.5, "the blended normals are good: the test says nothing"
    assert off(normal) < 0.4 * off(f[:, :3])
    before, after = ((t[:, 0] - true_depth)[inside].abs().mean() for t in (depth, z))
    assert after < 0.5 * before


def test_pixels_of_a_plane_seen_at_a_slant_have_its_depth():
    u, v = torch.meshgrid(torch.linspace(-2, 2, 60), torch.linspace(-2, 2, 60), indexing="ij")
    means = torch.stack([u, v, torch.zeros_like(u)], -1).reshape(-1, 3)
    normals = torch.tensor([0.0, 0, -1]).expand(len(means), 3)
    tilt = math.radians(60)
    viewmat = torch.eye(4)
    viewmat[1:3, 1:3] = torch.tensor([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
    viewmat[2, 3] = 4.0
    f, alpha, depth, rays, centre = splatted(means, normals, 0.06, viewmat, 64)
    inside = (alpha > 0.9) & (rays[:, 2].abs() > 0.1)
    true_depth = -centre[2] / rays[:, 2]
    normal, z = px.shape_at(f[:, :3], f[:, 3:9], f[:, 9:], rays, depth)
    inside &= ((centre + true_depth[:, None] * rays)[:, :2].abs() < 1.5).all(1)
    assert int(inside.sum()) > 500
    assert torch.allclose(normal[inside], normals[:1].expand_as(normal)[inside], atol=1e-4)
    before, after = ((t[:, 0] - true_depth)[inside].abs().mean() for t in (depth, z))
    assert after < 0.01 * before


def test_a_plane_seen_edge_on_keeps_the_blended_depth():
    normal, place = torch.tensor([[1.0, 0, 0.001]]), torch.tensor([[0.1, 0.0, 3.0]])
    ray, depth = torch.tensor([[0.01, 0.0, 1.0]]), torch.tensor([[3.1]])
    _, z = px.shape_at(normal, torch.zeros(1, 6), place, ray, depth)
    assert torch.equal(z, depth)


def test_gradients_reach_the_normals_alone():
    normal = torch.randn(20, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    bend, away = torch.full((20, 6), 0.3, dtype=torch.float64), torch.full((20, 3), 0.1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda n: turned(n, bend, away), (normal,))
