"""The surface: energy, reciprocity, and that the table is the integral it says."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.shading import ggx, monte_carlo
from featuresplat.shading.monte_carlo import Surface

ROUGHNESS = (0.05, 0.1, 0.25, 0.5, 0.8, 1.0)
COSINES = (0.1, 0.35, 0.7, 1.0)


def surfaces(base: float, metallic: float) -> Surface:
    """A point for each roughness and angle, normals up."""
    r, c = torch.meshgrid(torch.tensor(ROUGHNESS), torch.tensor(COSINES), indexing="ij")
    r, c = r.reshape(-1), c.reshape(-1)
    view = torch.stack([(1 - c * c).sqrt(), torch.zeros_like(c), c], 1)
    up = torch.tensor([0.0, 0, 1]).expand(len(r), 3)
    return Surface(up, view, torch.full((len(r), 3), base), r, torch.full((len(r),), metallic))


def furnace(surface: Surface, samples: int = 4000) -> torch.Tensor:
    """What comes back of an even light of radiance 1."""
    g = torch.Generator().manual_seed(0)
    return monte_carlo.shade(surface, lambda _, d: torch.ones_like(d), samples, generator=g)[:, 0]


def test_white_furnace_metal_and_dielectric_give_back_all():
    for metallic in (0.0, 1.0):
        out = furnace(surfaces(1.0, metallic))
        assert float((out - 1).abs().max()) < 0.03


def test_energy_is_never_more_than_one():
    for base in (0.0, 0.3, 0.9):
        for metallic in (0.0, 0.5, 1.0):
            out = furnace(surfaces(base, metallic), 2000)
            assert float(out.max()) < 1.02
            assert float(out.min()) >= 0


def test_single_scattering_loses_energy_and_the_table_says_how_much():
    s = surfaces(1.0, 1.0)
    h_view = s.view[:, None].expand(-1, 4000, -1)
    alpha = ggx.alpha_of(s.roughness)
    u = torch.rand(len(alpha), 4000, 2, generator=torch.Generator().manual_seed(1))
    half = ggx.visible_half_vectors(h_view, alpha[:, None].expand(-1, 4000), u)
    vh = (h_view * half).sum(-1)
    light = 2 * vh[..., None] * half - h_view
    nl, nv = light[..., 2], s.view[:, 2][:, None]
    g2 = 4 * nl * nv * ggx.shadowing(nv, nl.clamp_min(1e-6), alpha[:, None])
    measured = torch.where(nl > 0, g2 / ggx.smith_g1(nv, alpha[:, None]), 0).mean(1)
    A, B = ggx.albedo_terms(s.view[:, 2], s.roughness)
    assert float((A + B - measured).abs().max()) < 0.015
    assert float((A + B).max()) <= 1.001
    assert float((A + B)[-4:].min()) < 0.8  # the roughest loses a fifth and more


@pytest.mark.parametrize("roughness", ROUGHNESS)
def test_the_distribution_projects_to_one(roughness):
    # integral of D cos over the hemisphere, on a grid that is fine where the lobe is.
    tangent = torch.logspace(-6, 4, 4001, dtype=torch.float64)
    theta = tangent.atan()
    D = ggx.distribution(theta.cos(), ggx.alpha_of(torch.tensor(roughness, dtype=torch.float64)))
    value = torch.trapezoid(D * theta.cos() * theta.sin() * 2 * math.pi, theta)
    assert float(value) == pytest.approx(1, abs=2e-3)


def test_reciprocity():
    g = torch.Generator().manual_seed(2)
    n = torch.tensor([0.0, 0, 1])
    v, at = (torch.nn.functional.normalize(torch.rand(50, 3, generator=g) + 0.05, dim=1) for _ in range(2))
    r, f0 = torch.rand(50, generator=g), torch.rand(50, 3, generator=g)
    torch.testing.assert_close(ggx.specular(n, v, at, r, f0), ggx.specular(n, at, v, r, f0), rtol=1e-4, atol=1e-5)


def test_fresnel_ends():
    f0 = torch.tensor([0.04, 0.5, 1.0])
    torch.testing.assert_close(ggx.fresnel(f0, torch.tensor(1.0)), f0)
    torch.testing.assert_close(ggx.fresnel(f0, torch.tensor(0.0)), torch.ones(3))


def test_gradients_by_finite_differences():
    g = torch.Generator().manual_seed(3)

    def rand(*shape):
        return (0.2 + 0.6 * torch.rand(*shape, generator=g, dtype=torch.float64)).requires_grad_()

    n, v, at = (torch.nn.functional.normalize(rand(4, 3).detach(), dim=1).requires_grad_() for _ in range(3))
    assert torch.autograd.gradcheck(ggx.specular, (n, v, at, rand(4), rand(4, 3)))
    args = (rand(4, 3), rand(4), rand(4), rand(4))
    assert torch.autograd.gradcheck(ggx.directional_albedos, args, eps=1e-6, atol=1e-5)
