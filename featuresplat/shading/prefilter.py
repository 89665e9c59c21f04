"""Split sum (Karis 2013): the environment convolved with the GGX lobe of six roughnesses, once for all pixels.

The lobe of a level is taken with normal = view = reflection: the weight of light from an angle gamma off the lobe's
axis is D(gamma / 2) cos gamma. Each level is a fixed linear map of the cubemap's texels, so a light that is being
fitted is filtered, and differentiated, by sparse matrix products. A lobe is cut in two by a smooth window: its core is
summed over fine texels, its long tail over a coarse cubemap, at coarse places.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.shading import cubemap, ggx

COARSE = 16
"""Pixels along a side of the cubemap that tails are summed over."""


@dataclass(frozen=True)
class Level:
    """Roughness, size of its cubemap (at most), size of the cubemap that its core is summed over, the core's angle."""

    roughness: float
    size: int
    source: int
    core: float


# Cores reach to about five half widths of the lobe (the half width is about 1.29 alpha).
LEVELS = (
    Level(0.08, 1024, 1024, 0.0),
    Level(0.18, 64, 64, 10.0),
    Level(0.3, 32, 32, 30.0),
    Level(0.45, 16, 32, 60.0),
    Level(0.65, 16, 16, 180.0),
    Level(1.0, 16, 16, 180.0),
)
"""The first is the environment itself: its texels are about as wide as the lobe of that roughness."""
SMALLEST, LARGEST = 32, 256


@dataclass(eq=False)
class Operator:
    """A sparse matrix with its transpose, both CSR, applied to [n, C] rows; differentiable in them."""

    forward: Tensor
    backward: Tensor

    @staticmethod
    def of(matrix: csr_array) -> Operator:
        """From scipy's form, float32."""
        return Operator(to_torch_csr(matrix), to_torch_csr(csr_array(matrix.T)))

    def to(self, device: torch.device) -> Operator:
        return Operator(self.forward.to(device), self.backward.to(device))

    def __call__(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self)  # pyright: ignore[reportReturnType]


def to_torch_csr(matrix: csr_array) -> Tensor:
    """The same matrix in torch's form, indices of each row ascending; sorts those of ``matrix``."""
    matrix.sort_indices()
    indptr, indices, data = (_vector(a) for a in (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return torch.sparse_csr_tensor(indptr, indices, data, matrix.shape, check_invariants=True)


def _vector(values: np.ndarray) -> Tensor:
    """[n] of stride 1. NumPy leaves any stride on arrays of no or one element, which torch's sparse tensors refuse."""
    return torch.from_numpy(np.ascontiguousarray(values)).as_strided(values.shape, (1,))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, operator):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.operator = operator
        return operator.forward @ x

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return ctx.operator.backward @ grad.contiguous(), None


class Prefilter:
    """Filters a cubemap [6, S, S, 3] into an atlas [T, 3] of all levels, and looks it up.

    Attributes:
        size: S.
        sizes: of the levels' cubemaps.
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        if not SMALLEST <= size <= LARGEST or size & (size - 1):
            raise FeaturesplatError(
                f"light_size: expected a power of two from {SMALLEST} to {LARGEST}, got {size}", "128 is usual."
            )
        self.size, self.device = size, torch.device(device)
        self.sizes = [min(level.size, size) for level in LEVELS]
        counts = [6 * (s + 2) ** 2 for s in self.sizes]
        starts = [sum(counts[:k]) for k in range(len(counts))]
        self._sizes = torch.tensor(self.sizes, device=self.device)
        self._starts = torch.tensor(starts, device=self.device)
        self._roughness = torch.tensor([level.roughness for level in LEVELS], device=self.device)
        self._cores, self._tails = _operators(size)
        self._cores = [None if c is None else c.to(self.device) for c in self._cores]
        self._tails = self._tails.to(self.device)

    def atlas(self, cube: Tensor) -> Tensor:
        """[T, 3]: the padded cubemaps of all levels one after the other; differentiable."""
        coarse = cubemap.shrink(cube, self.size // COARSE).reshape(-1, cube.shape[-1])
        tails = (self._tails @ coarse).reshape(len(LEVELS) - 1, 6, COARSE, COARSE, -1)
        parts = [cubemap.padded(cube)]
        for k, core in enumerate(self._cores):
            size = self.sizes[k + 1]
            source = cubemap.shrink(cube, self.size // min(LEVELS[k + 1].source, self.size))
            level = tails[k]
            if core is not None:
                if size != COARSE:
                    level = cubemap.sample(level, cubemap.directions(size).to(level))
                level = level + core(source.reshape(-1, source.shape[-1])).reshape(6, size, size, -1)
            parts.append(cubemap.padded(level))
        return torch.cat(parts)

    def lookup(self, atlas: Tensor, dirs: Tensor, roughness: Tensor) -> Tensor:
        """Filtered radiance [P, 3] in directions [P, 3] at roughnesses [P]; differentiable in all three."""
        r = roughness.clamp(float(self._roughness[0]), 1.0)
        upper = torch.searchsorted(self._roughness, r.detach(), right=True).clamp(1, len(LEVELS) - 1)
        low, high = self._roughness[upper - 1], self._roughness[upper]
        part = (r - low) / (high - low)
        face, s, t = cubemap.locate(dirs)
        index, weights = [], []
        for level, share in ((upper - 1, 1 - part), (upper, part)):
            where, bilinear = _corners_of(face, s, t, self._sizes[level])
            index.append(where + self._starts[level][:, None])
            weights.append(bilinear * share[:, None])
        return cubemap.weighted_rows(atlas, torch.cat(index, 1), torch.cat(weights, 1))


def _corners_of(face: Tensor, s: Tensor, t: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """`cubemap.corners` where every place has a size [P] of its own."""
    x, y = s * size + 0.5, t * size + 0.5
    col = torch.minimum(x.detach().long(), size).clamp_min(0)
    row = torch.minimum(y.detach().long(), size).clamp_min(0)
    fx, fy = x - col, y - row
    gx, gy = 1 - fx, 1 - fy
    wide = size + 2
    first = (face * wide + row) * wide + col
    index = torch.stack([first, first + 1, first + wide, first + wide + 1], dim=1)
    return index, torch.stack([gx * gy, fx * gy, gx * fy, fx * fy], dim=1)


def lobe(cosine: Tensor, roughness: float) -> Tensor:
    """Weight of light at an angle of that cosine off the lobe's axis, not normalised."""
    half = ((1 + cosine) / 2).clamp(0, 1).sqrt()
    return ggx.distribution(half, ggx.alpha_of(torch.tensor(roughness).to(cosine))) * cosine.clamp_min(0)


def _window(cosine: Tensor, core: float) -> Tensor:
    """1 in the inner half of the core's angle (degrees), 0 outside of it, smooth in between."""
    if core >= 180:
        return torch.zeros_like(cosine)  # all of it is tail
    angle = torch.rad2deg(torch.acos(cosine.clamp(-1, 1)))
    inside = ((core - angle) / (0.5 * core)).clamp(0, 1)
    return inside * inside * (3 - 2 * inside)


@lru_cache(maxsize=4)
def _operators(size: int) -> tuple[list[Operator | None], Tensor]:
    """The cores of all levels but the first, and one dense matrix [levels * 6 COARSE^2, 6 COARSE^2] of all tails."""
    coarse = cubemap.directions(COARSE).reshape(-1, 3)
    area = cubemap.solid_angles(COARSE).repeat(6, 1, 1).reshape(-1)
    cosine = coarse @ coarse.T
    cores: list[Operator | None] = []
    tails = []
    for level in LEVELS[1:]:
        out, source = min(level.size, size), min(level.source, size)
        tail = lobe(cosine, level.roughness) * (1 - _window(cosine, level.core)) * area
        if level.core >= 180:
            tails.append(tail / tail.sum(1, keepdim=True))
            cores.append(None)
            continue
        rows, cols, values = _core_entries(level, out, source)
        total = torch.zeros(6 * out * out).index_add_(0, rows, values)
        mass = tail.sum(1).reshape(6, COARSE, COARSE, 1)
        total = total + cubemap.sample(mass, cubemap.directions(out)).reshape(-1)
        entries = ((values / total[rows]).numpy(), (rows.int().numpy(), cols.int().numpy()))
        cores.append(Operator.of(csr_array(entries, (6 * out * out, 6 * source * source))))
        # Tails are looked up at the level's texels, so they are divided by the mass found there.
        here = cubemap.sample(total.reshape(6, out, out, 1), cubemap.directions(COARSE)).reshape(-1)
        tails.append(tail / here[:, None])
    return cores, torch.cat(tails)


def _core_entries(level: Level, out: int, source: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of a core, by blocks of texels so that far pairs are never looked at."""
    block = 4
    dirs, fine = cubemap.directions(out), cubemap.directions(source)
    area = cubemap.solid_angles(source)
    ours = cubemap.directions(out // block).reshape(-1, 3)
    theirs = cubemap.directions(source // block).reshape(-1, 3)
    # Half the diagonal of a block, at most: texels are largest in the middle of a face.
    reach = math.radians(level.core) + math.sqrt(2) * block * (1 / out + 1 / source)
    near = ours @ theirs.T > math.cos(min(reach, math.pi))
    row_ids, col_ids = _block_ids(out, block), _block_ids(source, block)
    flat_out, flat_fine = dirs.reshape(-1, 3), fine.reshape(-1, 3)
    flat_area = area.repeat(6, 1, 1).reshape(-1)
    limit = math.cos(math.radians(level.core))
    found = []
    for k in range(len(ours)):
        cols = col_ids[near[k]].reshape(-1)
        rows = row_ids[k]
        cosine = flat_out[rows] @ flat_fine[cols].T
        i, j = (cosine > limit).nonzero(as_tuple=True)
        found.append((rows[i], cols[j], cosine[i, j]))
    rows, cols, cosine = (torch.cat(part) for part in zip(*found, strict=True))
    return rows, cols, lobe(cosine, level.roughness) * _window(cosine, level.core) * flat_area[cols]


def _block_ids(size: int, block: int) -> Tensor:
    """[6 (size / block)^2, block^2] texels of each block."""
    n = size // block
    ids = torch.arange(6 * size * size).reshape(6, n, block, n, block)
    return ids.permute(0, 1, 3, 2, 4).reshape(-1, block * block)
