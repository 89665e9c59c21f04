"""How normals turn along the surface, so that a pixel's normal is that of the place it shows.

A Gaussian covers what lies a standard deviation from its centre, and the one in front covers more than its share: the
mean of the centres' normals is that of a place nearer to the camera, on a ball four degrees off where Gaussians are a
tenth of its radius. With the shape operator A of each, the normal at x is n + A (x - mean).
"""

from __future__ import annotations

import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import functional as F

from featuresplat.shading.monte_carlo import tangent_frame

NEIGHBOURS = 16
REACH = 1.5
"""Distance, in mean distances to the neighbours, at which one has little say."""
ALIKE = 0.6
"""Cosine between two normals up to which there is an edge between them."""
ASIDE = 0.5
"""Distance from the tangent plane, in the same unit, at which a neighbour has little say: behind a thin wall."""
FEW = 0.05
"""Weight of no curvature."""
MOST = 0.7
"""Largest turn of a normal within a standard deviation."""
_FIRST, _SECOND = (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)


@torch.no_grad()
def curvature(means: Tensor, normals: Tensor, scales: Tensor) -> Tensor:
    """[N, 6] upper triangle of the symmetric A [3, 3] by which normals turn: n(x) = n + A (x - mean).

    By weighted least squares over the neighbours, in the tangent plane.

    Args:
        means: [N, 3]. normals: [N, 3] unit, of one side. scales: [N, 3] standard deviations.
    """
    xyz = means.detach().cpu().numpy()
    if len(xyz) < 3:
        return means.new_zeros(len(xyz), 6)
    distance, near = (torch.from_numpy(t) for t in KDTree(xyz).query(xyz, k=min(NEIGHBOURS + 1, len(xyz)), workers=-1))
    distance, near = distance[:, 1:].to(means), near[:, 1:].to(means.device)
    unit = distance.mean(1).clamp_min(1e-12)
    frame = tangent_frame(normals)[:, :2]  # [N, 2, 3]
    away = (means[near] - means[:, None]) / unit[:, None, None]
    turn = normals[near] - normals[:, None]
    alike = ((normals[near] * normals[:, None]).sum(-1) - ALIKE) / (1 - ALIKE)
    aside = (away * normals[:, None]).sum(-1)
    weight = alike.clamp(0, 1) * torch.exp(-0.5 * ((distance / unit[:, None] / REACH) ** 2 + (aside / ASIDE) ** 2))
    u, v = (away @ frame.transpose(1, 2)).unbind(-1)
    p, q = (turn @ frame.transpose(1, 2)).unbind(-1)
    # p = a u + b v, q = b u + c v
    uu, uv, vv = ((weight * t).sum(1) for t in (u * u, u * v, v * v))
    none = torch.zeros_like(uu)
    squares = torch.stack([uu, uv, none, uv, uu + vv, uv, none, uv, vv], -1).reshape(-1, 3, 3)
    right = torch.stack([(weight * t).sum(1) for t in (p * u, p * v + q * u, q * v)], -1)
    a, b, c = torch.linalg.solve(squares + FEW * torch.eye(3).to(squares), right).unbind(-1)
    size = (a * a + 2 * b * b + c * c).sqrt() / unit * scales.amax(1)
    flat = torch.stack([a, b, b, c], -1).reshape(-1, 2, 2) / unit[:, None, None]
    whole = frame.transpose(1, 2) @ (flat * (MOST / size.clamp_min(MOST))[:, None, None]) @ frame
    return whole[:, _FIRST, _SECOND]


def turned(normals: Tensor, bend: Tensor, away: Tensor) -> Tensor:
    """[P, 3] unit: the normals [P, 3], need not be unit, with A [P, 6], at ``away`` [P, 3] from the mean."""
    a, b, c, d, e, f = bend.unbind(-1)
    x, y, z = away.unbind(-1)
    turn = torch.stack([a * x + b * y + c * z, b * x + d * y + e * z, c * x + e * y + f * z], -1)
    turn = turn * (MOST / turn.norm(dim=-1, keepdim=True).clamp_min(MOST))
    return F.normalize(normals + turn, dim=-1)
