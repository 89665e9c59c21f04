"""Which kernels serve a call: by device, number of channels and alignment."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
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


def precision() -> str:
    """``"fp32"`` (default) or ``"fp16"``: the environment variable ``FEATURESPLAT_PRECISION``."""
    wanted = os.environ.get("FEATURESPLAT_PRECISION") or "fp32"
    if wanted not in ("fp32", "fp16"):
        raise FeaturesplatError(f"FEATURESPLAT_PRECISION: got '{wanted}'", "Use fp32 or fp16.")
    return wanted


def half_scale(rows: Tensor | None) -> Tensor | None:
    """[2] the power of two that brings the greatest feature near 1, and its inverse; None without features."""
    if rows is None or rows.numel() == 0:
        return None
    most = torch.nan_to_num(rows, nan=0.0, posinf=0.0, neginf=0.0).abs().amax().clamp(1e-30, 1e30)
    exponent = torch.floor(torch.log2(most))
    return torch.stack([torch.exp2(-exponent), torch.exp2(exponent)])
