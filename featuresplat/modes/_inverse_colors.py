"""The base colours with which materials explain the photographs best: what is shaded is linear in them."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.modes._inverse_shaded import KINDS, Shaded, lift, splatted
from featuresplat.modes._inverse_solve import CLIPPED, Views
from featuresplat.shading import tone
from featuresplat.types import Gaussians

STEPS = 8
"""Of conjugate gradients."""
FEW = 1e-3
"""Share of the mean weight by which what is hardly seen stays as it was."""
DARKEST = 0.004


def colors(g: Gaussians, pictures: list[Shaded], trusts: list[Tensor], views: Views) -> Tensor:
    """[N, H, 3] with which each material fits best, by weighted least squares."""
    top = bottom = torch.zeros(())
    for s, trust in zip(pictures, trusts, strict=True):
        weight = trust[..., None] * (s.radiance < CLIPPED)[:, None]
        both = torch.cat([weight * s.gain * (s.radiance[:, None] - s.offset), weight * s.gain.square()], 1)
        sums = lift(g, s, both.flatten(1), views).reshape(len(g), 2 * len(KINDS), 3)
        top, bottom = top + sums[:, : len(KINDS)], bottom + sums[:, len(KINDS) :]
    few = FEW * bottom.mean((0, 2), keepdim=True)
    return ((top + 0.5 * few) / (bottom + few)).clamp(DARKEST, 1.0)


def shown_as(g: Gaussians, s: Shaded, color: Tensor, views: Views) -> Tensor:
    """[P, H, 3] radiance of the materials in their colours [N, H, 3]."""
    there = splatted(g, s, color.flatten(1), views).unflatten(1, color.shape[1:])
    return there * s.gain + s.offset


def differences(s: Shaded, radiance: Tensor) -> tuple[Tensor, Tensor]:
    """[P, H, 3] difference to the photograph, in display units; and the weight [P, H] of each pixel in the next fit of
    colours: that of a least absolute deviation. A lamp's reflection beside its place is an outlier of a hundred times
    what else is seen.
    """
    away = (radiance.clamp(max=1) - s.radiance[:, None]).abs().mean(-1) * s.trust
    beyond = radiance.mean(-1).clamp_min(1).square()
    return tone.srgb(radiance.clamp(0, 1)) - s.shown[:, None], s.trust / ((away + 0.05) * beyond)


@torch.no_grad()
def sharpened(
    g: Gaussians, pictures: list[Shaded], trusts: list[Tensor], share: Tensor, color: Tensor, free: Tensor, views: Views
) -> Tensor:
    """[N, 3] colours that fit the photographs all together, by weighted least squares.

    A quotient of lifted sums is a mean over all that a Gaussian's pixels show, its neighbours among it: a blurred
    picture of the texture. Here the pixels' differences are solved for, by conjugate gradients (Hestenes and Stiefel
    1952) preconditioned by the lifted weights, each channel for itself.

    Args:
        trusts: weights [P, H] of each view's pixels. share: [N, H] of the materials of KINDS in each Gaussian.
        color: [N, 3] to begin with. free: [N] bool, what may change.
    """
    may = free[:, None].to(color)
    parts, diagonal, rest = [], torch.zeros(()), torch.zeros(())
    for s, trust in zip(pictures, trusts, strict=True):
        kinds = splatted(g, s, share, views)
        kinds = kinds / kinds.sum(1, keepdim=True).clamp_min(1e-6)
        gain, offset = ((kinds[..., None] * t).sum(1) for t in (s.gain, s.offset))
        weight = (kinds * trust).sum(1, keepdim=True) * (s.radiance < CLIPPED) * gain / s.alpha
        goal = s.radiance - offset - gain * splatted(g, s, color, views)
        rest = rest + lift(g, s, weight * goal, views)
        diagonal = diagonal + lift(g, s, weight * gain, views)
        parts.append((s, gain, weight))
    few = FEW * diagonal.mean()
    rest, diagonal = may * rest, diagonal + few
    way = rest / diagonal
    size = (rest * way).sum(0)
    for _ in range(STEPS):
        seen = few * way
        for s, gain, weight in parts:
            seen = seen + lift(g, s, weight * gain * splatted(g, s, way, views), views)
        seen = may * seen
        step = size / (way * seen).sum(0).clamp_min(1e-20)
        color, rest = color + step * way, rest - step * seen
        after = (rest * rest / diagonal).sum(0)
        way, size = rest / diagonal + after / size.clamp_min(1e-20) * way, after
    return color.clamp(DARKEST, 1.0)
