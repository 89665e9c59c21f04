"""Deferred shading: what a view's surface points send to the camera, all pixels at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featuresplat.shading import ggx
from featuresplat.shading.monte_carlo import Surface
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import Prefilter

MIRROR, DULL = 0.25, 0.6
"""Up to the first roughness what a lobe meets is one traced ray; from the second on it is the mean over the sky that a
point sees; in between a mixture."""


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
    """

    prefilter: Prefilter
    atlas: Tensor
    occluders: Occluders | None = None
    cells: Tensor | None = None


def shade(surface: Surface, received: Received, lighting: Lighting) -> tuple[Tensor, Tensor]:
    """Diffuse and specular radiance [P, 3] towards the view; their sum is I_phy. Differentiable.

    The paths of reflected rays are not differentiated: where a ray ends jumps from thing to thing.
    """
    nv = (surface.normal * surface.view).sum(-1)
    away = 2 * nv[:, None] * surface.normal - surface.view
    lobe, body = ggx.directional_albedos(surface.base_color, surface.roughness, surface.metallic, nv.clamp(1e-3, 1))
    incoming = lighting.prefilter.lookup(lighting.atlas, away, surface.roughness)
    if lighting.occluders is not None and lighting.cells is not None:
        incoming = _with_surroundings(incoming, away.detach(), surface, received, lighting)
    return body * (received.direct + received.reflected), lobe * incoming


def _with_surroundings(sky: Tensor, away: Tensor, surface: Surface, received: Received, lighting: Lighting) -> Tensor:
    assert lighting.occluders is not None
    assert lighting.cells is not None
    assert surface.position is not None
    traced = (surface.roughness.detach() < DULL).nonzero()[:, 0]
    hit = torch.full((len(sky),), -1, dtype=torch.int64, device=sky.device)
    hit[traced] = lighting.occluders.trace(
        surface.position.detach()[traced], surface.normal.detach()[traced], away[traced]
    )
    return met(sky, hit, surface.roughness.detach(), received, lighting.cells)


def met(sky: Tensor, hit: Tensor, roughness: Tensor, received: Received, cells: Tensor) -> Tensor:
    """What a lobe meets: for mirrors the cell that the reflected ray hits, in place of the sky; for dull surfaces what
    the point sees at large.

    Args:
        sky: [P, 3] filtered environment. hit: [P] cell or -1. roughness: [P]. cells: [M, 3] radiance.
    """
    sharp = torch.where((hit >= 0)[:, None], cells[hit.clamp_min(0)], sky)
    large = received.openness[:, None] * sky + received.reflected
    dull = ((roughness - MIRROR) / (DULL - MIRROR)).clamp(0, 1)[:, None]
    return sharp + dull * (large - sharp)
