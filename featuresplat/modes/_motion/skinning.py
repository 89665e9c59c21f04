"""Gaussians that follow their nodes by dual-quaternion blending."""

from __future__ import annotations

from torch import Tensor

from featuresplat.modes._motion import dualquat


def motions(node_motions: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """[N, 8] the blended motion of each Gaussian.

    Args:
        node_motions: [M, 8] from the rest frame to some time. ids: [N, K] nodes. weights: [N, K], sum 1.
    """
    return dualquat.blend(node_motions[ids], weights)


def move(means: Tensor, quats: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Means [N, 3] and orientations [N, 4] after the motions [N, 8]."""
    turn, shift = dualquat.to_rigid(motion)
    return dualquat.rotate(turn, means) + shift, dualquat.quat_mul(turn, quats)
