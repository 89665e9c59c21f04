"""Small corrections of the cameras' poses, learned with the scene."""

from __future__ import annotations

import torch
from torch import Tensor


class PoseRefiner:
    """A rigid motion per training camera, applied in front of its world-to-camera matrix.

    Attributes:
        twist: [M, 6] rotation vector (radians) and translation (units of the training frame), zero at the start.
    """

    def __init__(self, count: int, device: torch.device | str = "cpu"):
        self.twist = torch.nn.Parameter(torch.zeros(count, 6, device=device))

    def apply(self, viewmat: Tensor, index: int) -> Tensor:
        """The refined world-to-camera matrix [4, 4] of camera ``index``."""
        return rigid(self.twist[index]) @ viewmat


def rigid(twist: Tensor) -> Tensor:
    """[4, 4] rotation exp([w]) and translation t of a vector (w, t) [6]; differentiable at zero."""
    w, t = twist[:3], twist[3:]
    zero = torch.zeros_like(w[0])
    skew = torch.stack([zero, -w[2], w[1], w[2], zero, -w[0], -w[1], w[0], zero]).reshape(3, 3)
    top = torch.cat([torch.linalg.matrix_exp(skew), t[:, None]], dim=1)
    return torch.cat([top, torch.tensor([[0.0, 0.0, 0.0, 1.0]], dtype=top.dtype, device=top.device)])
