"""The surface that the data's points lie on: where photographs mislead, it holds the Gaussians.

A mirror shows what stands behind it, and radiance fields put that there. Points that were measured on the mirror itself
know better; elsewhere they agree with the photographs.
"""

from __future__ import annotations

import math

import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from featuresplat.geometry import rotmat_to_quat
from featuresplat.modes import _inverse_pixels as px

NEIGHBOURS = 20
"""Points that a quadric is fitted to."""
BENT = 0.03
"""How much a quadric would rather be a plane, as a share of its points' weight."""
LOOKS = (0.4, 0.2)
"""Distances from a quadric, in spacings, at which a point loses its say in the next one (robust implicit moving least
squares, Oztireli et al. 2009)."""
FEWEST = 100
"""Points that make a surface."""
ROUGH = 0.1
"""Points that stray from their quadrics by more than this share of their spacing tell nothing of a surface."""
AGREED = 0.97
"""Length of the mean of unit normals up to which they disagree."""
LEAST_SURE = 0.05
REACH = 2.5
"""Gaussians further from all points than this many spacings are left alone."""
TURNED = 0.5
"""Weight of a normal's turning beside the distance, which is in spacings."""
CROWDED = 6
"""Places that are tried for each surfel that is laid."""
COVER = 0.7
"""Standard deviation of a surfel, in distances to its neighbours."""


class PointSurface:
    """Quadrics through the neighbourhoods of the points (moving least squares, Alexa et al. 2003).

    A plane takes its normal from the middle of its points, which on a bent surface lies elsewhere than what is
    asked for.

    Attributes:
        spacing: median distance from a point to its fourth nearest.
        spacings: [P] that distance of each point.
        straying: mean distance of a point's neighbours from its quadric, in spacings, the median over the points.
    """

    def __init__(self, xyz: Tensor):
        self._device = xyz.device
        points = xyz.detach().cpu().double().numpy()
        self._tree = KDTree(points)
        distance, near = self._tree.query(points, k=NEIGHBOURS, workers=-1)
        distance, around = torch.from_numpy(distance), torch.from_numpy(points[near])
        self.spacings = distance[:, 4].float().clamp_min(1e-12)
        self.spacing = float(self.spacings.median())
        near_weight = torch.exp(-0.5 * (distance / (2 * distance[:, 4:5]).clamp_min(1e-12)).square())
        weight = (near_weight / near_weight.sum(1, keepdim=True))[..., None]
        bent = torch.diag(torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64)) * BENT
        bent += 1e-9 * torch.eye(6, dtype=torch.float64)
        for off_surface in (*LOOKS, None):
            origins = (weight * around).sum(1)
            moved = around - origins[:, None]
            _, vectors = torch.linalg.eigh((weight * moved).transpose(1, 2) @ moved)  # smallest variance first
            frames = torch.stack([vectors[..., 2], vectors[..., 1], vectors[..., 0]], -1)
            local = moved @ frames / self.spacings.double()[:, None, None]
            terms = _monomials(local[..., :2])
            squares = (weight * terms).transpose(1, 2) @ terms + bent
            quadrics = torch.linalg.solve(squares, (weight * terms).transpose(1, 2) @ local[..., 2:])[..., 0]
            off = _heights(local[..., :2], quadrics[:, None])[0] - local[..., 2]
            if off_surface is not None:  # where two surfaces meet, the one that most points lie on
                weight = near_weight * torch.exp(-0.5 * (off / off_surface).square()) + 1e-9
                weight = (weight / weight.sum(1, keepdim=True))[..., None]
        self._origins, self._frames, self._quadrics = origins, frames, quadrics
        self.straying = float((near_weight * off.abs()).sum(1).div(near_weight.sum(1)).median())

    @staticmethod
    def of(xyz: Tensor | None) -> PointSurface | None:
        """The surface of points [P, 3]; None where they are too few or too noisy to have one."""
        if xyz is None or len(xyz) < FEWEST:
            return None
        found = PointSurface(xyz.float())
        return found if found.straying < ROUGH else None

    @torch.no_grad()
    def planes(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each Gaussian a point [N, 3] and unit normal [N, 3] of the surface there, and how sure that is [N].

        The quadrics of the nearest points are blended by distance, their normals taken to one side. 0 is far from all
        points; where their quadrics disagree, at edges and where things touch, it is small.
        """
        at = means.detach().cpu().double()
        distance, near = self._tree.query(at.numpy(), k=4, workers=-1)
        distance, near = torch.from_numpy(distance), torch.from_numpy(near)
        spacing = self.spacings.double()[near]
        weight = torch.exp(-0.5 * (distance / spacing).square()) + 1e-6
        weight = weight / weight.sum(1, keepdim=True)
        frames, origins = self._frames[near], self._origins[near]
        local = ((at[:, None] - origins)[..., None, :] @ frames)[..., 0, :2] / spacing[..., None]
        heights, slopes = _heights(local.clamp(-REACH, REACH), self._quadrics[near])
        feet = torch.cat([local, heights[..., None]], -1) * spacing[..., None]
        feet = origins + (frames @ feet[..., None])[..., 0]
        normals = F.normalize(torch.cat([-slopes, torch.ones_like(heights)[..., None]], -1), dim=-1)
        normals = (frames @ normals[..., None])[..., 0]
        normals = px.facing(normals, normals[:, :1].expand_as(normals))
        blended = (weight[..., None] * normals).sum(1)
        normal = F.normalize(blended, dim=1)
        sure = ((blended.norm(dim=1) - AGREED) / (1 - AGREED)).clamp(LEAST_SURE, 1)
        foot = (weight[..., None] * feet).sum(1)
        there = distance[:, 0] < REACH * spacing[:, 0].clamp(max=4 * self.spacing)
        return foot.to(means), normal.to(means), (there * sure).to(means)

    def pull(self, means: Tensor, quats: Tensor, log_scales: Tensor, planes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """How far Gaussians are from their planes, in spacings, and turned from them: a mean over all."""
        middle, normal, sure = planes
        off = ((means - middle) * normal).sum(1).abs() / self.spacing
        turned = 1 - (px.shortest_axes(quats, log_scales) * normal).sum(1).abs()
        return (sure * (off.clamp(max=REACH) + TURNED * turned)).mean()

    @torch.no_grad()
    def surfels(self, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """About ``count`` places [S, 3] spread evenly over the surface, their normals [S, 3], and log scales [S].

        Random places around the points, as many as their spacing squared says, thinned to one in each cell of a grid.
        """
        draw = torch.Generator().manual_seed(seed)
        spacings = self.spacings.double()
        area = spacings.clamp(max=4 * self.spacing).square()
        which = torch.multinomial(area, CROWDED * count, replacement=True, generator=draw)
        radius = spacings[which] * torch.rand(len(which), generator=draw).double().sqrt()
        angle = 2 * math.pi * torch.rand(len(which), generator=draw).double()
        around = torch.stack([radius * angle.cos(), radius * angle.sin(), torch.zeros_like(radius)], -1)
        places = self._origins[which] + (self._frames[which] @ around[..., None])[..., 0]
        edge = (float(area.sum()) / count) ** 0.5
        for _ in range(8):  # the cells' number is not quite their area
            cells, place = torch.unique((places / edge).floor().long(), dim=0, return_inverse=True)
            first = torch.full((len(cells),), len(places)).scatter_reduce(0, place, torch.arange(len(places)), "amin")
            edge *= (len(first) / count) ** 0.5
        first = first[torch.randperm(len(first), generator=draw)[:count]].sort().values
        foot, normal, sure = self.planes(places[first].float())
        foot, normal = foot[sure > 0], normal[sure > 0]
        xyz = foot.double().numpy()
        distance = torch.from_numpy(KDTree(xyz).query(xyz, k=5, workers=-1)[0][:, 1:].mean(1)).float()
        sizes = (COVER * distance).clamp_min(1e-9).log()
        return foot.to(self._device), normal.to(self._device), sizes.to(self._device)


def lying(normals: Tensor) -> Tensor:
    """[N, 4] quaternions whose third axis is the normal [N, 3]."""
    helper = torch.where(normals[:, :1].abs() < 0.7, *(torch.eye(3).to(normals)[k] for k in (0, 1)))
    first = F.normalize(torch.linalg.cross(normals, helper), dim=1)
    return rotmat_to_quat(torch.stack([first, torch.linalg.cross(normals, first), normals], dim=-1))


def _monomials(at: Tensor) -> Tensor:
    """[..., 6] of [..., 2]: 1, u, v, u^2, uv, v^2."""
    u, v = at.unbind(-1)
    return torch.stack([torch.ones_like(u), u, v, u * u, u * v, v * v], -1)


def _heights(at: Tensor, quadrics: Tensor) -> tuple[Tensor, Tensor]:
    """Height [...] and slopes [..., 2] of quadrics [..., 6] at [..., 2]."""
    u, v = at.unbind(-1)
    _, a, b, c, d, e = quadrics.unbind(-1)
    slopes = torch.stack([a + 2 * c * u + d * v, b + d * u + 2 * e * v], -1)
    return (_monomials(at) * quadrics).sum(-1), slopes
