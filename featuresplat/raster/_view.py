"""One camera of the reference backend: projection, depth order and the tiles' lists of Gaussians.

Projection: Zwicker et al., "EWA Volume Splatting" (2001), with the ray slopes clamped 0.3 half-fields outside
of the image as gsplat does (Ye et al. 2024). Antialiasing: Yu et al., "Mip-Splatting" (2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from featuresplat.geometry import quat_to_rotmat
from featuresplat.raster._inputs import RasterInputs, RasterSettings

TILE = 16
"""Pixels along a tile's side."""


class Splats(NamedTuple):
    """V projected Gaussians of one camera. cov [V, 3] is (xx, xy, yy) with eps2d; conics its inverse."""

    means2d: Tensor  # [V, 2]
    conics: Tensor  # [V, 3]
    opacities: Tensor  # [V], antialiasing applied
    depths: Tensor  # [V]
    cov: Tensor  # [V, 3]

    def rows(self, index: Tensor) -> Splats:
        return Splats(*(t.index_select(0, index) for t in self))


@dataclass(frozen=True)
class View:
    """One camera's drawn Gaussians, near to far, and which of them each tile needs."""

    ids: Tensor  # [V] int64, rows of the inputs
    splats: Splats
    radii: Tensor  # [V, 2] int32
    offsets: list[int]  # tiles + 1, into ranks
    ranks: Tensor  # [intersections] int64, rows of splats, near to far within a tile
    width: int
    height: int
    settings: RasterSettings


def _project(inputs: RasterInputs, camera: int, ids: Tensor) -> Splats:
    """Project the Gaussians ``ids`` into one camera; differentiable; NaN where one cannot be drawn."""
    s = inputs.settings
    R, t = inputs.viewmats[camera, :3, :3], inputs.viewmats[camera, :3, 3]
    K = inputs.Ks[camera]
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    mx, my, mz = inputs.means.index_select(0, ids).unbind(-1)
    x, y, z = (R[i, 0] * mx + R[i, 1] * my + R[i, 2] * mz + t[i] for i in range(3))
    means2d = torch.stack([fx * x / z + cx, fy * y / z + cy], dim=-1)

    # The affine approximation degrades far off axis, so the slopes it is taken at are clamped.
    margin_x, margin_y = 0.3 * 0.5 * inputs.width / fx, 0.3 * 0.5 * inputs.height / fy
    u = (x / z).clamp(-(cx / fx + margin_x), (inputs.width - cx) / fx + margin_x)
    v = (y / z).clamp(-(cy / fy + margin_y), (inputs.height - cy) / fy + margin_y)
    # Rows of J R_v with J = [[fx/z, 0, -fx u/z], [0, fy/z, -fy v/z]].
    jx = (fx / z)[:, None] * (R[0] - u[:, None] * R[2])  # [V, 3]
    jy = (fy / z)[:, None] * (R[1] - v[:, None] * R[2])
    quats = inputs.quats.index_select(0, ids)
    # Scaling by the greatest component changes nothing but keeps the norm from over- or underflowing.
    quats = quats / quats.detach().abs().amax(-1, keepdim=True)
    rotated = quat_to_rotmat(quats)
    scales = inputs.scales.index_select(0, ids)
    ax = (jx[:, :, None] * rotated).sum(1) * scales  # rows of J R_v R S: the covariance is their Gram matrix
    ay = (jy[:, :, None] * rotated).sum(1) * scales
    xx, xy, yy = (ax * ax).sum(-1), (ax * ay).sum(-1), (ay * ay).sum(-1)
    # The Gram determinant as a squared cross product: no cancellation for needles, unlike xx yy - xy^2.
    det_sharp = torch.linalg.cross(ax, ay).square().sum(-1)
    det = det_sharp + s.eps2d * (xx + yy) + s.eps2d**2
    cov = torch.stack([xx + s.eps2d, xy, yy + s.eps2d], dim=-1)
    conics = torch.stack([cov[:, 2], -xy, cov[:, 0]], dim=-1) / det[:, None]
    opacities = inputs.opacities.index_select(0, ids)
    if s.antialiased:
        tiny = torch.finfo(det.dtype).tiny  # the square root has no slope at zero
        opacities = opacities * (det_sharp / det).clamp_min(tiny).sqrt()
    return Splats(means2d, conics, opacities, z, cov)


@torch.no_grad()
def _drawable(inputs: RasterInputs, camera: int) -> Tensor:
    """Ascending ids [V] of the Gaussians that are healthy, in front of the camera and opaque enough."""
    s = inputs.settings
    finite = torch.ones_like(inputs.opacities, dtype=torch.bool)
    for tensor in (inputs.means, inputs.quats, inputs.scales, inputs.opacities[:, None]):
        finite &= torch.isfinite(tensor).all(-1)
    if inputs.features is not None:
        finite &= torch.isfinite(inputs.features).all(-1)
    if inputs.colors is not None:
        colors = inputs.colors
        colors = colors[camera] if colors.ndim == 3 and inputs.sh_degree is None else colors.flatten(1)
        finite &= torch.isfinite(colors).all(-1)
    healthy = finite & (inputs.scales > 0).all(-1) & (inputs.quats.abs().amax(-1) > 0)
    ids = (healthy & (inputs.opacities >= s.alpha_min)).nonzero()[:, 0]
    p = _project(inputs, camera, ids)
    keep = (p.depths >= s.near) & (p.depths <= s.far) & (p.depths > 0) & (p.opacities >= s.alpha_min)
    for tensor in (p.means2d, p.conics, p.cov):  # overflow: too large for this dtype
        keep &= torch.isfinite(tensor).all(-1)
    # det <= 0 shows as a conic that is not positive; it needs eps2d = 0.
    return ids[keep & (p.conics[:, 0] > 0) & (p.conics[:, 2] > 0)]


@torch.no_grad()
def _cut(p: Splats, s: RasterSettings) -> tuple[Tensor, Tensor]:
    """The exponent [V] beyond which nothing counts, and the half extents [V, 2] of that ellipse's box."""
    cut = torch.full_like(p.opacities, 0.5 * s.extent**2)
    if s.alpha_min > 0:
        cut = torch.minimum(cut, (p.opacities / s.alpha_min).log())
    cut = cut.clamp_min(0)
    return cut, (2 * cut[:, None] * p.cov[:, [0, 2]]).sqrt()


def view_of(inputs: RasterInputs, camera: int) -> View:
    """Project into one camera, sort by depth (ties by index) and list each tile's Gaussians."""
    ids = _drawable(inputs, camera)
    p = _project(inputs, camera, ids)
    size = torch.tensor([inputs.width, inputs.height], dtype=p.cov.dtype, device=p.cov.device)
    with torch.no_grad():
        cut, half = _cut(p, inputs.settings)
        radii = half.ceil().clamp(1, 2**30)
        on_screen = ((p.means2d + radii > 0) & (p.means2d - radii < size)).all(-1)
        order = torch.argsort(p.depths, stable=True)
        order = order[on_screen[order]]
    p, cut, half, radii, ids = p.rows(order), cut[order], half[order], radii[order].int(), ids[order]
    offsets, ranks = _tile_lists(p, cut, half, inputs.width, inputs.height)
    return View(ids, p, radii, offsets, ranks, inputs.width, inputs.height, inputs.settings)


@torch.no_grad()
def _tile_lists(p: Splats, cut: Tensor, half: Tensor, width: int, height: int) -> tuple[list[int], Tensor]:
    """Offsets (tiles + 1) and ranks of the Gaussians whose cut ellipse reaches a tile's pixel centres.

    Only culling: it is generous by more than the rounding of what the blending evaluates.
    """
    device = p.means2d.device
    across, down = -(-width // TILE), -(-height // TILE)
    limit = torch.tensor([across, down], dtype=p.means2d.dtype, device=device)
    half = half * 1.001 + 0.01
    first = ((p.means2d - half) / TILE).floor().clamp_min(0).minimum(limit).long()  # [V, 2]
    last = ((p.means2d + half) / TILE).floor().add(1).clamp_min(0).minimum(limit).long()
    span = (last - first).clamp_min(0)
    counts = span[:, 0] * span[:, 1]
    ranks = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    within = torch.arange(len(ranks), device=device) - (counts.cumsum(0) - counts)[ranks]
    columns = span[ranks, 0]
    tx, ty = first[ranks, 0] + within % columns, first[ranks, 1] + within // columns

    # The least exponent over the rectangle of the tile's pixel centres: on the edges that face the mean.
    a, b, c = p.conics[ranks].unbind(-1)
    mx, my = p.means2d[ranks].unbind(-1)
    x0, y0 = tx * TILE + 0.5 - mx, ty * TILE + 0.5 - my
    x1, y1 = x0 + (TILE - 1), y0 + (TILE - 1)
    zero = torch.zeros_like(x0)
    x, y = zero.maximum(x0).minimum(x1), zero.maximum(y0).minimum(y1)
    y_edge, x_edge = (-b * x / c).maximum(y0).minimum(y1), (-b * y / a).maximum(x0).minimum(x1)
    least = torch.minimum(
        0.5 * (a * x * x + c * y_edge * y_edge) + b * x * y_edge,
        0.5 * (a * x_edge * x_edge + c * y * y) + b * x_edge * y,
    )
    far_x, far_y = x0.abs().maximum(x1.abs()), y0.abs().maximum(y1.abs())
    rounding = 8 * torch.finfo(a.dtype).eps * (a * far_x * far_x + c * far_y * far_y)
    keep = least <= cut[ranks] * 1.001 + 0.001 + rounding
    tiles, ranks = (ty * across + tx)[keep], ranks[keep]
    by_tile = torch.argsort(tiles, stable=True)
    offsets = torch.zeros(across * down + 1, dtype=torch.long, device=device)
    offsets[1:] = torch.bincount(tiles, minlength=across * down).cumsum(0)
    return offsets.tolist(), ranks[by_tile]
