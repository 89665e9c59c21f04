"""What the Gaussians hide from each other: a grid of filled cells, the distance to the nearest, and rays through it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat

REACH = 1.3
"""Standard deviations of a Gaussian that count as solid."""
DENSITY = 2.0
"""Sample points per cell of a Gaussian's face."""
FILLED = 0.35
"""Opacity from which a cell counts as filled."""
MAX_STEPS = 64
BEHIND = 0.0
"""Cosine between a ray and a cell's normal from which on the ray comes from behind."""
LEAVING = 3.0
"""Cells that a ray goes until what it meets stops it from either side, too: a thin wall's cells hold both."""
BELOW = 1.0
"""Cells below the plane of what it meets from which on a ray's surface is not that same surface."""
OFFSET, SIDED = 1.6, 0.7
"""Rays begin this many cells above their surface; the second where cells know which way they face."""


@dataclass
class Occluders:
    """Filled cells of a scene.

    Attributes:
        origin: [3] lower corner of the grid, world frame.
        cell: edge of a cell, world units.
        distance: [X, Y, Z] float32 in cells, from a cell's centre to the nearest filled one's; 0 = filled.
        nearest: [X, Y, Z] int32 number of that filled cell, 0 .. M-1.
        members: CSR of [M, N]: rows are means over the Gaussians that fill a cell.
        normals: [M, 3] of the cells' surfaces: what is near to where a ray begins stops it from outside alone. None:
            from both sides, too.
    """

    origin: Tensor
    cell: float
    distance: Tensor
    nearest: Tensor
    members: Tensor
    normals: Tensor | None = None

    def __len__(self) -> int:
        return self.members.shape[0]

    def means_of(self, values: Tensor) -> Tensor:
        """[M, C] mean of values [N, C] over each filled cell."""
        return self.members @ values

    def cell_of(self, points: Tensor) -> Tensor:
        """[P] the filled cell nearest to each point [P, 3]; points outside are taken to the border."""
        return self.nearest.reshape(-1)[self._flat(self._index(points).long())].long()

    def _index(self, points: Tensor) -> Tensor:
        top = torch.tensor(self.distance.shape, device=points.device) - 1
        return torch.minimum(((points - self.origin) / self.cell).clamp_min(0), top.to(points))

    def _flat(self, index: Tensor) -> Tensor:
        _, y, z = self.distance.shape
        return (index[..., 0] * y + index[..., 1]) * z + index[..., 2]

    @torch.no_grad()
    def trace(
        self, points: Tensor, normals: Tensor, dirs: Tensor, limits: Tensor | None = None, chunk: int = 1 << 18
    ) -> Tensor:
        """[P] int64: the filled cell that a ray meets first, or -1 where it leaves the grid.

        Args:
            points: [P, 3] on surfaces, world frame.
            normals: [P, 3] unit; rays begin a little along them.
            dirs: [P, 3] unit.
            limits: [P] world units: what lies farther does not count. None: no limit.
        """
        found, offset = [], self.cell * (OFFSET if self.normals is None else SIDED)
        for k in range(0, len(points), chunk):
            part = slice(k, k + chunk)
            start = points[part] + offset * normals[part]
            limit = None if limits is None else limits[part] / self.cell
            found.append(self._trace(points[part], start, dirs[part], limit))
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64, device=points.device)

    def _trace(self, surface: Tensor, points: Tensor, dirs: Tensor, left: Tensor | None) -> Tensor:
        """Sphere tracing: a step is what the distance at the cell allows, wherever in the cell the ray is.

        Rays begin at ``points``, above places on the ``surface``.
        """
        out = torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
        at, surface = ((t - self.origin) / self.cell for t in (points, surface))  # in cells
        ids = torch.arange(len(points), device=points.device)
        gone = torch.zeros_like(at[:, 0])  # from the surface, in cells
        top = torch.tensor(self.distance.shape, dtype=at.dtype, device=points.device)
        _, y, z = self.distance.shape
        stride = torch.tensor([y * z, z, 1], device=points.device)
        distance, nearest = self.distance.reshape(-1), self.nearest.reshape(-1)
        for _ in range(MAX_STEPS):
            inside = ((at >= 0) & (at < top)).all(1)
            if left is not None:
                inside &= left > 0
            if not inside.all():
                at, dirs, ids, gone = at[inside], dirs[inside], ids[inside], gone[inside]
                left = None if left is None else left[inside]
            if not len(ids):
                break
            flat = (at.long() * stride).sum(1)
            free = distance[flat]
            hit = free < 0.5
            if self.normals is not None and hit.any():
                # A surface stops what comes from outside: leaving it at a slant, through its own cells, is no hit.
                near = gone[hit] <= LEAVING
                normal = self.normals[nearest[flat[hit]].long()]
                facing = (normal * dirs[hit]).sum(1) < BEHIND
                # A thin wall has the normal of one of its sides: what begins at the other's goes through it.
                height = ((surface[ids[hit]] - at[hit].floor() - 0.5) * normal).sum(1)
                hit[hit.clone()] = facing | ~near | (height < -BELOW)
            if hit.any():
                out[ids[hit]] = nearest[flat[hit]].long()
                on = ~hit
                at, dirs, ids, free, gone = at[on], dirs[on], ids[on], free[on], gone[on]
                left = None if left is None else left[on]
            step = (free - 1.0).clamp_min(0.6)
            at, gone = at + dirs * step[:, None], gone + step
            left = None if left is None else left - step
        return out


def build(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    weights: Tensor,
    resolution: int = 192,
    normals: Tensor | None = None,
) -> Occluders:
    """The filled cells of N Gaussians, each taken as the flat disc of its two longer axes.

    Args:
        means [N, 3], quats [N, 4], scales [N, 3], opacities [N]: world frame, activated.
        weights: [N] how much each shows in the photographs; what hardly does is no solid thing.
        resolution: cells along the longest side of the scene's box.
        normals: [N, 3] unit, outwards: with them, surfaces let rays out that leave them at a slant.

    Raises:
        FeaturesplatError: no Gaussian is solid.
    """
    from scipy.ndimage import distance_transform_edt

    solid = (opacities > 0.2) & (weights > 0.02) & means.isfinite().all(1)
    if int(solid.sum()) < 8:
        raise FeaturesplatError(
            "materials: fewer than 8 Gaussians are opaque and seen", "Train the scene longer, or check its masks."
        )
    device, ids = means.device, solid.nonzero()[:, 0]
    low, high = _box(means[ids])
    cell = float((high - low).max()) / (resolution - 8)
    low, high = low - 4 * cell, high + 4 * cell
    shape = [int(v) for v in ((high - low) / cell).ceil()]
    points, owners, share = _disc_points(means, quats, scales, opacities, ids, cell)
    index = ((points - low) / cell).floor().long()
    inside = ((index >= 0) & (index < torch.tensor(shape, device=device))).all(1)
    index, owners, share = index[inside], owners[inside], share[inside]
    flat = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    total = torch.zeros(math.prod(shape), device=device).index_add_(0, flat, share)
    filled = total >= FILLED
    if not bool(filled.any()):
        raise FeaturesplatError("materials: the Gaussians fill no cell of the grid", "Train the scene longer.")
    grid = filled.reshape(shape).cpu().numpy()
    distance, place = distance_transform_edt(~grid, return_indices=True)  # pyright: ignore[reportGeneralTypeIssues]
    numbers = np.cumsum(grid.reshape(-1), dtype=np.int32) - 1
    nearest = numbers[np.ravel_multi_index(tuple(place), grid.shape)]
    kept = filled[flat]
    rows = torch.from_numpy(numbers).to(device)[flat[kept]].long()
    members = _mean_matrix(rows, owners[kept], share[kept], int(filled.sum()), len(means))
    return Occluders(
        origin=low,
        cell=cell,
        distance=torch.from_numpy(distance.astype(np.float32)).to(device),
        nearest=torch.from_numpy(nearest).to(device),
        members=members,
        normals=None if normals is None else torch.nn.functional.normalize(members @ normals, dim=1),
    )


def _box(points: Tensor) -> tuple[Tensor, Tensor]:
    """The box of all but the outermost of the points: a few strays must not make the cells large."""
    ordered = points.sort(0).values
    n = len(points)
    low, high = ordered[int(0.005 * n)], ordered[min(n - 1, int(0.995 * n))]
    margin = 0.05 * (high - low).max()
    return torch.maximum(low - margin, ordered[0]), torch.minimum(high + margin, ordered[-1])


def _disc_points(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, ids: Tensor, cell: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Points [S, 3] spread over the discs, whose they are [S], and the opacity that each brings to its cell [S]."""
    order = scales[ids].argsort(1, descending=True)
    sizes = scales[ids].gather(1, order)[:, :2] * REACH
    axes = quat_to_rotmat(quats[ids]).transpose(1, 2)  # rows: the axes
    first = axes.gather(1, order[:, :1, None].expand(-1, 1, 3))[:, 0] * sizes[:, :1]
    second = axes.gather(1, order[:, 1:2, None].expand(-1, 1, 3))[:, 0] * sizes[:, 1:]
    faces = math.pi * sizes.prod(1) / cell**2  # in cells
    count = (faces * DENSITY).ceil().clamp(4, 4096).long()
    which = torch.arange(len(ids), device=ids.device).repeat_interleave(count)
    k = torch.arange(len(which), device=ids.device) - (count.cumsum(0) - count)[which]
    # Vogel's sunflower: even over a disc for any count.
    radius = ((k + 0.5) / count[which]).sqrt()
    angle = k * (math.pi * (3 - math.sqrt(5)))
    points = means[ids][which] + (radius * angle.cos())[:, None] * first[which]
    points = points + (radius * angle.sin())[:, None] * second[which]
    per_point = torch.where(count * 1.0 > DENSITY * faces, faces.clamp_min(0.5) / count, 1 / DENSITY)
    return points, ids[which], opacities[ids][which] * per_point[which]


def _mean_matrix(rows: Tensor, cols: Tensor, share: Tensor, count: int, columns: int) -> Tensor:
    from scipy.sparse import csr_array

    from featuresplat.shading.prefilter import to_torch_csr

    matrix = csr_array((share.cpu().numpy(), (rows.cpu().numpy(), cols.cpu().numpy())), (count, columns))
    matrix.sum_duplicates()
    total = np.asarray(matrix.sum(1)).reshape(-1)
    matrix.data /= np.repeat(np.maximum(total, 1e-12), np.diff(matrix.indptr))
    return to_torch_csr(matrix).to(rows.device)
