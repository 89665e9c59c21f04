"""Photographs beside what they would show of each of a few materials, pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_light import FittedLight
from featuresplat.modes._inverse_solve import Views
from featuresplat.shading import ggx, tone
from featuresplat.shading.deferred import surroundings
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import LEVELS
from featuresplat.types import Gaussians

PIXELS = 30_000
"""Most pixels of each photograph, about: larger ones are reduced."""
RAYS = 4
KINDS = [(level, metallic) for level in range(len(LEVELS)) for metallic in (0.0, 1.0)]


@dataclass
class Shaded:
    """The P pixels of a view that show a surface, as each of the H materials of KINDS.

    Attributes:
        rows: [P]. radiance, shown: [P, 3] photographed, linear and as shown. trust: [P, 1].
        gain, offset: [P, H, 3]: radiance is gain color + offset.
    """

    matrices: tuple[Tensor, Tensor]
    size: tuple[int, int]
    rows: Tensor
    alpha: Tensor
    radiance: Tensor
    shown: Tensor
    trust: Tensor
    gain: Tensor
    offset: Tensor


def shaded(
    g: Gaussians, features: Tensor, light: FittedLight, views: Views, i: int, occluders: Occluders | None,
    cells: Tensor | None,
) -> Shaded:  # fmt: skip
    """``features`` [N, 12]: normals 3, diffuse light 3, curvature 6."""
    assert light.atlas is not None
    (viewmat, K), (width, height) = views.matrices(i), views.cameras.sizes[i]
    image, reduce = views.image(i), 1
    while width * height / reduce**2 > PIXELS and not (width % (2 * reduce) or height % (2 * reduce)):
        reduce *= 2
    if reduce > 1:
        width, height = width // reduce, height // reduce
        image = F.avg_pool2d(image.permute(2, 0, 1)[None], reduce)[0].permute(1, 2, 0)
        K = torch.cat([K[:, :2] / reduce, K[:, 2:]], 1)
    centre, rays = px.view_rays(viewmat[0], K[0], width, height)
    out = raster.rasterize(
        g.means, g.quats, g.scales, g.opacities, None, viewmat, K, width, height,
        features=torch.cat([features, g.means - centre], 1), **views.options,
    )  # fmt: skip
    assert out.features is not None
    alpha, rays = out.alpha.reshape(-1, 1), rays.reshape(-1, 3)
    f = out.features.reshape(len(alpha), -1) / alpha.clamp_min(1e-6)
    normal, depth = px.shape_at(f[:, :3], f[:, 6:12], f[:, 12:], rays, out.depth.reshape(-1, 1))
    view = -F.normalize(rays, dim=1)
    cosine = (view * normal).sum(1)
    rows = ((alpha[:, 0] > 0.5) & (cosine > 0.1)).nonzero()[:, 0]
    view, normal, cosine, irradiance = view[rows], normal[rows], cosine[rows], f[rows, 3:6]
    away = 2 * cosine[:, None] * normal - view
    points = centre + depth[rows] * rays[rows]
    radiance = image.reshape(-1, 3)[rows]
    gain, offset = [], []
    for level in LEVELS:
        roughness = torch.full_like(cosine, level.roughness)
        incoming = light.prefilter.lookup(light.atlas, away, roughness)
        if occluders is not None and cells is not None:
            free, lent = surroundings(occluders, cells, points, normal, away, roughness, RAYS)
            incoming = free[:, None] * incoming + lent
        A, B = (t[:, None] for t in ggx.albedo_terms(cosine, roughness))
        lost = 1 / (A + B).clamp_min(1e-3) - 1
        layer = (ggx.F0 * A + B) * (1 + ggx.F0 * lost)
        # Compensation for a reflectance of about a half: what is left is linear in the colour.
        gain += [(1 - layer) * irradiance, A * incoming * (1 + 0.7 * lost)]
        offset += [layer * incoming, B * incoming]
    trust = 1 / (radiance.mean(1, keepdim=True) + 0.05)
    shown = tone.srgb(radiance.clamp(0, 1))
    return Shaded(
        (viewmat, K), (width, height), rows, alpha[rows], radiance, shown, trust, torch.stack(gain, 1),
        torch.stack(offset, 1),
    )  # fmt: skip


def lift(g: Gaussians, s: Shaded, values: Tensor, views: Views) -> Tensor:
    """[N, C] of values [P, C]."""
    maps = px.spread(values, s.rows, s.size[1], s.size[0])
    sums, _ = raster.lift(g.means, g.quats, g.scales, g.opacities, *s.matrices, *s.size, maps[None], **views.options)
    return sums


def splatted(g: Gaussians, s: Shaded, values: Tensor, views: Views) -> Tensor:
    """[P, C] what pixels show, by their coverage, of values [N, C]."""
    out = raster.rasterize(
        g.means, g.quats, g.scales, g.opacities, None, *s.matrices, *s.size, features=values, **views.options
    )
    assert out.features is not None
    return out.features.reshape(s.size[0] * s.size[1], -1)[s.rows] / s.alpha
