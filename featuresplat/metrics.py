"""Image quality: PSNR, SSIM and, where its weights are at hand, LPIPS. Images are [H, W, 3] floats.

All metrics look at values clamped to 0..1, as a viewer would show them.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from featuresplat import losses


@torch.no_grad()
def psnr(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB, -10 log10 of the mean squared error over pixels and channels.

    Args:
        a, b: [H, W, C].
        mask: [H, W] bool, True = count this pixel.

    Returns:
        dB; infinity for equal images, NaN when the mask keeps nothing.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    losses.check_images(a, b, mask)
    square = (a.clamp(0, 1).double() - b.clamp(0, 1).double()) ** 2
    return float(-10 * torch.log10((square if mask is None else square[mask]).mean()))


@torch.no_grad()
def ssim(a: Tensor, b: Tensor, mask: Tensor | None = None) -> float:
    """Mean structural similarity of two [H, W, C] images; window and borders as in `featuresplat.losses.ssim`.

    With a mask [H, W] bool the mean is over its pixels; the left-out ones are taken as equal in both images.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    return float(1 - losses.photometric(a.clamp(0, 1), b.clamp(0, 1), 1.0, mask))


@torch.no_grad()
def lpips(a: Tensor, b: Tensor) -> float | None:
    """Learned perceptual distance (Zhang et al. 2018, AlexNet), or None where it cannot be had.

    Wants the package ``lpips`` and AlexNet's weights in torch's cache; nothing is ever downloaded. None, too, for
    images below 32 pixels, which the network cannot take.

    Args:
        a, b: [H, W, 3].

    Raises:
        FeaturesplatError: the sizes differ.
    """
    losses.check_images(a, b, None)
    network = _lpips_network()
    if network is None or a.shape[-1] != 3 or min(a.shape[:2]) < 32:
        return None
    both = [(2 * t.detach().float().cpu().clamp(0, 1) - 1).permute(2, 0, 1)[None] for t in (a, b)]
    return float(network(*both))


def image_metrics(render: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float | None]:
    """``psnr``, ``ssim`` and ``lpips`` (None where it cannot be had) of one [H, W, 3] render.

    Left-out pixels are taken as equal for the two that look at neighbourhoods.

    Raises:
        FeaturesplatError: the sizes differ.
    """
    losses.check_images(render, truth, mask)
    shown = render if mask is None else torch.where(mask[..., None], render, truth)
    return {"psnr": psnr(render, truth, mask), "ssim": ssim(render, truth, mask), "lpips": lpips(shown, truth)}


def lpips_unavailable() -> str | None:
    """None when `lpips` gives figures here, else one sentence on why not."""
    try:
        import lpips as _  # noqa: F401  # pyright: ignore[reportMissingImports]
    except Exception as error:
        return f"the package lpips cannot be imported ({error})"
    if not _backbone().is_file():
        return f"AlexNet's weights are not at {_backbone()}"
    return None if _lpips_network() is not None else "the package lpips does not load its weights"


def _backbone() -> Path:
    """Where torchvision keeps AlexNet's weights once they have been downloaded."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"


@cache
def _lpips_network():
    """The LPIPS network on the CPU, or None."""
    # Looked for first, because torchvision would start a download in its place.
    if not _backbone().is_file():
        return None
    try:
        from lpips import LPIPS  # pyright: ignore[reportMissingImports]

        return LPIPS(net="alex", verbose=False).eval().requires_grad_(False)
    # Whatever is wrong with an optional package, a missing figure must not end an evaluation.
    except Exception:
        return None
