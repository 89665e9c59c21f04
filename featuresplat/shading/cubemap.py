"""Environment maps as cubemaps and as latitude-longitude (equirectangular) pictures; directions in the world frame.

Cubemap [6, S, S, C]: faces +x, -x, +y, -y, +z, -z laid out as OpenGL lays them out, rows from the top (t = 0).
Equirectangular [H, W, C], as Blender reads it in a world with +z up: pixel (i, j) has its centre at u = (j + .5) / W,
v = (i + .5) / H, phi = pi - 2 pi u, theta = pi v, direction = (sin theta cos phi, sin theta sin phi, cos theta).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

# Axis of the face, then the world directions of growing s (columns) and t (rows).
_FACES = (
    ((1, 0, 0), (0, 0, -1), (0, -1, 0)),
    ((-1, 0, 0), (0, 0, 1), (0, -1, 0)),
    ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
    ((0, -1, 0), (1, 0, 0), (0, 0, -1)),
    ((0, 0, 1), (1, 0, 0), (0, -1, 0)),
    ((0, 0, -1), (-1, 0, 0), (0, -1, 0)),
)


def frames(like: Tensor | None = None) -> Tensor:
    """[6, 3, 3]: for each face its axis and the directions of growing s and t, as rows."""
    out = torch.tensor(_FACES, dtype=torch.float32)
    return out if like is None else out.to(like)


def directions(size: int, border: int = 0) -> Tensor:
    """[6, S + 2 border, S + 2 border, 3] unit directions of the texel centres, float32; a border reaches past the face.

    Directions of a border lie on the face's plane continued, so they belong to the neighbouring faces.
    """
    at = 2 * (torch.arange(-border, size + border, dtype=torch.float64) + 0.5) / size - 1
    t, s = torch.meshgrid(at, at, indexing="ij")
    f = frames().double()[:, :, None, None, :]
    out = f[:, 0] + s[None, ..., None] * f[:, 1] + t[None, ..., None] * f[:, 2]
    return torch.nn.functional.normalize(out, dim=-1).float()


def solid_angles(size: int) -> Tensor:
    """[S, S] exact solid angle of each texel of a face, float32; the six faces sum to 4 pi."""
    edge = 2 * torch.arange(size + 1, dtype=torch.float64) / size - 1
    x, y = edge[None, :], edge[:, None]
    corner = torch.atan2(x * y, (x * x + y * y + 1).sqrt())
    return (corner[1:, 1:] - corner[:-1, 1:] - corner[1:, :-1] + corner[:-1, :-1]).float()


def locate(dirs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Face [P] int64 and coordinates s, t [P] in 0..1 of directions [P, 3] (any length but zero), differentiable."""
    size = dirs.detach().abs()
    x, y, z = size.unbind(-1)
    axis = torch.where((z >= x) & (z >= y), 2, torch.where(y > x, 1, 0))
    major = dirs.gather(-1, axis[:, None])[:, 0]
    negative = major.detach() < 0
    face = 2 * axis + negative
    sx, sy, sz = dirs.unbind(-1)
    flip = torch.where(negative, 1.0, -1.0).to(dirs)
    s = torch.where(axis == 0, flip * sz, torch.where(axis == 1, sx, -flip * sx))
    t = torch.where(axis == 1, -flip * sz, -sy)
    scale = 0.5 / major.abs().clamp_min(1e-12)
    return face, s * scale + 0.5, t * scale + 0.5


@lru_cache(maxsize=16)
def padding(size: int) -> Tensor:
    """[6 (S + 2)^2] int64: for each texel of the faces with a border of one, the texel [6 S^2] whose value it takes.

    Past an edge that is the neighbouring face's texel, so that bilinear lookups show no seam.
    """
    dirs = directions(size, border=1).reshape(-1, 3)
    face, s, t = locate(dirs)
    col = (s * size).long().clamp(0, size - 1)
    row = (t * size).long().clamp(0, size - 1)
    index = ((face * size + row) * size + col).reshape(6, size + 2, size + 2)
    index[:, 1:-1, 1:-1] = torch.arange(6 * size * size).reshape(6, size, size)
    return index.reshape(-1)


def padded(cube: Tensor) -> Tensor:
    """[6 (S + 2)^2, C] rows of a cubemap [6, S, S, C] with its seamless border."""
    return cube.reshape(-1, cube.shape[-1])[padding(cube.shape[1]).to(cube.device)]


def corners(face: Tensor, s: Tensor, t: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows [P, 4] of `padded` and bilinear weights [P, 4] at coordinates s, t of a face."""
    x = (s * size + 0.5).clamp(0, size + 0.999)
    y = (t * size + 0.5).clamp(0, size + 0.999)
    col, row = x.detach().long(), y.detach().long()
    fx, fy = x - col, y - row
    gx, gy = 1 - fx, 1 - fy
    first = (face * (size + 2) + row) * (size + 2) + col
    index = first[:, None] + torch.tensor([0, 1, size + 2, size + 3], device=face.device)
    return index, torch.stack([gx * gy, fx * gy, gx * fy, fx * fy], dim=1)


class _WeightedRows(torch.autograd.Function):
    """sum_k weights[p, k] table[index[p, k]]: [P, C] from [T, C], [P, K], [P, K]."""

    @staticmethod
    def forward(ctx, table, index, weights):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows = table.index_select(0, index.reshape(-1)).reshape(*index.shape, table.shape[1])
        ctx.save_for_backward(rows, index, weights)
        ctx.length = len(table)
        return (weights[..., None] * rows).sum(1)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, index, weights = ctx.saved_tensors
        for_table = for_weights = None
        if ctx.needs_input_grad[0]:
            spread = (weights[..., None] * grad[:, None]).reshape(-1, grad.shape[-1])
            for_table = grad.new_zeros(ctx.length, grad.shape[-1]).index_add_(0, index.reshape(-1), spread)
        if ctx.needs_input_grad[2]:
            for_weights = (rows * grad[:, None]).sum(-1)
        return for_table, None, for_weights


def weighted_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """[P, C] sums of rows of a table [T, C] at ``index`` [P, K] with ``weights`` [P, K]; differentiable in both."""
    return _WeightedRows.apply(table, index, weights)  # pyright: ignore[reportReturnType]


def sample(cube: Tensor, dirs: Tensor) -> Tensor:
    """Bilinear lookup [..., C] of a cubemap [6, S, S, C] in directions [..., 3], without seams; differentiable."""
    flat = dirs.reshape(-1, 3)
    index, weights = corners(*locate(flat), cube.shape[1])
    return weighted_rows(padded(cube), index, weights.to(cube.dtype)).reshape(*dirs.shape[:-1], cube.shape[-1])


def sample_equirect(image: Tensor, dirs: Tensor) -> Tensor:
    """Bilinear lookup [..., C] of an equirectangular map [H, W, C] in unit directions [..., 3]."""
    height, width, channels = image.shape
    flat = dirs.reshape(-1, 3)
    u = (math.pi - torch.atan2(flat[:, 1], flat[:, 0])) / (2 * math.pi)
    v = torch.acos(flat[:, 2].clamp(-1, 1)) / math.pi
    x, y = u * width - 0.5, (v * height - 0.5).clamp(0, height - 1)
    col, row = x.floor().long(), y.floor().long()
    fx, fy = x - col, y - row
    left, right = col % width, (col + 1) % width
    below = (row + 1).clamp(max=height - 1)
    index = torch.stack([row * width + left, row * width + right, below * width + left, below * width + right], 1)
    weights = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1).to(image.dtype)
    return weighted_rows(image.reshape(-1, channels), index, weights).reshape(*dirs.shape[:-1], channels)


def equirect_directions(height: int, width: int) -> Tensor:
    """[H, W, 3] unit directions of the pixel centres, float32."""
    phi = math.pi - 2 * math.pi * (torch.arange(width, dtype=torch.float64) + 0.5) / width
    theta = math.pi * (torch.arange(height, dtype=torch.float64) + 0.5) / height
    flat = theta.sin()[:, None]
    up = theta.cos()[:, None].expand(height, width)
    return torch.stack([flat * phi.cos(), flat * phi.sin(), up], dim=-1).float()


def from_equirect(image: Tensor, size: int) -> Tensor:
    """Cubemap [6, S, S, C] of an equirectangular map [H, W, C]: each texel is the mean over its area.

    A lamp smaller than a texel keeps its energy: texels are sampled as finely as the map itself is.
    """
    fine = max(1, math.ceil(image.shape[1] / (4 * size)))
    fine = 1 if fine == 1 else fine + 1
    values = sample_equirect(image, directions(size * fine).to(image.device))
    return shrink(values, fine)


def to_equirect(cube: Tensor, height: int, width: int) -> Tensor:
    """Equirectangular map [H, W, C] of a cubemap: each pixel is the mean over a few lookups within it."""
    fine = max(1, math.ceil(4 * cube.shape[1] / width))
    values = sample(cube, equirect_directions(height * fine, width * fine).to(cube.device))
    return values.reshape(height, fine, width, fine, -1).mean((1, 3))


def shrink(cube: Tensor, factor: int) -> Tensor:
    """A cubemap reduced by an integer factor, texels weighted by their solid angle: the energy stays."""
    size = cube.shape[1]
    if factor == 1:
        return cube
    small = size // factor
    weight = solid_angles(size).to(cube)
    total = weight.reshape(small, factor, small, factor).sum((1, 3))
    blocks = (cube * weight[None, ..., None]).reshape(6, small, factor, small, factor, -1).sum((2, 4))
    return blocks / total[None, ..., None]


def turned(cube: Tensor, rotation: Tensor) -> Tensor:
    """The light after turning the world of light by ``rotation`` [3, 3]: what came from d now comes from R d."""
    dirs = directions(cube.shape[1]).to(cube) @ rotation.to(cube)  # rows: R^T d
    return sample(cube, dirs)
