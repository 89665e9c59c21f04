"""Codes and decoders refined by gradient: one view a step, geometry held still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.decoders import Decoder
from featuresplat.fields.maps import Maps, Progress, resize, silent
from featuresplat.fields.views import Views
from featuresplat.losses import photometric
from featuresplat.scene import Scene

DECODER_LR = 1e-3
FINAL = 0.1
"""Learning rates at the end, as a share of the first."""
VALUES = 16_000_000
"""Decoded values of one step; of a larger map a random part is compared."""
DSSIM = 0.1
_CHANNELS = 8


@dataclass
class Head:
    """One teacher over the codes: its maps, the decoder to its space (None: the codes are in it), and the loss."""

    maps: Maps
    decoder: Decoder | None = None
    loss: Literal["cosine", "l1"] = "cosine"


def refine(
    scene: Scene,
    codes: Tensor,
    heads: Sequence[Head],
    steps: int,
    lr: float = 0.005,
    *,
    seed: int = 0,
    backend: str | None = None,
    progress: Progress = silent,
) -> Tensor:
    """Train codes [N, D] and the heads' decoders (in place) on the maps of the heads; all have the same views.

    Only one map per head is in memory, and beside the codes their gradient and two moments.

    Args:
        lr: of the codes, for codes of unit length; it is scaled by their length.

    Returns:
        [N, D] the trained codes.
    """
    views = [Views(scene, head.maps, backend) for head in heads]
    parameter = torch.nn.Parameter(codes.detach().clone().contiguous())
    scale = float(codes.norm(dim=1).square().mean().sqrt().clamp_min(1e-6))
    groups = [{"params": [parameter], "lr": lr * scale}]
    decoders = [p for h in heads if h.decoder is not None for p in h.decoder.requires_grad_(True).parameters()]
    if decoders:
        groups.append({"params": decoders, "lr": DECODER_LR})
    optimizer = torch.optim.Adam(groups, eps=1e-15, fused=parameter.device.type in ("cpu", "cuda"))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, FINAL ** (1 / max(steps, 1)))
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    for _ in progress(range(steps), "refine"):
        order = order or torch.randperm(len(views[0]), generator=generator).tolist()
        i = order.pop()
        loss = step_loss(views, heads, parameter, i, generator)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
    for head in heads:
        if head.decoder is not None:
            head.decoder.requires_grad_(False)
    return parameter.detach()


def step_loss(
    views: Sequence[Views], heads: Sequence[Head], codes: Tensor, i: int, generator: torch.Generator
) -> Tensor:
    """The sum of the heads' losses in view i; the codes are splatted once, at the largest of the heads' sizes."""
    maps = [head.maps[i].to(codes.device) for head in heads]
    cameras = [v.camera(i, (m.shape[0], m.shape[1])) for v, m in zip(views, maps, strict=True)]
    camera = max(cameras, key=lambda c: c.width)
    rendered = views[0].splat(codes, camera)  # [H, W, D]
    mask = views[0].mask(i, camera)
    total = rendered.new_zeros(())
    for head, found in zip(heads, maps, strict=True):
        height, width = min(found.shape[0], camera.height), min(found.shape[1], camera.width)
        rows, columns = _part(height, width, found.shape[2], generator)
        pred = _decoded(resize(rendered, height, width)[rows, columns], head.decoder)
        if (height, width) == (found.shape[0], found.shape[1]):
            truth = found[rows, columns].float()
        else:
            truth = resize(found, height, width)[rows, columns]
        keep = None if mask is None else resize(mask[..., None], height, width)[rows, columns, 0] > 0.5
        total = total + feature_loss(pred, truth, head.loss, keep)
    return total


def feature_loss(pred: Tensor, truth: Tensor, kind: str, keep: Tensor | None = None) -> Tensor:
    """A scalar from features [h, w, F]: mean of 1 - cosine where the truth is not zero, or L1 + 0.1 (1 - SSIM).

    Args:
        keep: bool [h, w], the cells that count; None: all.
    """
    if kind == "cosine":
        known = truth.norm(dim=-1) > 1e-6
        known = known if keep is None else known & keep
        distance = 1 - F.cosine_similarity(pred, truth, dim=-1, eps=1e-6)
        return torch.where(known, distance, 0).sum() / known.sum().clamp_min(1)
    # L1 + k (1 - SSIM) = (1 + k) times the photometric mixture; its native form takes 8 channels at a time.
    blocks = zip(pred.split(_CHANNELS, dim=-1), truth.split(_CHANNELS, dim=-1), strict=True)
    share = DSSIM / (1 + DSSIM)
    terms = [photometric(p.contiguous(), t.contiguous(), share, keep) * p.shape[-1] for p, t in blocks]
    return (1 + DSSIM) * torch.stack(terms).sum() / pred.shape[-1]


def _decoded(codes: Tensor, decoder: Decoder | None) -> Tensor:
    return codes if decoder is None else decoder(codes)


def _part(height: int, width: int, channels: int, generator: torch.Generator) -> tuple[slice, slice]:
    """A random part of a map that keeps within `VALUES`, of the map's own shape."""
    share = min(1.0, (VALUES / (height * width * channels)) ** 0.5)
    h, w = max(1, int(height * share)), max(1, int(width * share))
    y = int(torch.randint(height - h + 1, (), generator=generator))
    x = int(torch.randint(width - w + 1, (), generator=generator))
    return slice(y, y + h), slice(x, x + w)
