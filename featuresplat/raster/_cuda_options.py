"""Which kernels serve a call: by device, number of channels and alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.raster._cuda_frame import Frame

FEW = 16
"""Up to so many channels are blended pixel by pixel beside the colours; more go to the matrix units."""


def matrix_units(frame: Frame) -> bool:
    """Whether the device multiplies 16-bit and tf32 matrices."""
    return frame.gpu.arch >= 80


def aligned(dim: int, *tensors: Tensor | None) -> int:
    """1 when rows of ``dim`` floats can be read 16 bytes at a time."""
    return int(dim % 4 == 0 and all(t is None or t.data_ptr() % 16 == 0 for t in tensors))


def deterministic() -> bool:
    """Whether sums must be the same bits from run to run: ``torch.use_deterministic_algorithms(True)``."""
    return torch.are_deterministic_algorithms_enabled()


def half_scale(rows: Tensor | None) -> Tensor | None:
    """[2] the power of two that brings the greatest feature near 1, and its inverse; None without features."""
    if rows is None or rows.numel() == 0:
        return None
    most = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0).abs().amax().clamp(1e-30, 1e30)
    exponent = torch.floor(torch.log2(most))
    return torch.stack([torch.exp2(-exponent), torch.exp2(exponent)])


def combinations(arch: int) -> list[tuple[str, dict[str, int]]]:
    """(file, constants) of the kernels that an architecture uses: not all of them, but one of each shape."""
    found: list[tuple[str, dict[str, int]]] = [(f, {}) for f in ("project.cu", "tiles.cu", "gather.cu", "queries.cu")]
    found += [("blend.cu", {"RGB": 1, "CHANNELS": c}) for c in (0, 3, 8, FEW)]
    matrix = int(arch >= 80)
    if matrix:
        found += [("features.cu", {"QUADS": q, "HALF": h, "ALIGNED": 1}) for q in (1, 2) for h in (0, 1)]
        found += [("features.cu", {"QUADS": 2, "HALF": 0, "ALIGNED": 0})]
    else:
        found += [("blend.cu", {"RGB": 0, "CHANNELS": FEW})]
    for tiles in (2, 4) if matrix else (1,):
        lift = {"TILES": tiles, "STOPS": 1, "POWER": 1, "WEIGHTS": 0, "FIXED": 0, "MATRIX": matrix, "ALIGNED": 1}
        found += [("lift.cu", lift), ("lift.cu", lift | {"STOPS": 0, "POWER": 2, "WEIGHTS": 1})]
        found += [("lift.cu", lift | {"ALIGNED": 0, "FIXED": 1})]
    backward = {
        "COLORS": 1, "CHANNELS": 0, "WIDE": 0, "GEOMETRY": 1, "FEATURES_MOVE": 0, "ABSOLUTE": 0, "MATRIX": matrix,
        "BATCH": 64, "ALIGNED": 1,
    }  # fmt: skip
    found += [("backward.cu", backward), ("backward.cu", backward | {"ABSOLUTE": 1})]
    found += [("backward.cu", backward | {"WIDE": 1, "FEATURES_MOVE": 1})]
    found += [("backward.cu", backward | {"CHANNELS": 3, "FEATURES_MOVE": 1})]
    found += [("backward.cu", backward | {"CHANNELS": FEW, "FEATURES_MOVE": 1, "BATCH": 32})]
    return found
