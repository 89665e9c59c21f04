"""Deferred shading: energy, gradients, and what stands in the way."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from featuresplat.shading import cubemap
from featuresplat.shading.deferred import DULL, MIRROR, Lighting, Received, met, shade
from featuresplat.shading.monte_carlo import Surface
from featuresplat.shading.prefilter import Prefilter

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


def test_mirrors_meet_what_their_ray_hits_and_dull_surfaces_what_they_see_at_large():
    sky, cells = torch.full((4, 3), 2.0), torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])
    received = Received(torch.zeros(4, 3), torch.full((4, 3), 0.25), torch.full((4,), 0.5))
    hit = torch.tensor([-1, 1, -1, 1])
    roughness = torch.tensor([MIRROR, MIRROR, DULL, DULL])
    found = met(sky, hit, roughness, received, cells)
    torch.testing.assert_close(found[0], sky[0])
    torch.testing.assert_close(found[1], cells[1])
    torch.testing.assert_close(found[2:], torch.full((2, 3), 0.5 * 2.0 + 0.25))
