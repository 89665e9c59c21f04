"""Diffuse light with shadows and interreflection, baked: a linear map from the light to every Gaussian's irradiance.

Precomputed radiance transfer (Sloan et al. 2002) in a basis of directions: for each Gaussian and each texel of a small
cubemap, whether the light from there arrives, and if not, from which filled cell light comes instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from featuresplat.geometry import sh_bases
from featuresplat.shading import cubemap
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import Operator

SIZE = 8
"""Texels along a side of the cubemap of directions: 384 directions, eleven degrees apart."""
_ROWS = 2048  # Gaussians traced at once: about 0.4 M rays


@dataclass
class Transfer:
    """Attributes:
    sky: [N, 6 SIZE^2] weight of the light of each direction, 0 where it does not arrive; an open row sums to 1.
    cells: the sparse matrix [N, M] of the weights of the filled cells that are seen in the other directions.
    openness: [N, 6 SIZE^2] bool, the directions that are not hidden (those below the horizon count as hidden).
    """

    sky: Tensor
    cells: Operator
    openness: Tensor

    def direct(self, cube: Tensor) -> Tensor:
        """[N, 3] irradiance / pi from a cubemap [6, S, S, 3], S a multiple of SIZE; differentiable."""
        return self.sky @ cubemap.shrink(cube, cube.shape[1] // SIZE).reshape(-1, cube.shape[-1])

    def reflected(self, radiance: Tensor) -> Tensor:
        """[N, 3] irradiance / pi from the cells, which send out ``radiance`` [M, 3]."""
        return self.cells(radiance)

    def total(self, cube: Tensor, albedo: Tensor, occluders: Occluders, bounces: int = 2) -> tuple[Tensor, Tensor]:
        """[N, 3] irradiance / pi with reflections between surfaces of albedo [N, 3], and cells' radiance [M, 3]."""
        direct = self.direct(cube)
        irradiance, radiance = direct, occluders.means_of(albedo * direct)
        for _ in range(bounces):
            irradiance = direct + self.reflected(radiance)
            radiance = occluders.means_of(albedo * irradiance)
        return irradiance, radiance


def open_sky(normals: Tensor) -> Tensor:
    """[N, 6 SIZE^2] weights as `Transfer.sky` has them, where nothing is in the way."""
    dirs = cubemap.directions(SIZE).reshape(-1, 3).to(normals)
    weight = (normals @ dirs.T).clamp_min(0) * cubemap.solid_angles(SIZE).repeat(6, 1, 1).reshape(-1).to(normals)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-9)


@torch.no_grad()
def bake(points: Tensor, normals: Tensor, occluders: Occluders, near: Tensor | None = None) -> Transfer:
    """Trace N x 6 SIZE^2 rays, those below each horizon left out.

    Every Gaussian's rays are moved within the texels by an offset of its own, so that the steps between directions
    come out as fine grain, which splatting averages, rather than as bands.

    Args:
        points, normals: [N, 3] world frame; normals are unit and point out of the surface.
        near: sparse [N, N], weights of each one's neighbours: what is hidden is averaged over them, which takes the
            grain away.
    """
    frames = cubemap.frames(points)
    at = 2 * (torch.arange(SIZE, device=points.device) + 0.5) / SIZE - 1
    t, s = torch.meshgrid(at, at, indexing="ij")
    plane = frames[:, None, 0] + s.reshape(1, -1, 1) * frames[:, None, 1] + t.reshape(1, -1, 1) * frames[:, None, 2]
    k = torch.arange(len(points), device=points.device, dtype=torch.float64)
    jitter = torch.stack([k * 0.7548776662466927, k * 0.5698402909980532], 1).frac().sub(0.5).to(points) * (2 / SIZE)
    sky, found = [], []
    for start in range(0, len(points), _ROWS):
        part = slice(start, start + _ROWS)
        n = normals[part]
        weight = open_sky(n)
        moved = (
            jitter[part, None, None, :1] * frames[None, :, None, 1]
            + jitter[part, None, None, 1:] * frames[None, :, None, 2]
        )
        dirs = torch.nn.functional.normalize((plane[None] + moved).reshape(len(n), -1, 3), dim=-1)
        row, col = (weight > 0).nonzero(as_tuple=True)
        hit = occluders.trace(points[part][row], n[row], dirs[row, col])
        hidden = hit >= 0
        row, col, hit = row[hidden], col[hidden], hit[hidden]
        found.append((row + start, hit, weight[row, col]))
        weight[row, col] = 0
        sky.append(weight)
    weights = torch.cat(sky)
    openness = weights > 0
    rows, cols, values = (torch.cat(p) for p in zip(*found, strict=True))
    if near is not None:
        before = 1 - weights.sum(1)
        weights = _averaged(openness, open_sky(normals), near)
        values = values * ((1 - weights.sum(1)) / before.clamp_min(1e-3))[rows]
    shape = (len(points), len(occluders))
    cells = Operator.of(csr_array((values.cpu().numpy(), (_int(rows), _int(cols))), shape)).to(points.device)
    return Transfer(weights, cells, openness)


def _averaged(openness: Tensor, whole: Tensor, near: Tensor) -> Tensor:
    """[N, K] of weights ``whole`` what is open, on average over those neighbours above whose horizon it is."""
    for part in torch.arange(whole.shape[1], device=whole.device).split(64):  # a few columns: memory
        above = near @ (whole[:, part] > 0).to(whole)
        whole[:, part] *= (near @ openness[:, part].to(whole)) / above.clamp_min(1e-6)
    return whole


def _int(t: Tensor) -> np.ndarray:
    return t.int().cpu().numpy()


def visibility_harmonics(transfer: Transfer, normals: Tensor, degree: int) -> Tensor:
    """[N, K] harmonics of each point's visibility, for `harmonics.irradiance`.

    Directions below the horizon, which the cosine removes, are filled in as the mirror of those above: a step there
    would only ring.
    """
    dirs = cubemap.directions(SIZE).reshape(-1, 3).to(normals)
    area = cubemap.solid_angles(SIZE).repeat(6, 1, 1).reshape(-1).to(normals)
    out = []
    for part, n in zip(transfer.openness.split(_ROWS), normals.split(_ROWS), strict=True):
        below = n @ dirs.T <= 0
        mirrored = dirs[None] - 2 * (n @ dirs.T)[..., None] * n[:, None]
        face, s, t = cubemap.locate(mirrored.reshape(-1, 3))
        row = (t * SIZE).long().clamp(0, SIZE - 1)
        col = (s * SIZE).long().clamp(0, SIZE - 1)
        there = ((face * SIZE + row) * SIZE + col).reshape(below.shape)
        seen = torch.where(below, part.gather(1, there), part).to(normals)
        out.append((seen * area) @ sh_bases(dirs, degree))
    return torch.cat(out)


OPEN = math.sqrt(4 * math.pi)
"""First coefficient of an open sky's visibility."""
