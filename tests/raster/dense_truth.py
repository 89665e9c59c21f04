"""The operator a second time, as the papers write it: no tiles, no autograd, a plain loop over Gaussians.

What it is for: the reference backend must agree with it, and it tells how far each pixel is from a decision
(a threshold, the depth order) that single precision may take the other way.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from featuresplat.geometry import quat_to_rotmat
from featuresplat.raster import RasterSettings


class Dense(NamedTuple):
    """One camera in float64. ``weights`` [N, H, W]; ``margin`` [H, W], about a relative distance."""

    rgb: Tensor
    features: Tensor
    alpha: Tensor
    depth: Tensor
    weights: Tensor
    counted: Tensor  # [N, H, W] bool
    margin: Tensor


def project(scene, camera: int, s: RasterSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """means2d [N, 2], covariances [N, 2, 2] with eps2d, depths [N] and opacities [N]."""
    R, t = scene.viewmats[camera, :3, :3], scene.viewmats[camera, :3, 3]
    K = scene.Ks[camera]
    p = scene.means @ R.T + t
    x, y, z = p.unbind(-1)
    means2d = torch.stack([K[0, 0] * x / z + K[0, 2], K[1, 1] * y / z + K[1, 2]], -1)
    slopes = []
    for axis, (value, size) in enumerate(((x / z, scene.width), (y / z, scene.height))):
        f, c = K[axis, axis], K[axis, 2]
        tan_half = 0.5 * size / f
        slopes.append(torch.clamp(value, -(c / f + 0.3 * tan_half), (size - c) / f + 0.3 * tan_half))
    zero = torch.zeros_like(z)
    J = torch.stack(
        [K[0, 0] / z, zero, -K[0, 0] * slopes[0] / z, zero, K[1, 1] / z, -K[1, 1] * slopes[1] / z], -1
    ).reshape(-1, 2, 3)
    A = quat_to_rotmat(scene.quats) * scene.scales[:, None, :]
    cov = J @ R @ A @ A.mT @ R.T @ J.mT
    blurred = cov + s.eps2d * torch.eye(2, dtype=cov.dtype)
    opacities = scene.opacities
    if s.antialiased:
        opacities = opacities * (torch.det(cov) / torch.det(blurred)).clamp_min(0).sqrt()
    return means2d, blurred, z, opacities


def dense(scene, camera: int, settings: RasterSettings | None = None) -> Dense:
    """Blend ``scene`` (plain colours) into one camera, pixel by pixel in exact order."""
    s = settings or RasterSettings()
    scene = scene.to(torch.float64)
    means2d, cov, depths, opacities = project(scene, camera, s)
    h, w, n = scene.height, scene.width, len(depths)
    ys, xs = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    pixels = torch.stack([xs, ys], -1).double()
    left = torch.ones(h, w, dtype=torch.float64)
    live = torch.ones(h, w, dtype=torch.bool)
    margin = torch.full((h, w), torch.inf, dtype=torch.float64)
    last = torch.full((h, w), -torch.inf, dtype=torch.float64)
    weights, counted = torch.zeros(n, h, w, dtype=torch.float64), torch.zeros(n, h, w, dtype=torch.bool)
    for i in sorted(range(n), key=lambda i: (float(depths[i]), i)):
        if not s.near <= depths[i] <= s.far or opacities[i] < s.alpha_min:
            continue
        d = means2d[i] - pixels
        sigma = 0.5 * torch.einsum("hwi,ij,hwj->hw", d, torch.linalg.inv(cov[i]), d)
        raw = opacities[i] * torch.exp(-sigma)
        alpha = raw.clamp(max=s.alpha_max)
        inside, opaque = sigma <= 0.5 * s.extent**2, alpha >= s.alpha_min
        hit = live & inside & opaque
        after = left * (1 - alpha)
        stops = hit & (after <= s.transmittance_min)

        # Each distance counts only where its decision matters.
        for matters, distance in (
            (
                live & inside,
                (raw / s.alpha_min).log().abs() if s.alpha_min > 0 else torch.full_like(raw, 9.0),
            ),
            (live & opaque, (sigma - 0.5 * s.extent**2).abs()),
            (hit, (raw / s.alpha_max).log().abs()),
            (hit, 0.1 * (after / max(s.transmittance_min, 1e-30)).log().abs()),
            (hit, 100 * (depths[i] - last) / depths[i]),
        ):
            margin = torch.where(matters, torch.minimum(margin, distance), margin)
        last = torch.where(hit, depths[i], last)
        live &= ~stops
        hit &= ~stops
        weights[i] = torch.where(hit, alpha * left, 0)
        counted[i] = hit
        left = torch.where(hit, after, left)
    alpha = weights.sum(0)[..., None]
    background = scene.backgrounds[camera]
    depth = torch.einsum("n,nhw->hw", depths, weights)[..., None] / alpha.clamp_min(1e-300)
    return Dense(
        rgb=torch.einsum("nc,nhw->hwc", scene.colors, weights) + (1 - alpha) * background
        if scene.colors.ndim == 2
        else torch.zeros(h, w, 3),
        features=torch.einsum("nc,nhw->hwc", scene.features, weights),
        alpha=alpha,
        depth=torch.where(alpha > 0, depth, 0),
        weights=weights,
        counted=counted,
        margin=margin,
    )
