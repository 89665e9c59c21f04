"""The same light integrals by sampling: reference of the fast forms, and the quality option with shadows.

Samples are drawn from the light's bright places, from the cosine and from the GGX lobe, and weighted by the balance
heuristic (Veach 1997).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.shading import cubemap, ggx

Radiance = Callable[[Tensor], Tensor]
"""Directions [..., 3] to radiance [..., 3]."""


@dataclass
class Surface:
    """P shaded points.

    Attributes:
        normal, view: [P, 3] unit; view points from the surface to the camera.
        base_color: [P, 3]. roughness, metallic: [P].
        position: [P, 3] world frame; needed where other things can be in the way.
    """

    normal: Tensor
    view: Tensor
    base_color: Tensor
    roughness: Tensor
    metallic: Tensor
    position: Tensor | None = None

    def __getitem__(self, rows) -> Surface:
        position = None if self.position is None else self.position[rows]
        return Surface(
            self.normal[rows],
            self.view[rows],
            self.base_color[rows],
            self.roughness[rows],
            self.metallic[rows],
            position,
        )

    def brdf(self, light: Tensor) -> Tensor:
        """[P, S, 3] towards the view, for light from [P, S, 3]: diffuse and compensated specular."""
        n, v = self.normal[:, None], self.view[:, None]
        nv = (self.normal * self.view).sum(-1).clamp_min(1e-4)
        A, B = ggx.albedo_terms(nv, self.roughness)
        lost = (1 / (A + B).clamp_min(1e-3) - 1)[:, None]
        f0 = ggx.base_reflectance(self.base_color, self.metallic[:, None])
        _, diffuse = ggx.directional_albedos(self.base_color, self.roughness, self.metallic, nv)
        lobe = ggx.specular(n, v, light, self.roughness[:, None], f0[:, None]) * (1 + f0 * lost)[:, None]
        return lobe + diffuse[:, None] / math.pi


class LightSampler:
    """Draws directions in proportion to a cubemap's brightness [6, S, S, 3]."""

    def __init__(self, cube: Tensor):
        self.size = cube.shape[1]
        area = cubemap.solid_angles(self.size).to(cube).repeat(6, 1, 1).reshape(-1)
        power = cube.reshape(-1, 3).mean(1) * area
        # A tenth is even, so that no direction is impossible.
        self.mass = 0.9 * power / power.sum().clamp_min(1e-20) + 0.1 * area / area.sum()
        self.density = self.mass / area
        self.running = self.mass.double().cumsum(0)

    def draw(self, u: Tensor) -> Tensor:
        """[..., 3] directions of numbers [..., 3] uniform in 0..1."""
        index = torch.searchsorted(self.running, u[..., 0].double().contiguous() * self.running[-1], right=True)
        index = index.clamp(max=len(self.running) - 1)
        face, rest = index // self.size**2, index % self.size**2
        s = 2 * ((rest % self.size) + u[..., 1]) / self.size - 1
        t = 2 * ((rest // self.size) + u[..., 2]) / self.size - 1
        f = cubemap.frames(u)[face]
        return F.normalize(f[..., 0, :] + s[..., None] * f[..., 1, :] + t[..., None] * f[..., 2, :], dim=-1)

    def pdf(self, dirs: Tensor) -> Tensor:
        """Per steradian [...], of directions [..., 3]; even within a texel, up to its tilt."""
        face, s, t = cubemap.locate(dirs.reshape(-1, 3))
        col = (s * self.size).long().clamp(0, self.size - 1)
        row = (t * self.size).long().clamp(0, self.size - 1)
        return self.density[(face * self.size + row) * self.size + col].reshape(dirs.shape[:-1])


def tangent_frame(normal: Tensor) -> Tensor:
    """[P, 3, 3]: two tangents and the normal as rows (Duff et al. 2017)."""
    x, y, z = normal.unbind(-1)
    sign = torch.where(z >= 0, 1.0, -1.0).to(normal)
    a = -1 / (sign + z)
    b = x * y * a
    first = torch.stack([1 + sign * x * x * a, sign * b, -sign * x], -1)
    second = torch.stack([b, sign + y * y * a, -y], -1)
    return torch.stack([first, second, normal], -2)


def _cosine(u: Tensor) -> Tensor:
    r, phi = u[..., 0].sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack([r * phi.cos(), r * phi.sin(), (1 - u[..., 0]).clamp_min(0).sqrt()], -1)


def shade(
    surface: Surface,
    radiance: Callable[[Surface, Tensor], Tensor],
    samples: int,
    sampler: LightSampler | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """[P, 3] reflected radiance: the integral of BRDF times incoming radiance times cosine.

    Args:
        surface: P points.
        radiance: incoming radiance [P, S, 3] at the points from directions [P, S, 3], shadows and all.
        samples: of each of the two or three kinds.
        sampler: of the light; None leaves that kind out.
        generator: of the random numbers.
    """
    count, device = len(surface.normal), surface.normal.device
    frame = tangent_frame(surface.normal)
    local_view = (frame @ surface.view[..., None])[..., 0]
    local_view = torch.cat([local_view[:, :2], local_view[:, 2:].clamp_min(1e-4)], 1)
    local_view = F.normalize(local_view, dim=-1)[:, None].expand(-1, samples, -1)
    alpha = ggx.alpha_of(surface.roughness)[:, None].expand(-1, samples)

    def numbers(width: int) -> Tensor:
        return torch.rand(count, samples, width, generator=generator).to(device)

    half = ggx.visible_half_vectors(local_view, alpha, numbers(2))
    mirrored = 2 * (local_view * half).sum(-1, keepdim=True) * half - local_view
    kinds = [_cosine(numbers(2)) @ frame, mirrored @ frame]
    if sampler is not None:
        kinds.append(sampler.draw(numbers(3)))
    dirs = torch.cat(kinds, dim=1)  # [P, S, 3]
    cosine = (dirs * surface.normal[:, None]).sum(-1)
    density = cosine.clamp_min(0) / math.pi + _lobe_pdf(surface, frame, dirs)
    if sampler is not None:
        density = density + sampler.pdf(dirs)
    weight = torch.where(cosine > 1e-6, cosine / (samples * density).clamp_min(1e-9), 0)
    return (surface.brdf(dirs) * radiance(surface, dirs) * weight[..., None]).sum(1)


def _lobe_pdf(surface: Surface, frame: Tensor, dirs: Tensor) -> Tensor:
    """Density [P, S] of mirrored visible half vectors."""
    half = F.normalize(dirs + surface.view[:, None], dim=-1)
    nh = (half * surface.normal[:, None]).sum(-1).clamp(0, 1)
    nv = (surface.normal * surface.view).sum(-1).clamp_min(1e-4)[:, None]
    alpha = ggx.alpha_of(surface.roughness)[:, None]
    return ggx.distribution(nh, alpha) * ggx.smith_g1(nv, alpha) / (4 * nv)
