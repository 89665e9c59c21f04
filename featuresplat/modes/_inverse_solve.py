"""A first guess of the light, from what changes most from view to view.

Gradient descent alone does not find its way: while the light is blurred, nothing rewards a smooth surface, and while
all surfaces are rough, nothing sharpens the light. So the photographs are lifted onto the Gaussians, a table of
radiance per Gaussian and view. What changes most from view to view is taken as a mirror and projects the light; then
the materials are searched for (`_inverse_search`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_curvature import curvature
from featuresplat.shading import cubemap, tone
from featuresplat.shading.occlusion import Occluders

VIEWS = 24
"""Most views that are lifted."""
COARSE = 32
"""Pixels along a side of the light that is projected: normals are not known better."""
FEW = 0.1
"""Share of the mean weight at which a texel is half what it was before."""
SHOWN = 0.3
"""Pixels' worth of weight from which a view counts for a Gaussian."""
CLIPPED = 0.97
"""Radiance from which a photograph says only `at least`."""
TRUNCATED = 0.16
"""A residual beyond this counts no more: the progress would be 0 there."""
VIVID = 0.08
"""Relative change from view to view at which a Gaussian begins to count as a mirror; at three times that it does."""


@dataclass
class Samples:
    """S pairs of a Gaussian and a view.

    Attributes:
        gaussian: [S] number of the Gaussian, ascending.
        weight: [S] how much it shows there.
        radiance: [S, 3] linear, as photographed.
        count: N.
    """

    gaussian: Tensor
    weight: Tensor
    radiance: Tensor
    count: int

    def sum(self, values: Tensor) -> Tensor:
        """[N, C] sums over the views of each Gaussian, of [S, C]."""
        return values.new_zeros(self.count, values.shape[1]).index_add_(0, self.gaussian, values)


class Views:
    """Training photographs in linear radiance, VIEWS of them at most, with what the rasterizer wants to know.

    Attributes:
        cameras: all M of them. chosen: numbers of those looked at.
        options: settings and backend of the rasterizer.
    """

    def __init__(self, cameras, images, device, **options):
        self.cameras, self._images, self._device, self.options = cameras, images, device, options
        self.chosen = list(range(0, len(cameras), max(1, -(-len(cameras) // VIEWS))))

    def image(self, i: int) -> Tensor:
        """[H, W, 3]."""
        return tone.linear(self._images(i).to(self._device).float() / 255)

    def matrices(self, i: int) -> tuple[Tensor, Tensor]:
        """viewmats [1, 4, 4] and Ks [1, 3, 3], float32."""
        camera = self.cameras[i]
        return camera.viewmats.to(self._device, torch.float32), camera.Ks.to(self._device, torch.float32)


@torch.no_grad()
def lifted(g, normals: Tensor, views: Views) -> Samples:
    """The table: every photograph, lifted.

    Args:
        g: the Gaussians. normals: [N, 3] unit, outwards.
    """
    parts = []
    for i in views.chosen:
        viewmat, K = views.matrices(i)
        width, height = views.cameras.sizes[i]
        sums, weights = raster.lift(
            g.means, g.quats, g.scales, g.opacities, viewmat, K, width, height, views.image(i)[None], **views.options
        )
        view = F.normalize(views.cameras[i].positions.to(g.means) - g.means, dim=1)
        seen = ((weights > SHOWN) & ((view * normals).sum(1) > 0.15)).nonzero()[:, 0]
        parts.append((seen, weights[seen], sums[seen] / weights[seen, None]))
    gaussian, weight, radiance = (torch.cat(p) for p in zip(*parts, strict=True))
    order = gaussian.argsort(stable=True)
    return Samples(gaussian[order], weight[order].clamp(max=20), radiance[order], len(g))


def vividness(s: Samples) -> Tensor:
    """[N] relative standard deviation of each Gaussian's brightness over the views."""
    light = s.radiance.mean(1, keepdim=True)
    total = s.sum(s.weight[:, None]).clamp_min(1e-9)
    mean = s.sum(s.weight[:, None] * light) / total
    square = s.sum(s.weight[:, None] * (light - mean[s.gaussian]).square()) / total
    return (square.sqrt() / (mean + 0.05))[:, 0]


@torch.no_grad()
def projected(
    g, normals: Tensor, vivid: Tensor, views: Views, occluders: Occluders | None, base: Tensor, rounds: int = 3
) -> tuple[Tensor, Tensor]:
    """The light that vivid Gaussians have reflected, taken as mirrors, pixel by pixel, and each one's colour [N, 3].

    Args:
        vivid: [N] in 0..1, how much each counts as a mirror.
        base: [6, S, S, 3] the light where nothing says otherwise.
    """
    base, full = cubemap.shrink(base, max(1, base.shape[1] // COARSE)), base
    size = base.shape[1]
    bend = curvature(g.means, normals, g.scales)
    flat, color = base.reshape(-1, 3), torch.full((len(g), 3), 0.8, device=base.device)
    for k in range(rounds):
        top, bottom = torch.zeros_like(flat), torch.zeros_like(flat)
        pull, mass = torch.zeros_like(color), torch.zeros_like(color)
        for i in views.chosen:
            image, matrices, (width, height) = views.image(i), views.matrices(i), views.cameras.sizes[i]
            centre, rays = px.view_rays(matrices[0][0], matrices[1][0], width, height)
            out = raster.rasterize(
                g.means, g.quats, g.scales, g.opacities, None, *matrices, width, height,
                features=torch.cat([normals, vivid[:, None], color, bend, g.means - centre], 1), **views.options,
            )  # fmt: skip
            assert out.features is not None
            f, alpha = out.features.reshape(-1, 16), out.alpha.reshape(-1, 1)
            rows = ((f[:, 3] > 0.05) & (alpha[:, 0] > 0.8)).nonzero()[:, 0]
            f, ray = f[rows] / alpha[rows], rays.reshape(-1, 3)[rows]
            view = -F.normalize(ray, dim=1)
            normal, depth = px.shape_at(f[:, :3], f[:, 7:13], f[:, 13:], ray, out.depth.reshape(-1, 1)[rows])
            cosine = (view * normal).sum(1, keepdim=True)
            away = 2 * cosine * normal - view
            points = centre + depth * ray
            free = cosine[:, 0] > 0.2
            if occluders is not None:
                free &= occluders.trace(points, normal, away) < 0
            rows, away, f = rows[free], away[free], f[free]
            weight, tint = f[:, 3:4], f[:, 4:7]
            seen = image.reshape(-1, 3)[rows]
            index, bilinear = cubemap.corners(*cubemap.locate(away), size)
            index = cubemap.padding(size).to(index.device)[index]
            if k:
                there = (flat[index] * bilinear[..., None]).sum(1)
                maps = px.spread(torch.cat([there * seen, there.square()], 1), rows, height, width)
                sums, _ = raster.lift(
                    g.means, g.quats, g.scales, g.opacities, *matrices, width, height, maps[None], **views.options
                )
                pull, mass = pull + sums[:, :3], mass + sums[:, 3:]
            for total, values in ((top, weight * tint * seen), (bottom, weight * tint.square())):
                spread = (bilinear[..., None] * values[:, None]).reshape(-1, 3)
                total.index_add_(0, index.reshape(-1), spread)
        if k:
            color = torch.where(mass > 1e-6, (pull / mass.clamp_min(1e-9)).clamp(0.1, 1.0), color)
        few = FEW * bottom.mean() / (bottom + FEW * bottom.mean())
        flat = top / bottom.clamp_min(1e-9) * (1 - few) + few * base.reshape(-1, 3)
    found = flat.reshape(base.shape)
    return cubemap.sample(found, cubemap.directions(full.shape[1]).to(found)), color


def neighbours(means: Tensor, normals: Tensor, count: int = 12) -> Tensor:
    """Sparse [N, N]: shares of what each Gaussian has among its nearest, itself among them, on its side of the surface.

    A column sums up to 1: repeated, it spreads sums and loses nothing.
    """
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.spatial import KDTree

    from featuresplat.shading.prefilter import to_torch_csr

    xyz = means.detach().cpu().numpy()
    _, near = KDTree(xyz).query(xyz, k=min(count, len(xyz)), workers=-1)
    near = near.reshape(len(xyz), -1)
    n = normals.detach().cpu().numpy()
    weight = np.clip((n[:, None] * n[near]).sum(-1), 0.01, 1).astype(np.float32)
    rows = np.repeat(np.arange(len(xyz), dtype=np.int32), near.shape[1])
    matrix = csr_array((weight.reshape(-1), (rows, near.reshape(-1).astype(np.int32))), (len(xyz), len(xyz)))
    shares = csr_array(matrix + matrix.T)
    shares.data = (shares.data / shares.sum(0)[shares.indices]).astype(np.float32)
    return to_torch_csr(shares).to(means.device)


def pooled(near: Tensor, values: Tensor, weight: Tensor, times: int) -> Tensor:
    """[N, C] of values [N, C], averaged over neighbours with weights [N, 1], so many times.

    Args:
        near: see `neighbours`.
    """
    sums = torch.cat([weight * values, weight], 1)
    for _ in range(times):
        sums = near @ sums
    return sums[:, :-1] / sums[:, -1:].clamp_min(1e-9)
