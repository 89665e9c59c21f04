"""The surface: Lambert under a GGX Cook-Torrance layer, metallic-roughness parameters.

``alpha = roughness^2``; F0 = 0.04 (1 - metallic) + metallic base_color (IOR 1.5). Formulas: Walter et al. 2007 (GGX),
Heitz 2014 (height-correlated Smith), Schlick 1994 (Fresnel), Heitz 2018 (sampling visible normals), Karis 2013 (split
sum). What the single-scattering lobe loses is given back in proportion (Fdez-Agueera 2019): a white metal reflects
all that it receives, and a white dielectric too, because its diffuse part gets what its layer leaves.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_ROUGHNESS = 0.04
"""Rougher than this, always: alpha = 0.0016."""
F0 = 0.04
"""Reflectance of a dielectric at normal incidence."""
TABLE = 64


def alpha_of(roughness: Tensor) -> Tensor:
    """GGX's alpha."""
    return roughness.clamp_min(MIN_ROUGHNESS) ** 2


def distribution(nh: Tensor, alpha: Tensor) -> Tensor:
    """D, per steradian, of the cosine between normal and half vector."""
    a2 = alpha * alpha
    return a2 / (math.pi * (nh * nh * (a2 - 1) + 1).square()).clamp_min(1e-12)


def shadowing(nv: Tensor, nl: Tensor, alpha: Tensor) -> Tensor:
    """Height-correlated Smith G2 over 4 nv nl: the BRDF is D V F."""
    a2 = alpha * alpha
    masked = nl * (nv * nv * (1 - a2) + a2).sqrt() + nv * (nl * nl * (1 - a2) + a2).sqrt()
    return 0.5 / masked.clamp_min(1e-9)


def fresnel(f0: Tensor, vh: Tensor) -> Tensor:
    """Schlick's approximation."""
    return f0 + (1 - f0) * (1 - vh).clamp(0, 1) ** 5


def specular(normal: Tensor, view: Tensor, light: Tensor, roughness: Tensor, f0: Tensor) -> Tensor:
    """The specular BRDF without its compensation, [..., C]; unit vectors [..., 3], roughness [...], f0 [..., C]."""
    half = F.normalize(view + light, dim=-1)
    nv, nl = (normal * view).sum(-1), (normal * light).sum(-1)
    nh, vh = (normal * half).sum(-1).clamp(0, 1), (view * half).sum(-1).clamp(0, 1)
    alpha = alpha_of(roughness)
    value = distribution(nh, alpha) * shadowing(nv.clamp_min(1e-4), nl.clamp_min(1e-4), alpha)
    value = torch.where((nv > 0) & (nl > 0), value, 0)
    return value[..., None] * fresnel(f0, vh[..., None])


def visible_half_vectors(view: Tensor, alpha: Tensor, u: Tensor) -> Tensor:
    """Half vectors [..., 3] drawn from the normals visible from ``view`` [..., 3] in the normal's frame (+z).

    Args:
        alpha: [...]. u: [..., 2] uniform in 0..1.
    """
    stretched = F.normalize(torch.cat([alpha[..., None] * view[..., :2], view[..., 2:]], dim=-1), dim=-1)
    x, y, z = stretched.unbind(-1)
    length = (x * x + y * y).sqrt()
    safe = length.clamp_min(1e-12)
    zero = torch.zeros_like(x)
    t1 = torch.where(
        (length > 1e-6)[..., None],
        torch.stack([-y / safe, x / safe, zero], -1),
        torch.tensor([1.0, 0.0, 0.0], dtype=view.dtype, device=view.device),
    )
    t2 = torch.linalg.cross(stretched, t1)
    r, phi = u[..., 0].sqrt(), 2 * math.pi * u[..., 1]
    p1 = r * phi.cos()
    s = 0.5 * (1 + z)
    p2 = (1 - s) * (1 - p1 * p1).clamp_min(0).sqrt() + s * r * phi.sin()
    p3 = (1 - p1 * p1 - p2 * p2).clamp_min(0).sqrt()
    h = p1[..., None] * t1 + p2[..., None] * t2 + p3[..., None] * stretched
    return F.normalize(torch.cat([alpha[..., None] * h[..., :2], h[..., 2:].clamp_min(0)], dim=-1), dim=-1)


def smith_g1(cosine: Tensor, alpha: Tensor) -> Tensor:
    """Masking of one direction."""
    a2 = alpha * alpha
    return 2 * cosine / (cosine + (a2 + (1 - a2) * cosine * cosine).sqrt()).clamp_min(1e-9)


@lru_cache(maxsize=1)
def albedo_table() -> Tensor:
    """[2, TABLE, TABLE] float32: A and B such that the lobe's directional albedo is F0 A + B.

    Rows: roughness, columns: cosine between normal and view, both at texel centres (k + 0.5) / TABLE. By quadrature
    over the visible normals (512 points of a golden-ratio lattice).
    """
    at = (torch.arange(TABLE, dtype=torch.float64) + 0.5) / TABLE
    roughness, nv = torch.meshgrid(at, at, indexing="ij")
    alpha = alpha_of(roughness)[..., None]
    view = torch.stack([(1 - nv * nv).sqrt(), torch.zeros_like(nv), nv], -1)[..., None, :]
    count = 512
    k = torch.arange(count, dtype=torch.float64)
    u = torch.stack([(k + 0.5) / count, (k * 0.6180339887498949) % 1.0], -1)
    total = torch.zeros(2, TABLE, TABLE, dtype=torch.float64)
    for part in u.split(128):
        h = visible_half_vectors(view.expand(-1, -1, len(part), -1), alpha.expand(-1, -1, len(part)), part)
        vh = (view * h).sum(-1).clamp(0, 1)
        nl = 2 * vh * h[..., 2] - nv[..., None]
        # The weight of a sample of visible normals is F G2 / G1(view).
        g2 = 4 * nv[..., None] * nl * shadowing(nv[..., None], nl.clamp_min(1e-6), alpha)
        weight = torch.where(nl > 0, g2 / smith_g1(nv[..., None], alpha), 0)
        edge = (1 - vh) ** 5
        total += torch.stack([(weight * (1 - edge)).sum(-1), (weight * edge).sum(-1)])
    return (total / count).float()


def albedo_terms(nv: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor]:
    """A and B [P] of `albedo_table` at cosines and roughnesses [P], bilinear, differentiable."""
    table = albedo_table().to(nv)[None]
    grid = torch.stack([2 * nv - 1, 2 * roughness - 1], dim=-1)[None, None]
    found = F.grid_sample(table, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[0, 0, 0], found[0, 1, 0]


def base_reflectance(base_color: Tensor, metallic: Tensor) -> Tensor:
    """F0 [..., 3] of base colours [..., 3] and metallic [..., 1]."""
    return F0 * (1 - metallic) + metallic * base_color


def directional_albedos(base_color: Tensor, roughness: Tensor, metallic: Tensor, nv: Tensor) -> tuple[Tensor, Tensor]:
    """What of an even unit light leaves towards the view: specular [P, 3] and diffuse [P, 3].

    Args:
        base_color: [P, 3]. roughness, metallic, nv: [P].

    Returns:
        The specular lobe's albedo with compensation, and (1 - metallic) base_color times what the layer leaves.
    """
    A, B = albedo_terms(nv, roughness)
    lost = 1 / (A + B).clamp_min(1e-3) - 1
    m = metallic[:, None]
    f0 = base_reflectance(base_color, m)
    lobe = (f0 * A[:, None] + B[:, None]) * (1 + f0 * lost[:, None])
    layer = (F0 * A + B) * (1 + F0 * lost)
    return lobe, (1 - m) * base_color * (1 - layer)[:, None]
