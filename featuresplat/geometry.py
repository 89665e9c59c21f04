"""Pure maths on rotations, covariances and spherical harmonics, in torch, differentiable, any floating dtype."""

from __future__ import annotations

import torch
from torch import Tensor


def quat_to_rotmat(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4], wxyz, normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(quats.shape[:-1] + (3, 3))


def rotmat_to_quat(rotmats: Tensor) -> Tensor:
    """Quaternions [..., 4], wxyz with w >= 0, of rotation matrices [..., 3, 3].

    The eigenvector of the largest eigenvalue of Bar-Itzhack's 4x4 matrix (2000): stable for every angle, and the
    nearest rotation when the input is slightly off.
    """
    m = rotmats
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (tuple(r.unbind(-1)) for r in m.unbind(-2))
    rows = [
        xx + yy + zz, zy - yz, xz - zx, yx - xy,
        zy - yz, xx - yy - zz, xy + yx, xz + zx,
        xz - zx, xy + yx, yy - xx - zz, yz + zy,
        yx - xy, xz + zx, yz + zy, zz - xx - yy,
    ]  # fmt: skip
    K = torch.stack(rows, dim=-1).reshape(m.shape[:-2] + (4, 4)) / 3
    q = torch.linalg.eigh(K)[1][..., -1]
    return torch.where(q[..., :1] < 0, -q, q)


def quat_multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product a b of quaternions [..., 4], wxyz: first turn by b, then by a."""
    w, v, s, u = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    v, u = torch.broadcast_tensors(v, u)
    return torch.cat([w * s - (v * u).sum(-1, keepdim=True), w * u + s * v + torch.linalg.cross(v, u)], dim=-1)


def quat_scale_to_covar(quats: Tensor, scales: Tensor) -> Tensor:
    """Covariances R S S^T R^T, [..., 3, 3], of wxyz quaternions [..., 4] and standard deviations [..., 3]."""
    M = quat_to_rotmat(quats) * scales[..., None, :]
    return M @ M.transpose(-1, -2)


def sh_bases(directions: Tensor, degree: int) -> Tensor:
    """Real spherical harmonics [..., (degree+1)^2] of unit directions [..., 3], degree 0 to 4.

    Order and signs as every Gaussian-splatting file has them: l ascending, m from -l to l, with the
    Condon-Shortley sign (so the first band is -y, z, -x). Polynomials after Sloan, "Efficient Spherical
    Harmonic Evaluation" (JCGT 2013).
    """
    x, y, z = directions.unbind(-1)
    out = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        c = 0.4886025119029199
        out += [-c * y, c * z, -c * x]
    xx, yy, zz = x * x, y * y, z * z
    c1, s1 = x, y
    c2, s2 = xx - yy, 2 * x * y  # Re, Im of (x + iy)^2
    if degree >= 2:
        out += [
            0.5462742152960396 * s2,
            -1.0925484305920792 * y * z,
            0.31539156525252005 * (3 * zz - 1),
            -1.0925484305920792 * x * z,
            0.5462742152960396 * c2,
        ]
    c3, s3 = x * c2 - y * s2, x * s2 + y * c2
    if degree >= 3:
        out += [
            -0.5900435899266435 * s3,
            1.445305721320277 * z * s2,
            -0.4570457994644658 * s1 * (5 * zz - 1),
            0.3731763325901154 * z * (5 * zz - 3),
            -0.4570457994644658 * c1 * (5 * zz - 1),
            1.445305721320277 * z * c2,
            -0.5900435899266435 * c3,
        ]
    if degree >= 4:
        c4, s4 = x * c3 - y * s3, x * s3 + y * c3
        out += [
            0.6258357354491761 * s4,
            -1.7701307697799304 * z * s3,
            0.47308734787878004 * s2 * (7 * zz - 1),
            -0.6690465435572892 * s1 * z * (7 * zz - 3),
            0.10578554691520431 * (zz * (35 * zz - 30) + 3),
            -0.6690465435572892 * c1 * z * (7 * zz - 3),
            0.47308734787878004 * c2 * (7 * zz - 1),
            -1.7701307697799304 * z * c3,
            0.6258357354491761 * c4,
        ]
    return torch.stack(out, dim=-1)


def sh_to_rgb(sh: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Colours max(0, 0.5 + sum_k sh_k Y_k(direction)), [..., 3], from sh [..., K, 3] and unit directions [..., 3]."""
    bases = sh_bases(directions, degree)
    return ((sh[..., : bases.shape[-1], :] * bases[..., None]).sum(-2) + 0.5).clamp_min(0.0)
