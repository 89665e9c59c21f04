"""Loss terms between a render and a photograph; images are [H, W, C] floats in 0..1."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import _ssim
from featuresplat.errors import FeaturesplatError

C1, C2 = 0.01**2, 0.03**2
"""SSIM's stabilisers for values in 0..1 (Wang et al. 2004)."""
WINDOW, SIGMA = 11, 1.5
"""SSIM's Gaussian window, pixels."""


def l1(render: Tensor, truth: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of two [H, W, C] images, over the pixels that ``mask`` [H, W] bool keeps (0 if none).

    Raises:
        FeaturesplatError: the sizes differ.
    """
    check_images(render, truth, mask)
    difference = (render - truth).abs()
    if mask is None:
        return difference.mean()
    return torch.where(mask[..., None], difference, 0).sum() / _kept(mask, render)


def ssim(render: Tensor, truth: Tensor) -> Tensor:
    """Mean structural similarity of two [H, W, C] images, differentiable (Wang et al. 2004).

    Window: 11x11 Gaussian of sigma 1.5. The images continue as zeros past their borders and every pixel counts, as
    is usual for splatting; scikit-image's figure, which leaves out a border of 5 pixels, differs by some thousandths.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    return 1 - photometric(render, truth, 1.0)


def photometric(render: Tensor, truth: Tensor, dssim: float, mask: Tensor | None = None) -> Tensor:
    """(1 - dssim) L1 + dssim (1 - SSIM), a scalar (Kerbl et al. 2023, eq. 7).

    One native pass gives loss and gradient for float32 on the CPU (no gradient into ``truth``); anything else is
    plain torch with the same meaning.

    Args:
        render, truth: [H, W, C].
        dssim: weight of the structural term, 0..1.
        mask: [H, W] bool, True = use this pixel. Both terms are means over the kept pixels; where a window of SSIM
            reaches a left-out pixel it sees the photograph in both images, so such pixels neither count nor pull.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    check_images(render, truth, mask)
    weight, count = None, float(max(render.numel(), 1))
    if mask is not None:
        kept = mask[..., None]
        render = torch.where(kept, render, truth)
        weight, count = kept.expand(render.shape), _kept(mask, render)
    if _ssim.usable(render, truth):
        return _ssim.photometric(render, truth, dssim, weight, count)
    structure = 1 - _ssim_map(render, truth)
    if weight is not None:
        structure = torch.where(weight, structure, 0)
    return ((1 - dssim) * (render - truth).abs().sum() + dssim * structure.sum()) / count


def depth_loss(depth: Tensor, truth: Tensor, alpha: Tensor) -> Tensor:
    """Mean absolute difference of inverse depths where both are known, each pixel weighted by its alpha.

    Inverse depth, because an error of a metre matters near the camera and hardly far away.

    Args:
        depth: [H, W] or [H, W, 1] rendered camera z, scene units; 0 where nothing was hit.
        truth: [H, W] measured camera z, scene units; 0 = unknown.
        alpha: [H, W] or [H, W, 1] rendered opacity; a weight only, no gradient.

    Returns:
        A scalar in inverse scene units; 0 when no pixel is known.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    shape = truth.shape
    if truth.ndim != 2 or depth.numel() != truth.numel() or alpha.numel() != truth.numel():
        raise FeaturesplatError(
            f"depth_loss: expected depth, truth and alpha of one size, got {list(depth.shape)}, {list(shape)} and "
            f"{list(alpha.shape)}",
            "Resize the measured depth to the render.",
        )
    depth, alpha = depth.reshape(shape), alpha.reshape(shape).detach()
    known = (truth > 0) & (depth.detach() > 0)
    # The inner where keeps 1 / 0 out of the backward pass, where 0 * infinity would be NaN.
    inverse = 1 / torch.where(known, depth, 1) - 1 / torch.where(known, truth, 1)
    return (alpha * inverse.abs()).sum() / known.sum().clamp(min=1)


def check_images(render: Tensor, truth: Tensor, mask: Tensor | None = None) -> None:
    """Raise a FeaturesplatError unless both are [H, W, C] of one size and the mask, if any, is bool [H, W]."""
    if render.ndim != 3 or render.shape != truth.shape:
        raise FeaturesplatError(
            f"images: expected two of the same [H, W, C], got {list(render.shape)} and {list(truth.shape)}",
            "Render at the size of the photograph.",
        )
    if mask is not None and (mask.shape != render.shape[:2] or mask.dtype != torch.bool):
        raise FeaturesplatError(
            f"mask: expected bool {list(render.shape[:2])}, got {mask.dtype} {list(mask.shape)}",
            "Resize the mask to the image and compare it with a threshold.",
        )


def _kept(mask: Tensor, image: Tensor) -> float:
    """How many values of ``image`` the mask keeps, at least 1."""
    return float(max(int(mask.sum()) * image.shape[-1], 1))


def _window() -> list[float]:
    """[11] the normalised Gaussian; its outer product is SSIM's window."""
    g = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    return [value / sum(g) for value in g]


def _ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """[H, W, C] structural similarity at each pixel and channel, in plain torch."""
    g = torch.tensor(_window(), dtype=a.dtype, device=a.device)
    a, b = a.permute(2, 0, 1), b.permute(2, 0, 1)
    stack = torch.cat([a, b, a * a, b * b, a * b])[:, None]
    stack = F.conv2d(stack, g[None, None, :, None], padding=(WINDOW // 2, 0))
    stack = F.conv2d(stack, g[None, None, None, :], padding=(0, WINDOW // 2))
    mu_a, mu_b, aa, bb, ab = stack[:, 0].chunk(5)
    product, squares = mu_a * mu_b, mu_a**2 + mu_b**2
    top = (2 * product + C1) * (2 * (ab - product) + C2)
    return (top / ((squares + C1) * (aa + bb - squares + C2))).permute(1, 2, 0)
