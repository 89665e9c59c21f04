"""What the mode `inverse` learns from looking at all training views at once, between its steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_curvature import curvature
from featuresplat.modes._inverse_light import FittedLight
from featuresplat.modes._inverse_solve import Views, neighbours
from featuresplat.shading import cubemap, occlusion, tone, transfer
from featuresplat.shading.deferred import Received
from featuresplat.types import Gaussians


@torch.no_grad()
def oriented(g: Gaussians, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Normals [N, 3] that point to where the Gaussians are seen from, weighted by how much they show; the most [N] that
    each shows in a view; and how the normals turn [N, 6] (`_inverse_curvature`).
    """
    axes, total = px.shortest_axes(g.quats, g.log_scales), g.means.new_zeros(len(g))
    side = g.means.new_zeros(len(g))
    for i in views.chosen:
        shown = raster.contributions(
            g.means, g.quats, g.scales, g.opacities, *views.matrices(i), *views.cameras.sizes[i], **views.options
        )
        towards = F.normalize(views.cameras[i].positions.to(g.means) - g.means, dim=-1)
        side += shown.sums[0] * (axes * towards).sum(1)
        total = torch.maximum(total, shown.maxima[0])
    normals = torch.where(side[:, None] < 0, -axes, axes)
    return normals, total, curvature(g.means, normals, g.scales)


@torch.no_grad()
def colored(g: Gaussians, views: Views) -> Tensor:
    """[N, 3] the mean colour, as shown, of the pixels where each Gaussian shows; grey where it never does."""
    total, mass = g.means.new_zeros(len(g), 3), g.means.new_zeros(len(g), 1)
    for i in views.chosen:
        (viewmat, K), (width, height) = views.matrices(i), views.cameras.sizes[i]
        shown = tone.srgb(views.image(i))
        maps = torch.cat([shown, torch.ones_like(shown[..., :1])], -1)[None]
        sums, _ = raster.lift(
            g.means, g.quats, g.scales, g.opacities, viewmat, K, width, height, maps, **views.options
        )  # fmt: skip
        total, mass = total + sums[:, :3], mass + sums[:, 3:]
    return torch.where(mass > 1e-3, total / mass.clamp_min(1e-3), 0.5)


@torch.no_grad()
def fill_unseen(light: FittedLight, g: Gaussians, views: Views) -> None:
    """Texels that no view saw past the Gaussians become as bright as the mean of those that were seen."""
    logs, size = light.log_radiance(), light.size
    seen = logs.new_zeros(6 * size * size)
    for i in range(len(views.cameras)):
        (viewmat, K), (width, height) = views.matrices(i), views.cameras.sizes[i]
        out = raster.rasterize(
            g.means, g.quats, g.scales, g.opacities, None, viewmat, K, width, height, **views.options
        )
        _, rays = px.view_rays(viewmat[0], K[0], width, height)
        face, s, t = cubemap.locate(rays.reshape(-1, 3))
        col, row = (s * size).long().clamp(0, size - 1), (t * size).long().clamp(0, size - 1)
        seen.index_add_(0, (face * size + row) * size + col, (1 - out.alpha.reshape(-1)).clamp_min(0))
    seen = (seen > 0.5).reshape(6, size, size)
    if bool(seen.any()):
        logs[~seen] = logs[seen].exp().mean(0).log()
        light.set(logs)


class Baked:
    """Occluders and what they let through, as the Gaussians were when they were baked.

    Attributes:
        source: what it was baked from; a resumed run bakes from the same.
    """

    def __init__(self, source: dict[str, Tensor]):
        self.source = {k: v.detach().clone() for k, v in source.items()}
        s = self.source
        discs = s["means"], s["quats"], s["scales"], s["opacities"], s["shown"]
        self.occluders = occlusion.build(*discs, normals=s["sides"])
        near = neighbours(s["means"], s["sides"])
        self.transfer = transfer.bake(s["means"], s["sides"], self.occluders, near)
        # What the surroundings send out is what the photographs show of them.
        self.cells = self.occluders.means_of(tone.linear(s["colors"].clamp(0, 1)))
        self.reflected = self.transfer.reflected(self.cells)
        self.open = self.transfer.sky.sum(1)


def received(light: FittedLight, baked: Baked | None, normals: Tensor) -> Received:
    """The diffuse light at every Gaussian; differentiable in the light, and in the normals [N, 3] without shadows."""
    sky = light.directions
    assert sky is not None
    if baked is None:
        return Received(transfer.open_sky(normals) @ sky, torch.zeros_like(normals), torch.ones_like(normals[:, 0]))
    return Received(baked.transfer.sky @ sky, baked.reflected, baked.open)


def diffuse_light(light: FittedLight, baked: Baked | None, normals: Tensor) -> Tensor:
    """[N, 7] direct and reflected irradiance / pi, and openness; an open black sky while there is no light yet."""
    if light.directions is None:
        dark = torch.zeros_like(normals)
        return torch.cat([dark, dark, normals.new_ones(len(normals), 1)], 1)
    r = received(light, baked, normals)
    return torch.cat([r.direct, r.reflected, r.openness[:, None]], 1)
