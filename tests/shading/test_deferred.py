"""Deferred shading: energy, gradients, and what stands in the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from featuresplat.shading import cubemap
from featuresplat.shading.deferred import Lighting, Received, lobe_rays, shade, surroundings
from featuresplat.shading.monte_carlo import Surface
from featuresplat.shading.prefilter import Prefilter, lobe

P = 12


@pytest.fixture(scope="module")
def filters() -> Prefilter:
    return Prefilter(32, torch.device("cpu"))


def points(count: int = P, seed: int = 0) -> Surface:
    g = torch.Generator().manual_seed(seed)
    normal = F.normalize(torch.randn(count, 3, generator=g), dim=1)
    view = F.normalize(normal + 0.7 * F.normalize(torch.randn(count, 3, generator=g), dim=1), dim=1)
    color = 0.2 + 0.6 * torch.rand(count, 3, generator=g)
    return Surface(normal, view, color, 0.2 + 0.6 * torch.rand(count, generator=g), torch.rand(count, generator=g))


def under(level: float, count: int = P) -> Received:
    return Received(torch.full((count, 3), level), torch.zeros(count, 3), torch.ones(count))


@pytest.mark.parametrize("metallic", [0.0, 0.5, 1.0])
def test_white_furnace(filters, metallic):
    """White things disappear in an even light, whatever their roughness and angle."""
    s = points(200)
    s.base_color, s.metallic = torch.ones(200, 3), torch.full((200,), metallic)
    s.roughness = torch.linspace(0.05, 1, 200)
    diffuse, specular = shade(s, under(1.0, 200), Lighting(filters, filters.atlas(torch.ones(6, 32, 32, 3))))
    total = diffuse + specular
    assert float(total.max()) <= 1 + 1e-3
    if metallic != 0.5:  # between the two the compensation is that of the mixed reflectance, and a little is lost
        torch.testing.assert_close(total, torch.ones_like(total), atol=2e-3, rtol=0)


def test_gradients_by_finite_differences(filters):
    g = torch.Generator().manual_seed(1)
    # A smooth light: lookups are bilinear, and each crossing of a texel's border would be a kink.
    cube = 1 + 0.5 * cubemap.directions(32) @ torch.randn(3, 3, generator=g)
    atlas, s, weight = filters.atlas(cube), points(), torch.randn(P, 3, generator=g)
    received = Received(
        torch.rand(P, 3, generator=g), torch.rand(P, 3, generator=g), 0.5 + 0.5 * torch.rand(P, generator=g)
    )

    def value(normal, color, roughness, metallic, direct, table):
        surface = Surface(F.normalize(normal, dim=1), s.view, color, roughness, metallic)
        parts = shade(surface, Received(direct, received.reflected, received.openness), Lighting(filters, table))
        return (weight * (parts[0] + parts[1])).double().sum()

    inputs = [s.normal, s.base_color, s.roughness, s.metallic, received.direct, atlas]
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    still = [t.detach() for t in leaves]
    grads = torch.autograd.grad(value(*leaves), leaves)
    for k, (leaf, grad) in enumerate(zip(still, grads, strict=True)):
        way, step = torch.randn(leaf.shape, generator=g), 1e-3
        ends = [still[k] + sign * step * way for sign in (1, -1)]
        found = [value(*(end if j == k else t for j, t in enumerate(still))) for end in ends]
        numeric = float(found[0] - found[1]) / (2 * step)
        exact = float((grad * way).sum())
        assert numeric == pytest.approx(exact, rel=0.02, abs=2e-3), k


def test_rays_follow_the_lobe():
    """Their cosines to the middle have the median that the GGX lobe has, and mirrors send one ray ahead."""
    away = F.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(2)), dim=1)
    for roughness in (0.2, 0.5, 0.8):
        dirs = lobe_rays(away, torch.full((500,), roughness), 64, torch.arange(500))
        torch.testing.assert_close(dirs.norm(dim=-1), torch.ones(500, 64), atol=1e-5, rtol=0)
        cosine = (dirs * away[:, None]).sum(-1)
        grid = torch.linspace(0, 1, 100_001)
        mass = lobe(grid, roughness) / grid.clamp_min(1e-6)  # the cosine is counted where the rays are weighted
        running = mass.cumsum(0) / mass.sum()
        want = grid[torch.searchsorted(running, 0.5)]
        angle, true = (torch.rad2deg(torch.acos(v)) for v in (cosine.median(), want))
        assert float(angle) == pytest.approx(float(true), rel=0.12)


class Wall:
    """Occluders of one cell: everything with x > 0 in its direction meets it."""

    def trace(self, points, normals, dirs):
        return torch.where(dirs[:, 0] > 0, 0, -1)


def test_what_stands_around_takes_its_share_of_the_lobe():
    away = F.normalize(torch.tensor([[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), dim=1)
    normal, cells = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3), torch.tensor([[0.2, 0.4, 0.6]])
    wall: Any = Wall()
    for roughness in (0.05, 0.3):
        free, lent = surroundings(wall, cells, torch.zeros(3, 3), normal, away, torch.full((3,), roughness), 64)
        torch.testing.assert_close(free[:2], torch.tensor([0.0, 1.0]), atol=0.05, rtol=0)
        torch.testing.assert_close(lent, (1 - free)[:, None] * cells)
    assert float(free[2]) == pytest.approx(0.5, abs=0.1)
