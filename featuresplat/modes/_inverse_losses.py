"""What the mode `inverse` is held to, beside the photographs' colours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featuresplat import modes
from featuresplat.config_inverse import InverseConfig
from featuresplat.modes import _inverse_pixels as px
from featuresplat.shading.progress import objective
from featuresplat.types import RenderOutput


def surface_terms(out: RenderOutput, centre: Tensor, rays: Tensor, c: InverseConfig) -> dict[str, Tensor]:
    """Of the radiance stage: Gaussians lie in one surface, along it.

    Args:
        out: with features [1, H, W, 6]: normals 3, plane distance, z, z^2.
        centre, rays: as `_inverse_pixels.view_rays` gives them.
    """
    assert out.features is not None
    features, alpha, depth, terms = out.features[0], out.alpha[0], out.depth[0], {}
    if c.normal_weight:
        z = px.plane_depth(features[..., :3], features[..., 3:4], rays, depth[..., 0])
        terms["normal"] = c.normal_weight * _disagreement(z, features[..., :3], alpha, centre, rays)
    if c.spread_weight:
        a = alpha.clamp_min(1e-4)
        mean, square = features[..., 4:5] / a, features[..., 5:6] / a
        relative = (square - mean**2).clamp_min(0) / mean.detach().clamp_min(1e-3) ** 2
        terms["spread"] = c.spread_weight * (alpha * relative).mean()
    if c.opaque_weight:
        terms["opaque"] = c.opaque_weight * (alpha * (1 - alpha)).mean()
    return terms


def shading_terms(out: RenderOutput, batch: modes.Batch, view: dict[str, Any], c: InverseConfig) -> dict[str, Tensor]:
    """Of the later stages: the mixture of physics and radiance shows what the photograph shows.

    Args:
        out: with features [1, H, W, CHANNELS].
        view: what the mode's render left: centre, rays, pixels, mixed.
    """
    assert out.features is not None
    features, alpha, depth, terms = out.features[0], out.alpha[0], out.depth[0], {}
    if c.normal_weight:
        z = depth[..., 0].detach()
        terms["normal"] = c.normal_weight * _disagreement(z, features[..., 6:9], alpha, view["centre"], view["rays"])
    pixels: px.Pixels = view["pixels"]
    truth, mixed = batch.truth.reshape(-1, 3)[pixels.rows], view["mixed"]
    progress = pixels.progress if c.progress else None
    if batch.mask is not None:
        used = batch.mask.reshape(-1)[pixels.rows]
        mixed, truth = mixed[used], truth[used]
    terms |= objective(mixed, truth, progress, c.mask_weight, c.fit)
    if c.smooth_weight:
        maps = features[..., 3:5] / alpha.detach().clamp_min(px.LEAST_ALPHA)
        terms["smooth"] = c.smooth_weight * _edge_aware(maps, batch.truth, alpha[..., 0].detach() > 0.5)
    return terms


def _disagreement(z: Tensor, splatted: Tensor, alpha: Tensor, centre: Tensor, rays: Tensor) -> Tensor:
    """How far the splatted normals [H, W, 3] turn from those of the depth [H, W], a mean over the pixels."""
    given = px.depth_normals(z, centre, rays)
    return (alpha[..., 0].detach() - (given * splatted).sum(-1))[1:-1, 1:-1].mean()


def _edge_aware(maps: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in [H, W, C] maps, less where the image [H, W, 3] changes."""
    total = maps.new_zeros(())
    for axis in (0, 1):
        n = maps.shape[axis]
        a, b = maps.narrow(axis, 0, n - 1), maps.narrow(axis, 1, n - 1)
        edge = (image.narrow(axis, 0, n - 1) - image.narrow(axis, 1, n - 1)).abs().mean(-1)
        both = valid.narrow(axis, 0, n - 1) & valid.narrow(axis, 1, n - 1)
        weight = torch.exp(-20 * edge) * both
        total = total + (weight[..., None] * (a - b).abs()).sum() / valid.numel()
    return total
