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
from featuresplat.modes._inverse_planes import flat_pieces
from featuresplat.shading.monte_carlo import tangent_frame

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
    """Quadrics through the neighbourhoods of the points (moving least squares, Alexa et al. 2003), and planes where
    many points lie in one: points of a flat piece and others know nothing of each other, so that edges stay sharp.

    A plane takes its normal from the middle of its points, which on a bent surface lies elsewhere than what is
    asked for.

    Attributes:
        spacing: median distance from a point to its fourth nearest.
        spacings: [P] that distance of each point, within its piece.
        straying: mean distance of a point's neighbours from its quadric, in spacings, the median over the points.
        flat: [K, 4] unit normals and offsets of the flat pieces.
    """

    def __init__(self, xyz: Tensor):
        self._device = xyz.device
        points = xyz.detach().cpu().double()
        everything = _Quadrics(points)
        self.spacing, self.straying = float(everything.spacings.median()), everything.straying
        self.flat, piece = flat_pieces(points, everything.normals(), self.spacing, self.straying)
        free = piece < 0
        # Where hardly a point is left the pieces are nearly all there is, and these quadrics seldom the nearest.
        self._free = _Quadrics(points[free]) if NEIGHBOURS <= int(free.sum()) < len(points) else everything
        self._pieces = [_Piece(points[piece == k], plane) for k, plane in enumerate(self.flat)]
        parts = [self._free, *self._pieces]
        self.spacings, self._origins, self._frames = (
            torch.cat([getattr(p, name) for p in parts]) for name in ("spacings", "origins", "frames")
        )

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

        Of the flat pieces and all else it is the one that lies nearest. The quadrics of the nearest points are blended
        by distance, their normals taken to one side. 0 is far from all points; where quadrics disagree it is small.
        """
        at = means.detach().cpu().double()
        foot, normal, sure = self._free.planes(at, self.spacing)
        away = torch.where(sure > 0, ((at - foot) * normal).sum(1).abs(), torch.inf)
        for p in self._pieces:
            off = at @ p.normal - p.offset
            nearer = ((off.abs() < away) & (off.abs() < REACH * 4 * self.spacing)).nonzero()[:, 0]
            nearer = nearer[p.there(at[nearer], self.spacing)]
            away[nearer], sure[nearer], normal[nearer] = off[nearer].abs(), 1.0, p.normal
            foot[nearer] = at[nearer] - off[nearer, None] * p.normal
        return foot.to(means), normal.to(means), sure.to(means)

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
        spacings = self.spacings
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


class _Quadrics:
    """A quadric for each of P points.

    Attributes:
        spacings: [P] distance to the fourth nearest. straying: see `PointSurface`.
        origins: [P, 3]. frames: [P, 3, 3], the third column across the surface. quadrics: [P, 6], in spacings.
    """

    def __init__(self, xyz: Tensor):
        points = xyz.numpy()
        self._tree = KDTree(points)
        distance, near = self._tree.query(points, k=NEIGHBOURS, workers=-1)
        distance, around = torch.from_numpy(distance), torch.from_numpy(points[near])
        self.spacings = distance[:, 4].clamp_min(1e-12)
        near_weight = torch.exp(-0.5 * (distance / (2 * distance[:, 4:5]).clamp_min(1e-12)).square())
        weight = (near_weight / near_weight.sum(1, keepdim=True))[..., None]
        bent = torch.diag(torch.tensor([0.0, 0, 0, 1, 1, 1], dtype=torch.float64)) * BENT
        bent += 1e-9 * torch.eye(6, dtype=torch.float64)
        for off_surface in (*LOOKS, None):
            origins = (weight * around).sum(1)
            moved = around - origins[:, None]
            _, vectors = torch.linalg.eigh((weight * moved).transpose(1, 2) @ moved)  # smallest variance first
            frames = torch.stack([vectors[..., 2], vectors[..., 1], vectors[..., 0]], -1)
            local = moved @ frames / self.spacings[:, None, None]
            terms = _monomials(local[..., :2])
            squares = (weight * terms).transpose(1, 2) @ terms + bent
            quadrics = torch.linalg.solve(squares, (weight * terms).transpose(1, 2) @ local[..., 2:])[..., 0]
            off = _heights(local[..., :2], quadrics[:, None])[0] - local[..., 2]
            if off_surface is not None:  # where two surfaces meet, the one that most points lie on
                weight = near_weight * torch.exp(-0.5 * (off / off_surface).square()) + 1e-9
                weight = (weight / weight.sum(1, keepdim=True))[..., None]
        self.origins, self.frames, self.quadrics = origins, frames, quadrics
        self.straying = float((near_weight * off.abs()).sum(1).div(near_weight.sum(1)).median())

    def normals(self) -> Tensor:
        """[P, 3] at the points' places, of either sign."""
        slopes = self.quadrics[:, 1:3]
        local = F.normalize(torch.cat([-slopes, torch.ones_like(slopes[:, :1])], 1), dim=1)
        return (self.frames @ local[..., None])[..., 0]

    def planes(self, at: Tensor, spacing: float) -> tuple[Tensor, Tensor, Tensor]:
        """As `PointSurface.planes`, of this part of it."""
        distance, near = self._tree.query(at.numpy(), k=4, workers=-1)
        distance, near = torch.from_numpy(distance), torch.from_numpy(near)
        spacings = self.spacings[near]
        weight = torch.exp(-0.5 * (distance / spacings).square()) + 1e-6
        weight = weight / weight.sum(1, keepdim=True)
        frames, origins = self.frames[near], self.origins[near]
        local = ((at[:, None] - origins)[..., None, :] @ frames)[..., 0, :2] / spacings[..., None]
        heights, slopes = _heights(local.clamp(-REACH, REACH), self.quadrics[near])
        feet = torch.cat([local, heights[..., None]], -1) * spacings[..., None]
        feet = origins + (frames @ feet[..., None])[..., 0]
        normals = F.normalize(torch.cat([-slopes, torch.ones_like(heights)[..., None]], -1), dim=-1)
        normals = (frames @ normals[..., None])[..., 0]
        normals = px.facing(normals, normals[:, :1].expand_as(normals))
        blended = (weight[..., None] * normals).sum(1)
        normal = F.normalize(blended, dim=1)
        sure = ((blended.norm(dim=1) - AGREED) / (1 - AGREED)).clamp(LEAST_SURE, 1)
        foot = (weight[..., None] * feet).sum(1)
        there = distance[:, 0] < REACH * spacings[:, 0].clamp(max=4 * spacing)
        return foot, normal, there * sure


class _Piece:
    """Q points in one plane [4].

    Attributes:
        normal: [3]. offset: normal x = offset.
        spacings, origins, frames: as those of `_Quadrics`.
    """

    def __init__(self, xyz: Tensor, plane: Tensor):
        self._tree = KDTree(xyz.numpy())
        distance, _ = self._tree.query(xyz.numpy(), k=5, workers=-1)
        self.spacings = torch.from_numpy(distance[:, 4]).clamp_min(1e-12)
        self.normal, self.offset = plane[:3], plane[3]
        self.origins = xyz - (xyz @ self.normal - self.offset)[:, None] * self.normal
        self.frames = tangent_frame(self.normal[None]).transpose(1, 2).expand(len(xyz), -1, -1)

    def there(self, at: Tensor, spacing: float) -> Tensor:
        """[N] bool: whether points of the piece are near places [N, 3]."""
        distance, near = (torch.from_numpy(t) for t in self._tree.query(at.numpy(), workers=-1))
        return distance < REACH * self.spacings[near].clamp(max=4 * spacing)


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
