"""Diffuse light by spherical harmonics: irradiance = <light, visibility, cosine>, a triple product.

Bases, their order and signs are those of `featuresplat.geometry.sh_bases`. The product of two functions is again one
of harmonics, by the tensor C_ijk = integral Y_i Y_j Y_k (the real Gaunt coefficients), and the cosine lobe about a
normal scales band l by a_l (Ramamoorthi and Hanrahan 2001; Sloan et al. 2002 for visibility).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from featuresplat.geometry import sh_bases
from featuresplat.shading import cubemap

COSINE = (math.pi, 2 * math.pi / 3, math.pi / 4, 0.0, -math.pi / 24)
"""a_l of max(0, cos theta)."""


def degree_of(count: int) -> int:
    """The degree whose bases number ``count``."""
    return math.isqrt(count) - 1


@lru_cache(maxsize=8)
def quadrature(order: int) -> tuple[Tensor, Tensor]:
    """Directions [Q, 3] and weights [Q], float64, exact for harmonics up to degree ``order``; weights sum to 4 pi."""
    z, w = (torch.from_numpy(a) for a in leggauss(order // 2 + 1))
    count = order + 1
    phi = 2 * math.pi * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    flat = (1 - z * z).sqrt()[:, None]
    dirs = torch.stack([flat * phi.cos(), flat * phi.sin(), z[:, None].expand(-1, count)], dim=-1)
    return dirs.reshape(-1, 3), (w[:, None] * 2 * math.pi / count).expand(-1, count).reshape(-1)


@lru_cache(maxsize=8)
def triple(first: int, second: int, out: int) -> Tensor:
    """C [Ki, Kj, Kk], float64: integrals of three real harmonics up to these degrees."""
    dirs, weights = quadrature(first + second + out)
    a, b, c = (sh_bases(dirs, degree) for degree in (first, second, out))
    found = torch.einsum("q,qi,qj,qk->ijk", weights, a, b, c)
    return torch.where(found.abs() < 1e-12, 0, found)


def project(cube: Tensor, degree: int) -> Tensor:
    """[K, C] coefficients of a cubemap [6, S, S, C]; differentiable."""
    size = cube.shape[1]
    area = cubemap.solid_angles(size).to(cube).repeat(6, 1, 1)[..., None]
    bases = sh_bases(cubemap.directions(size).to(cube), degree) * area
    return bases.reshape(-1, bases.shape[-1]).T @ cube.reshape(-1, cube.shape[-1])


def product(a: Tensor, b: Tensor, degree: int) -> Tensor:
    """Coefficients [..., K] of the product of two functions, a [..., Ki] and b [..., Kj], up to ``degree``."""
    C = triple(degree_of(a.shape[-1]), degree_of(b.shape[-1]), degree).to(a)
    return torch.einsum("...i,...j,ijk->...k", a, b, C)


def cosine_bases(normals: Tensor, degree: int) -> Tensor:
    """[N, K] factors that turn the coefficients of incoming light into irradiance / pi at unit normals [N, 3]."""
    scale = [COSINE[band] / math.pi for band in range(degree + 1) for _ in range(2 * band + 1)]
    return sh_bases(normals, degree) * torch.tensor(scale, dtype=normals.dtype, device=normals.device)


def irradiance(light: Tensor, visibility: Tensor, normals: Tensor, degree: int = 2) -> Tensor:
    """[N, C] irradiance / pi: what a white Lambertian surface sends out.

    Args:
        light: [Ki, C] coefficients of the radiance.
        visibility: [N, Kj] of each point's visibility, 1 = open; an open sky is sqrt(4 pi) in its first.
        normals: [N, 3] unit.
        degree: of the product, where the cosine meets it: past 2 it matters by less than 1 %.
    """
    C = triple(degree_of(len(light)), degree_of(visibility.shape[1]), degree).to(light)
    carried = torch.einsum("ic,ijk->jkc", light, C)  # [Kj, Kk, C]: the light as a matrix that visibility meets
    lit = (visibility @ carried.reshape(len(carried), -1)).reshape(len(visibility), -1, light.shape[1])
    return (lit * cosine_bases(normals, degree)[..., None]).sum(1)
