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

NEIGHBOURS = 10
FEWEST = 100
"""Points that make a surface."""
ROUGH = 0.1
"""Points that stray from their planes by more than this share of their spacing tell nothing of a surface."""
REACH = 2.5
"""Gaussians further from all points than this many spacings are left alone."""
TURNED = 0.5
"""Weight of a normal's turning beside the distance, which is in spacings."""


class PointSurface:
    """Planes through the neighbourhoods of the points.

    Attributes:
        spacing: median distance from a point to its fourth nearest.
        straying: median standard deviation of points about their plane, in spacings.
    """

    def __init__(self, xyz: Tensor):
        self._device = xyz.device
        points = xyz.detach().cpu().double().numpy()
        self._tree = KDTree(points)
        distance, near = self._tree.query(points, k=NEIGHBOURS, workers=-1)
        around = torch.from_numpy(points[near])
        middle = around.mean(1, keepdim=True)
        values, vectors = torch.linalg.eigh((around - middle).transpose(1, 2) @ (around - middle))
        self._normals = vectors[..., 0].float()
        self._middles = middle[:, 0].float()
        self.spacing = float(torch.from_numpy(distance[:, 4]).median())
        self.straying = float((values[:, 0].clamp_min(0) / NEIGHBOURS).sqrt().median()) / max(self.spacing, 1e-12)

    @staticmethod
    def of(xyz: Tensor | None) -> PointSurface | None:
        """The surface of points [P, 3]; None where they are too few or too noisy to have one."""
        if xyz is None or len(xyz) < FEWEST:
            return None
        found = PointSurface(xyz.float())
        return found if found.straying < ROUGH else None

    @torch.no_grad()
    def planes(self, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """For each Gaussian a point [N, 3] and unit normal [N, 3] of the plane there, and whether there is one [N].

        The planes of the nearest points are blended by distance, their normals taken to one side.
        """
        distance, near = self._tree.query(means.detach().cpu().double().numpy(), k=4, workers=-1)
        distance, near = torch.from_numpy(distance).float(), torch.from_numpy(near)
        weight = torch.exp(-0.5 * (distance / self.spacing).square()) + 1e-6
        weight = weight / weight.sum(1, keepdim=True)
        normals = px.facing(self._normals[near], self._normals[near[:, :1]].expand(-1, 4, -1))
        normal = F.normalize((weight[..., None] * normals).sum(1), dim=1)
        middle = (weight[..., None] * self._middles[near]).sum(1)
        there = distance[:, 0] < REACH * self.spacing
        return tuple(t.to(means.device) for t in (middle, normal, there))  # pyright: ignore[reportReturnType]

    def pull(self, means: Tensor, quats: Tensor, log_scales: Tensor, planes: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """How far Gaussians are from their planes, in spacings, and turned from them: a mean over all."""
        middle, normal, there = planes
        off = ((means - middle) * normal).sum(1).abs() / self.spacing
        turned = 1 - (px.shortest_axes(quats, log_scales) * normal).sum(1).abs()
        return (there * (off.clamp(max=REACH) + TURNED * turned)).mean()

    @torch.no_grad()
    def laid(self, params: dict[str, Tensor], thin: float) -> None:
        """Move Gaussians onto their planes, and turn them to lie flat on these."""
        middle, normal, there = self.planes(params["means"])
        means = params["means"]
        flat = means - ((means - middle) * normal).sum(1, keepdim=True) * normal
        means.copy_(torch.where(there[:, None], flat, means))
        helper = torch.where(normal[:, :1].abs() < 0.7, *(torch.eye(3).to(normal)[k] for k in (0, 1)))
        first = F.normalize(torch.linalg.cross(normal, helper), dim=1)
        frame = torch.stack([first, torch.linalg.cross(normal, first), normal], dim=-1)
        turned = (px.shortest_axes(params["quats"], params["log_scales"]) * normal).sum(1).abs() < 0.9
        change = there & turned
        params["quats"].copy_(torch.where(change[:, None], rotmat_to_quat(frame), params["quats"]))
        scales = params["log_scales"]
        round_ = scales[:, :2].mean(1, keepdim=True).expand(-1, 2)
        scales[:, :2] = torch.where(change[:, None], round_, scales[:, :2])
        scales[:, 2] = scales[:, :2].amin(1) + math.log(thin)
