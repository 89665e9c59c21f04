"""Deferred shading: what a view's surface points send to the camera, all pixels at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from featuresplat.shading import ggx
from featuresplat.shading.monte_carlo import Surface, tangent_frame
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import Prefilter

MIRROR = 0.12
"""Up to this roughness a lobe meets what its middle ray meets; from there on RAYS of them are traced."""
RAYS = 6


@dataclass
class Received:
    """Diffuse light at P points.

    Attributes:
        direct: [P, 3] irradiance / pi of the environment.
        reflected: [P, 3] irradiance / pi of other surfaces.
        openness: [P] cosine-weighted share of the sky that is not hidden.
    """

    direct: Tensor
    reflected: Tensor
    openness: Tensor


@dataclass
class Lighting:
    """Attributes:
    prefilter, atlas: the environment, filtered.
    occluders: what stands around, or None where nothing shall be in the way.
    cells: [M, 3] radiance that the occluders' cells send out.
    rays: traced for each lobe wider than a mirror's.
    """

    prefilter: Prefilter
    atlas: Tensor
    occluders: Occluders | None = None
    cells: Tensor | None = None
    rays: int = RAYS


def shade(surface: Surface, received: Received, lighting: Lighting) -> tuple[Tensor, Tensor]:
    """Diffuse and specular radiance [P, 3] towards the view; their sum is I_phy. Differentiable.

    The paths of reflected rays are not differentiated: where a ray ends jumps from thing to thing.
    """
    nv = (surface.normal * surface.view).sum(-1)
    away = 2 * nv[:, None] * surface.normal - surface.view
    lobe, body = ggx.directional_albedos(surface.base_color, surface.roughness, surface.metallic, nv.clamp(1e-3, 1))
    incoming = lighting.prefilter.lookup(lighting.atlas, away, surface.roughness)
    if lighting.occluders is not None and lighting.cells is not None:
        assert surface.position is not None
        place = surface.position.detach(), surface.normal.detach(), away.detach(), surface.roughness.detach()
        free, lent = surroundings(lighting.occluders, lighting.cells, *place, lighting.rays)
        incoming = free[:, None] * incoming + lent
    return body * (received.direct + received.reflected), lobe * incoming


def surroundings(
    occluders: Occluders, cells: Tensor, position: Tensor, normal: Tensor, away: Tensor, roughness: Tensor, rays: int
) -> tuple[Tensor, Tensor]:
    """Share of P lobes that ends in the sky [P], and what the rest of each brings from other surfaces [P, 3].

    Args:
        cells: [M, 3] radiance of the occluders' cells.
        position, normal: [P, 3]. away: [P, 3] the lobes' middles. roughness: [P].
        rays: for each lobe wider than a mirror's.
    """
    free, lent = torch.zeros_like(roughness), torch.zeros_like(position)
    for wide, count in ((False, 1), (True, rays)):
        at = ((roughness > MIRROR) == wide).nonzero()[:, 0]
        if not len(at):
            continue
        n = normal[at, None].expand(-1, count, -1)
        dirs = lobe_rays(away[at], roughness[at], count, at) if wide else away[at, None]
        weight = (dirs * n).sum(-1).clamp_min(0) + 1e-6
        start = position[at, None].expand(-1, count, -1)
        hit = occluders.trace(start.reshape(-1, 3), n.reshape(-1, 3), dirs.reshape(-1, 3)).reshape(-1, count)
        share = weight / weight.sum(1, keepdim=True)
        free[at] = torch.where(hit < 0, share, 0).sum(1)
        lent[at] = (torch.where(hit < 0, 0, share)[..., None] * cells[hit.clamp_min(0)]).sum(1)
    return free, lent


def lobe_rays(away: Tensor, roughness: Tensor, count: int, turn: Tensor) -> Tensor:
    """[P, count, 3] directions spread over GGX lobes about ``away`` [P, 3], those of the split sum (normal = view).

    Args:
        turn: [P] any numbers that differ between neighbours: each lobe's pattern is turned by its own.
    """
    frame = tangent_frame(away)
    k = torch.arange(count, device=away.device, dtype=away.dtype)
    alpha = ggx.alpha_of(roughness)[:, None]
    # Half vectors by GGX's distribution, up to 45 degrees: the ray turns by twice their angle.
    u = (k + 0.5) / count / (1 + alpha.square())
    angle = 2 * torch.atan(alpha * (u / (1 - u)).sqrt())
    phi = 2 * math.pi * (k * 0.6180339887498949 + (turn[:, None].double() * 0.7548776662466927).frac().to(away))
    local = torch.stack([angle.sin() * phi.cos(), angle.sin() * phi.sin(), angle.cos()], -1)
    return local @ frame
