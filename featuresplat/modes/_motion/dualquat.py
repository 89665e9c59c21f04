"""Rigid motions as unit dual quaternions, differentiable, any floating dtype.

A dual quaternion q + eps d is stored as [..., 8]: the rotation q (wxyz, unit), then d = (0, t) q / 2 with the
translation t. Blending weighted sums and normalising them stays rigid, where blended matrices shrink what they move
(Kavan, Collins, Zara and O'Sullivan, "Geometric Skinning with Approximate Dual Quaternion Blending", 2008).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SIGNS = (1.0, -1.0, -1.0, -1.0)


def quat_mul(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product of quaternions [..., 4], wxyz; rotations: first ``b``, then ``a``."""
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    return torch.stack(
        [
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ],
        dim=-1,
    )


def quat_conj(q: Tensor) -> Tensor:
    """The conjugate; of a unit quaternion the inverse rotation."""
    return q * q.new_tensor(_SIGNS)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """Vectors [..., 3] turned by unit quaternions [..., 4]: v + 2 w (u x v) + 2 u x (u x v)."""
    w, u = q[..., :1], q[..., 1:]
    u, v = torch.broadcast_tensors(u, v)
    across = 2 * torch.linalg.cross(u, v)
    return v + w * across + torch.linalg.cross(u, across)


def from_rigid(quats: Tensor, translations: Tensor) -> Tensor:
    """[..., 8] of the motion x -> R x + t, quats [..., 4] wxyz (normalised here), translations [..., 3]."""
    q = normalize(quats, dim=-1)
    pure = torch.cat([torch.zeros_like(translations[..., :1]), translations], dim=-1)
    return torch.cat([q, 0.5 * quat_mul(pure, q)], dim=-1)


def to_rigid(dq: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation quats [..., 4] and translations [..., 3] of unit dual quaternions."""
    q, d = dq[..., :4], dq[..., 4:]
    return q, 2 * quat_mul(d, quat_conj(q))[..., 1:]


def mul(a: Tensor, b: Tensor) -> Tensor:
    """The motion ``b`` followed by ``a``."""
    real = quat_mul(a[..., :4], b[..., :4])
    return torch.cat([real, quat_mul(a[..., :4], b[..., 4:]) + quat_mul(a[..., 4:], b[..., :4])], dim=-1)


def inverse(dq: Tensor) -> Tensor:
    """The motion back, of unit dual quaternions."""
    return torch.cat([quat_conj(dq[..., :4]), quat_conj(dq[..., 4:])], dim=-1)


def unit(dq: Tensor) -> Tensor:
    """The unit dual quaternion of any with a real part: divided by its norm, the dual part made orthogonal."""
    norm = dq[..., :4].norm(dim=-1, keepdim=True).clamp_min(1e-12)
    real, dual = dq[..., :4] / norm, dq[..., 4:] / norm
    return torch.cat([real, dual - (real * dual).sum(-1, keepdim=True) * real], dim=-1)


def apply(dq: Tensor, points: Tensor) -> Tensor:
    """Points [..., 3] moved by unit dual quaternions [..., 8]."""
    q, t = to_rigid(dq)
    return rotate(q, points) + t


def blend(dqs: Tensor, weights: Tensor) -> Tensor:
    """Unit dual quaternions [..., 8] of K motions [..., K, 8] under weights [..., K].

    q and -q are the same rotation: all are first turned to the side of the first one.
    """
    side = torch.where((dqs[..., :4] * dqs[..., :1, :4]).sum(-1) < 0, -1.0, 1.0).to(weights.dtype)
    return unit(((weights * side)[..., None] * dqs).sum(-2))


def identity(*shape: int, like: Tensor) -> Tensor:
    """[*shape, 8] motions that leave everything in its place."""
    out = like.new_zeros(*shape, 8)
    out[..., 0] = 1
    return out


def kabsch(source: Tensor, target: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The rigid motions that carry K points onto others best, weighted least squares (Kabsch 1976).

    Args:
        source, target: [..., K, 3]. weights: [..., K], not negative.

    Returns:
        Rotation matrices [..., 3, 3] and translations [..., 3]; the identity rotation where fewer than two points
        have weight (a rotation about the line of all points is left at its least angle).
    """
    w = (weights / weights.sum(-1, keepdim=True).clamp_min(1e-12))[..., None]
    a, b = (w * source).sum(-2, keepdim=True), (w * target).sum(-2, keepdim=True)
    cov = ((source - a) * w).transpose(-1, -2) @ (target - b)  # [..., 3, 3]
    # What the points do not decide, a touch of the identity does.
    spread = (w * (source - a) ** 2).sum((-1, -2))[..., None, None].clamp_min(1e-20)
    cov = cov + 1e-4 * spread * torch.eye(3, dtype=cov.dtype, device=cov.device)
    U, _, Vh = torch.linalg.svd(cov)
    sign = torch.linalg.det(U @ Vh).sign()
    fix = torch.stack([torch.ones_like(sign), torch.ones_like(sign), sign], dim=-1)
    R = (Vh.transpose(-1, -2) * fix[..., None, :]) @ U.transpose(-1, -2)
    return R, b[..., 0, :] - (R @ a[..., 0, :, None])[..., 0]
