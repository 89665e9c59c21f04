"""Triple products of spherical harmonics against quadrature."""

from __future__ import annotations

import math

import torch

from featuresplat.geometry import sh_bases
from featuresplat.shading import cubemap, harmonics


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_quadrature_is_exact_and_bases_are_orthonormal():
    dirs, weights = harmonics.quadrature(8)
    bases = sh_bases(dirs, 4)
    torch.testing.assert_close(bases.T @ (weights[:, None] * bases), torch.eye(25, dtype=torch.float64))


def test_product_is_the_product():
    a, b = randn(5, 16, seed=1), randn(5, 9, seed=2)
    dirs, weights = harmonics.quadrature(20)
    values = (a @ sh_bases(dirs, 3).T) * (b @ sh_bases(dirs, 2).T)  # [5, Q]
    want = (values * weights) @ sh_bases(dirs, 4)
    torch.testing.assert_close(harmonics.product(a, b, 4), want)


def test_triple_product_against_quadrature():
    """Irradiance of band-limited light and visibility under the true cosine, to 3 %: band 6 is left out."""
    light, visibility = randn(16, 3, seed=3), randn(6, 16, seed=4)
    normals = torch.nn.functional.normalize(randn(6, 3, seed=5), dim=1)
    dirs, weights = harmonics.quadrature(200)
    cosine = (normals @ dirs.T).clamp_min(0)
    seen = visibility @ sh_bases(dirs, 3).T
    want = (cosine * seen * weights) @ (sh_bases(dirs, 3) @ light) / math.pi
    got = harmonics.irradiance(light, visibility, normals, degree=4)
    assert float((got - want).abs().max() / want.abs().max()) < 0.03


def test_an_open_even_sky():
    light = harmonics.project(torch.full((6, 16, 16, 3), 0.8), 3)
    visibility = torch.zeros(4, 16)
    visibility[:, 0] = math.sqrt(4 * math.pi)
    normals = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    torch.testing.assert_close(harmonics.irradiance(light, visibility, normals), torch.full((4, 3), 0.8))


def test_projection_is_what_the_bases_give_back():
    dirs = cubemap.directions(64)
    coefficients = randn(16, 2, seed=6).float()
    cube = sh_bases(dirs, 3) @ coefficients
    torch.testing.assert_close(harmonics.project(cube, 3), coefficients, atol=2e-3, rtol=1e-3)


def test_half_a_sky_hidden():
    # A wall hides all of x > 0. Under an even light an upward surface gets half, and harmonics agree.
    dirs, weights = harmonics.quadrature(40)
    open_side = (dirs[:, 0] < 0).double()
    visibility = ((open_side * weights) @ sh_bases(dirs, 3))[None].float()
    light = harmonics.project(torch.ones(6, 16, 16, 3), 3)
    got = harmonics.irradiance(light, visibility, torch.tensor([[0.0, 0, 1]]))
    torch.testing.assert_close(got, torch.full((1, 3), 0.5), atol=0.02, rtol=0)
