"""Start points from posed photographs alone: plane sweep along random rays (Collins 1996; Gallup et al. 2007)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from featuresplat.types import Cameras, PointCloud

SIDE = 200
"""Images are reduced so that their longer side has about so many pixels."""
PLANES = 96
NEAR, FAR = 0.15, 25.0
"""Depths looked at, in camera extents; even in inverse depth."""
REACH = 2
"""Half the patch, pixels: patches are (2 REACH + 1) wide."""
NEIGHBOURS, AGREEING = 4, 2
"""Views compared with, and how many of them must agree (others may be occluded)."""
SCORE = 0.85
"""Mean correlation of the agreeing views from which a depth is believed."""


def sweep(image: Callable[[int], Tensor], cameras: Cameras, count: int, generator: torch.Generator) -> PointCloud:
    """Points on visible surfaces, at the depth where patches of neighbouring photographs look alike.

    Along the ray of a random textured pixel, each hypothetical depth carries a small patch into the neighbouring
    views; the zero-mean normalised cross-correlation of what is seen there tells how well the depth fits.

    Args:
        image: photograph of camera i as uint8 [H, W, 3].
        cameras: C >= 2 cameras, in the training frame (camera extent 1).
        count: rays tried; a part of them gives a point.

    Returns:
        The believed points, possibly none, coloured by their photographs.
    """
    if len(cameras) < 2:
        return PointCloud(torch.zeros(0, 3), torch.zeros(0, 3))
    small = [_reduced(image(i)) for i in range(len(cameras))]
    sizes = [(s.shape[2], s.shape[1]) for s in small]
    cameras = cameras.resized([w for w, _ in sizes], [h for _, h in sizes]).to(torch.float32)
    gray = [s.mean(0, keepdim=True) for s in small]
    parts, threads = [], torch.get_num_threads()
    # Thousands of small operations: torch's threads would spend most of the time waiting for each other.
    torch.set_num_threads(1)
    try:
        for i in range(len(cameras)):
            others = _neighbours(cameras, i)
            pixels = _textured(gray[i][0], max(1, count // len(cameras)), generator)
            if len(others) and len(pixels):
                parts.append(_sweep_view(small, gray, cameras, i, others, pixels))
    finally:
        torch.set_num_threads(threads)
    if not parts:
        return PointCloud(torch.zeros(0, 3), torch.zeros(0, 3))
    return PointCloud(torch.cat([p.xyz for p in parts]), torch.cat([p.rgb for p in parts]))


def _sweep_view(small, gray, cameras: Cameras, i: int, others: list[int], pixels: Tensor) -> PointCloud:
    """The believed points on the rays of ``pixels`` [M, 2] (column, row; centres) of camera ``i``."""
    offsets = torch.arange(-REACH, REACH + 1, dtype=torch.float32)
    patch = torch.stack(torch.meshgrid(offsets, offsets, indexing="xy"), -1).reshape(-1, 2)  # [P, 2]
    at = pixels[:, None] + patch  # [M, P, 2]
    own = _normalised(_sample(gray[i], at))  # [M, P]
    K, c2w = cameras.Ks[i], cameras.c2w[i]
    rays = torch.cat([(at - K[:2, 2]) / torch.stack([K[0, 0], K[1, 1]]), torch.ones_like(at[..., :1])], -1)
    rays = rays @ c2w[:3, :3].T  # [M, P, 3], unit camera z
    scores = torch.empty(PLANES, len(others), len(pixels))
    depths = 1.0 / torch.linspace(1.0 / NEAR, 1.0 / FAR, PLANES)
    for d, depth in enumerate(depths):
        points = c2w[:3, 3] + rays * depth
        for o, j in enumerate(others):
            scores[d, o] = _agreement(gray[j], cameras.viewmats[j], cameras.Ks[j], points, own)
    best = scores.sort(dim=1, descending=True).values[:, : min(AGREEING, len(others))].mean(1)  # [PLANES, M]
    score, plane = best.max(0)
    inside = (plane > 0) & (plane < PLANES - 1)
    keep = (score > SCORE) & inside
    centre = len(patch) // 2
    xyz = c2w[:3, 3] + rays[:, centre] * depths[plane][:, None]
    rgb = _sample(small[i], pixels[:, None])[..., 0].T if len(pixels) else torch.zeros(0, 3)
    return PointCloud(xyz[keep], rgb[keep])


def _agreement(gray: Tensor, viewmat: Tensor, K: Tensor, points: Tensor, own: Tensor) -> Tensor:
    """Correlation [M] of the patches seen at ``points`` [M, P, 3] with ``own`` [M, P]; -1 out of view."""
    local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
    z = local[..., 2]
    at = local[..., :2] / z.clamp_min(1e-6)[..., None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    h, w = gray.shape[1:]
    seen = ((z > 1e-6) & (at >= 0).all(-1) & (at[..., 0] < w) & (at[..., 1] < h)).all(-1)
    return torch.where(seen, (own * _normalised(_sample(gray, at))).sum(-1), -1.0)


def _sample(image: Tensor, at: Tensor) -> Tensor:
    """Bilinear samples of ``image`` [C, H, W] at pixels [M, P, 2]: [M, P] for one channel, else [C, M, P]."""
    h, w = image.shape[1:]
    grid = at / torch.tensor([w, h]) * 2 - 1
    out = torch.nn.functional.grid_sample(image[None], grid[None], align_corners=False, padding_mode="border")[0]
    return out[0] if len(image) == 1 else out


def _normalised(patches: Tensor) -> Tensor:
    """Zero mean and unit length over the last axis; flat patches become zero."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(0.02)


def _textured(gray: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Centres [M, 2] of random pixels, drawn by the strength of the gradient, away from the border."""
    h, w = gray.shape
    if min(h, w) <= 2 * REACH + 2:
        return torch.zeros(0, 2)
    strength = torch.zeros(h, w)
    strength[1:-1, 1:-1] = (gray[1:-1, 2:] - gray[1:-1, :-2]).abs() + (gray[2:, 1:-1] - gray[:-2, 1:-1]).abs()
    inner = torch.zeros(h, w)
    inner[REACH:-REACH, REACH:-REACH] = strength[REACH:-REACH, REACH:-REACH] + 0.005
    chosen = torch.multinomial(inner.flatten(), min(count, int((inner > 0).sum())), generator=generator)
    return torch.stack([chosen % w, chosen // w], 1).float() + 0.5


def _neighbours(cameras: Cameras, i: int) -> list[int]:
    """The nearest views that look the same way from another place."""
    positions, forward = cameras.positions, cameras.viewmats[:, 2, :3]
    distance = (positions - positions[i]).norm(dim=1)
    same_way = (forward @ forward[i] > 0.6) & (distance > 0.02)
    return [int(j) for j in torch.where(same_way, distance, torch.inf).argsort()[:NEIGHBOURS] if same_way[j]]


def _reduced(image: Tensor) -> Tensor:
    """[3, h, w] floats in 0..1, the longer side about SIDE."""
    planes = image.permute(2, 0, 1).float() / 255.0
    factor = max(1, round(max(image.shape[:2]) / SIDE))
    return torch.nn.functional.avg_pool2d(planes[None], factor)[0] if factor > 1 else planes
