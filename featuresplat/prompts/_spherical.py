"""Spherical-harmonic colours under rotations and affine maps of colour."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.geometry import sh_bases
from featuresplat.types import SH_C0


def rotation_of_bands(rotation: Tensor, degree: int) -> Tensor:
    """[K, K] float64, K = (degree+1)^2: coefficients c become M c when the function turns by ``rotation`` [3, 3].

    The harmonics of one band span a space that rotations map to itself, so M is found band by band from what it has
    to do: c' . Y(d) = c . Y(R^T d) at enough directions d.
    """
    count = (degree + 1) ** 2
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(
        torch.randn(8 * count, 3, generator=generator, dtype=torch.float64), dim=1
    )
    here = sh_bases(directions, degree)
    turned = sh_bases(directions @ rotation.double().cpu(), degree)  # rows are R^T d
    out = torch.zeros(count, count, dtype=torch.float64)
    for band in range(degree + 1):
        rows = slice(band * band, (band + 1) ** 2)
        out[rows, rows] = torch.linalg.lstsq(here[:, rows], turned[:, rows]).solution
    return out


def turned(shN: Tensor, rotation: Tensor) -> Tensor:
    """shN [N, K-1, 3] of a function turned by ``rotation`` [3, 3]."""
    degree = round((shN.shape[1] + 1) ** 0.5) - 1
    if degree == 0:
        return shN
    matrix = rotation_of_bands(rotation, degree)[1:, 1:].to(shN)
    return torch.einsum("kj,njc->nkc", matrix, shN)


def recolored(sh0: Tensor, shN: Tensor, matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients after c -> matrix c + offset on the colours; exact in every view, as the map is affine."""
    matrix, offset = matrix.to(sh0), offset.to(sh0)
    plain = 0.5 + SH_C0 * sh0
    return (plain @ matrix.T + offset - 0.5) / SH_C0, shN @ matrix.T
