"""Directions that tests of shapes and materials share."""

from __future__ import annotations

import math

import torch


def spiral(count: int) -> torch.Tensor:
    """[N, 3] unit directions, evenly spread."""
    k = torch.arange(count) + 0.5
    z, phi = 1 - 2 * k / count, math.pi * (3 - math.sqrt(5)) * k
    return torch.stack([(1 - z * z).sqrt() * phi.cos(), (1 - z * z).sqrt() * phi.sin(), z], 1)
