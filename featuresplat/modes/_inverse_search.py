"""Which of a few materials explains each Gaussian best, judged pixel by pixel.

Gradient descent does not find its way from matt to mirror: in between nothing fits. So every pixel of some photographs
is shaded as metal and as dielectric of a few roughnesses, under the light found so far; what is shaded is linear in
the base colour, so that each Gaussian's best colour for each of these materials is a quotient of two lifted sums, and
what then remains, lifted and averaged over neighbours, tells which material it is; the colours of what is no metal are
then solved for. How rough a metal is shows in how much it changes from view to view.

Metals are known beforehand to be bright, not to be matt, and to change much from view to view. What a search has found
of metal against dielectric counts in the next one, and for more: a sharper light shows roughness better, but mirrors
worse, whose normals are never quite right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featuresplat.modes._inverse_colors import colors, differences, sharpened, shown_as
from featuresplat.modes._inverse_curvature import curvature
from featuresplat.modes._inverse_light import FittedLight
from featuresplat.modes._inverse_shaded import KINDS, Shaded, lift, shaded
from featuresplat.modes._inverse_solve import SHOWN, TRUNCATED, Views, pooled
from featuresplat.shading import tone
from featuresplat.shading.deferred import Received
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import LEVELS
from featuresplat.types import Gaussians

VIEWS = 16
"""Most photographs that are searched."""
ROUNDS = 3
"""Colours are fitted that often; each time what does not fit counts less."""
SPREADS = 80
"""Times that what remains is averaged over neighbours."""
VIVID = 0.1
"""Relative change from view to view at which a Gaussian begins to look like metal; at twice that it does."""
CREDIT = 0.016
"""Residual that is forgiven to metal where it looks like metal: the normals' errors cost metal more."""
DIM, DIMMED = 0.5, 0.15
"""Metals reflect no less than the first in their strongest channel; a black one would cost the second."""
ROUGHEST, DULL = 0.45, 0.04
"""Metals are no rougher than the first; the roughest there is would cost the second. It looks like what is matt, and
most of that is no metal."""
LATER = 0.4
"""Weight of a search after the first in what is metal."""
MATT = 0.0003
"""Cost that the smoothest surface has to make up for."""
EXPLAINED, WHOLE = 0.06, 0.15
"""A difference of the first costs half of the second. Better explain most pixels well than all of them poorly: what
reflects its neighbours is never right everywhere."""
UNSURE, SWINGS = 0.0005, 0.002
"""Difference of cost at which a material is about a third as likely: of the fit of a dielectric, of a metal's swing."""


@dataclass
class Before:
    """What is known from an earlier search.

    Attributes:
        gap: [N] of that search. told: what is metal is as it said.
        base_color, metallic: [N, 3] and [N], as they have been fitted since.
    """

    gap: Tensor
    told: bool
    base_color: Tensor
    metallic: Tensor


@dataclass
class Guess:
    """Materials: base_color [N, 3], roughness [N], metallic [N]; residual [N] in display units.

    Attributes:
        gap: [N] how much worse metal explains it than a dielectric; that of the searches before is in it.
    """

    base_color: Tensor
    roughness: Tensor
    metallic: Tensor
    residual: Tensor
    gap: Tensor


@torch.no_grad()
def searched(
    g: Gaussians,
    normals: Tensor,
    received: Received,
    light: FittedLight,
    views: Views,
    occluders: Occluders | None,
    cells: Tensor | None,
    near: Tensor,
    before: Before | None = None,
) -> Guess:
    """The best of KINDS for every Gaussian.

    Args:
        normals: [N, 3] unit, outwards. received: diffuse light at the N Gaussians.
        cells: [M, 3] radiance of the occluders' cells.
        near: sparse [N, N], hands over to neighbours what each has; columns sum up to 1.
    """
    features = torch.cat([normals, received.direct + received.reflected, curvature(g.means, normals, g.scales)], 1)
    chosen = views.chosen[:: -(-len(views.chosen) // VIEWS)]
    pictures = [shaded(g, features, light, views, i, occluders, cells) for i in chosen]
    color = torch.full((len(g), len(KINDS), 3), 0.5, device=normals.device)
    trusts, away = [s.trust.expand(-1, len(KINDS)) for s in pictures], []
    for _ in range(ROUNDS):
        color = colors(g, pictures, trusts, views)
        both = [differences(s, shown_as(g, s, color, views)) for s in pictures]
        away, trusts = [d for d, _ in both], [t for _, t in both]
    roughness, metallic = torch.tensor([(LEVELS[level].roughness, m) for level, m in KINDS]).to(normals).T
    # Metal or not shows in how much is wrong in all; how rough it is, in how much is right.
    cost, mass = _lifted_mean(g, pictures, away, views)
    sizes = [d.clamp(-TRUNCATED, TRUNCATED).abs().mean(-1, keepdim=True) for d in away]
    fit, _ = _lifted_mean(g, pictures, [r * (WHOLE / (r + EXPLAINED)) for r in sizes], views)
    credit = CREDIT * (_vividness(g, pictures, views) / VIVID - 1).clamp(0, 1)
    dull = DULL * ((roughness - ROUGHEST) / (1 - ROUGHEST)).clamp_min(0)
    unlikely = metallic * (DIMMED * (1 - color.amax(2) / DIM).clamp_min(0) + dull - credit)
    spread = pooled(near, torch.cat([cost, unlikely, fit + MATT * (1 - roughness)], 1), mass, SPREADS)
    cost, unlikely, fit = spread.split(len(KINDS), 1)
    metal, other = (torch.where(metallic == m, cost + unlikely, torch.inf).amin(1) for m in (1, 0))
    gap = metal - other
    if before is not None:
        gap = before.gap if before.told else before.gap + LATER * gap
    kinds = metallic == (gap < 0).float()[:, None]
    residual = torch.where(kinds, cost, torch.inf).amin(1)
    swing, brighter = _moments(g, pictures, color, views, near)
    fit = torch.where(metallic > 0.5, swing / SWINGS, fit / UNSURE)
    color = torch.where(metallic[:, None] > 0.5, (color * brighter).clamp(max=1), color)
    # What fits about as well has its share: between matt and dull there is little to see.
    share = torch.softmax(torch.where(kinds, -fit, -torch.inf), 1)
    color, free = (share[..., None] * color).sum(1), gap >= 0
    if before is not None:  # the texture that was found stays
        color = torch.where((free & (before.metallic < 0.5))[:, None], before.base_color, color)
    color = sharpened(g, pictures, trusts, share, color, free, views)
    return Guess(color, share @ roughness, (gap < 0).float(), residual, gap)


def _moments(g: Gaussians, pictures: list[Shaded], color: Tensor, views: Views, near: Tensor) -> tuple[Tensor, Tensor]:
    """How a mirror shows its surroundings, apart from where: a normal's error moves what it shows, so that pixel by
    pixel a blurred and dim one always seems to fit better.

    Returns:
        [N, H] difference between how much brightness changes from view to view and how much it would, averaged over
        neighbours; [N, H, 3] by how much what is seen is brighter on average than what would be.
    """
    seen, swings, means, wide = color.new_zeros(len(g), 1), torch.zeros(()), torch.zeros(()), 1 + len(KINDS)
    for s in pictures:
        both = torch.cat([s.radiance[:, None], shown_as(g, s, color, views)], 1).clamp(0, 1)
        light = tone.srgb(both).mean(-1)
        sums = lift(g, s, torch.cat([torch.ones_like(light[:, :1]), light, both.flatten(1)], 1), views)
        there = (sums[:, :1] > SHOWN).float()
        mean = sums[:, 1 : 1 + wide] / sums[:, :1].clamp_min(1e-6)
        seen = seen + there
        swings = swings + there * torch.cat([mean, mean.square()], 1)
        means = means + sums[:, 1 + wide :]
    first, second = (swings / seen.clamp_min(1)).split(wide, 1)
    deviation = (second - first.square()).clamp_min(0).sqrt()
    swing = pooled(near, (deviation[:, 1:] - deviation[:, :1]).abs(), (seen - 1).clamp_min(0), SPREADS)
    means = means.reshape(len(g), wide, 3)
    few = 1e-3 * means.mean()
    return swing, (means[:, :1] + few) / (means[:, 1:] + few)


def _vividness(g: Gaussians, pictures: list[Shaded], views: Views) -> Tensor:
    """[N, 1] relative standard deviation of each Gaussian's brightness over the views."""
    total = torch.zeros(len(g), 3, device=g.means.device)
    for s in pictures:
        light = s.radiance.mean(1, keepdim=True)
        sums = lift(g, s, torch.cat([light, torch.ones_like(light)], 1), views)
        mean, mass = sums[:, :1] / sums[:, 1:].clamp_min(1e-6), sums[:, 1:].clamp(max=20)
        total += torch.cat([mass, mass * mean, mass * mean.square()], 1)
    mean = total[:, 1:] / total[:, :1].clamp_min(1e-6)
    deviation = (mean[:, 1:] - mean[:, :1].square()).clamp_min(0).sqrt()
    return deviation / (mean[:, :1] + 0.05)


def _lifted_mean(g: Gaussians, pictures: list[Shaded], values: list[Tensor], views: Views) -> tuple[Tensor, Tensor]:
    """[N, H] mean over the views of the size of each Gaussian's mean in a view of [P, H, C], and [N, 1] its weight.

    Of differences with their signs, patterns finer than a Gaussian, which no material explains, do not count.
    """
    total, mass = torch.zeros(()), torch.zeros(())
    for s, v in zip(pictures, values, strict=True):
        sums = lift(g, s, torch.cat([v.flatten(1), torch.ones_like(v[:, 0, :1])], 1), views)
        total = total + sums[:, :-1].reshape(len(g), *v.shape[1:]).abs().mean(2)
        mass = mass + sums[:, -1:]
    return total / mass.clamp_min(1e-6), mass
