"""Which of a few materials explains each Gaussian best, judged pixel by pixel.

Gradient descent does not find its way from matt to mirror: in between nothing fits. So every pixel of some photographs
is shaded as metal and as dielectric of a few roughnesses, under the light found so far; what is shaded is linear in
the base colour, so that each Gaussian's best colour for each of these materials is a quotient of two lifted sums, and
what then remains, lifted and averaged over neighbours, tells which material it is. How rough a metal is shows in how
much it changes from view to view.

Metals are known beforehand to be bright, not to be matt, and to change much from view to view. What a search has found
of metal against dielectric counts in the next one, and for more: a sharper light shows roughness better, but mirrors
worse, whose normals are never quite right.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_light import FittedLight
from featuresplat.modes._inverse_solve import CLIPPED, SHOWN, TRUNCATED, Views, pooled
from featuresplat.shading import ggx, tone
from featuresplat.shading.deferred import Received, surroundings
from featuresplat.shading.occlusion import Occluders
from featuresplat.shading.prefilter import LEVELS
from featuresplat.types import Gaussians

VIEWS = 16
"""Most photographs that are searched."""
PIXELS = 30_000
"""Most pixels of each, about: larger ones are reduced."""
RAYS = 4
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
KINDS = [(level, metallic) for level in range(len(LEVELS)) for metallic in (0.0, 1.0)]


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


@dataclass
class _Shaded:
    """The P pixels of a view that show a surface, as each of the H materials of KINDS.

    Attributes:
        rows: [P]. radiance, shown: [P, 3] photographed, linear and as shown. trust: [P, 1].
        gain, offset: [P, H, 3]: radiance is gain color + offset.
    """

    matrices: tuple[Tensor, Tensor]
    size: tuple[int, int]
    rows: Tensor
    alpha: Tensor
    radiance: Tensor
    shown: Tensor
    trust: Tensor
    gain: Tensor
    offset: Tensor


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
    before: Tensor | None = None,
    told: bool = False,
) -> Guess:
    """The best of KINDS for every Gaussian.

    Args:
        normals: [N, 3] unit, outwards. received: diffuse light at the N Gaussians.
        cells: [M, 3] radiance of the occluders' cells.
        near: sparse [N, N], hands over to neighbours what each has; columns sum up to 1.
        before: [N] gap of an earlier search.
        told: what is metal is as that search left it.
    """
    features = torch.cat([normals, received.direct + received.reflected], 1)
    chosen = views.chosen[:: -(-len(views.chosen) // VIEWS)]
    shaded = [_shaded(g, features, light, views, i, occluders, cells) for i in chosen]
    color = torch.full((len(g), len(KINDS), 3), 0.5, device=normals.device)
    trusts, differences = [s.trust.expand(-1, len(KINDS)) for s in shaded], []
    for _ in range(ROUNDS):
        color = _colors(g, shaded, trusts, views)
        both = [_differences(s, _shown(g, s, color, views)) for s in shaded]
        differences, trusts = [d for d, _ in both], [t for _, t in both]
    roughness, metallic = torch.tensor([(LEVELS[level].roughness, m) for level, m in KINDS]).to(normals).T
    # Metal or not shows in how much is wrong in all; how rough it is, in how much is right.
    cost, mass = _lifted_mean(g, shaded, differences, views)
    sizes = [d.clamp(-TRUNCATED, TRUNCATED).abs().mean(-1, keepdim=True) for d in differences]
    fit, _ = _lifted_mean(g, shaded, [r * (WHOLE / (r + EXPLAINED)) for r in sizes], views)
    credit = CREDIT * (_vividness(g, shaded, views) / VIVID - 1).clamp(0, 1)
    dull = DULL * ((roughness - ROUGHEST) / (1 - ROUGHEST)).clamp_min(0)
    unlikely = metallic * (DIMMED * (1 - color.amax(2) / DIM).clamp_min(0) + dull - credit)
    spread = pooled(near, torch.cat([cost, unlikely, fit + MATT * (1 - roughness)], 1), mass, SPREADS)
    cost, unlikely, fit = spread.split(len(KINDS), 1)
    metal, other = (torch.where(metallic == m, cost + unlikely, torch.inf).amin(1) for m in (1, 0))
    gap = metal - other if before is None else before if told else before + LATER * (metal - other)
    kinds = metallic == (gap < 0).float()[:, None]
    residual = torch.where(kinds, cost, torch.inf).amin(1)
    swing, brighter = _moments(g, shaded, color, views, near)
    fit = torch.where(metallic > 0.5, swing / SWINGS, fit / UNSURE)
    color = torch.where(metallic[:, None] > 0.5, (color * brighter).clamp(max=1), color)
    # What fits about as well has its share: between matt and dull there is little to see.
    share = torch.softmax(torch.where(kinds, -fit, -torch.inf), 1)
    color = (share[..., None] * color).sum(1)
    return Guess(color, share @ roughness, (gap < 0).float(), residual, gap)


def _moments(g: Gaussians, shaded: list[_Shaded], color: Tensor, views: Views, near: Tensor) -> tuple[Tensor, Tensor]:
    """How a mirror shows its surroundings, apart from where: a normal's error moves what it shows, so that pixel by
    pixel a blurred and dim one always seems to fit better.

    Returns:
        [N, H] difference between how much brightness changes from view to view and how much it would, averaged over
        neighbours; [N, H, 3] by how much what is seen is brighter on average than what would be.
    """
    seen, swings, means, wide = color.new_zeros(len(g), 1), torch.zeros(()), torch.zeros(()), 1 + len(KINDS)
    for s in shaded:
        both = torch.cat([s.radiance[:, None], _shown(g, s, color, views)], 1).clamp(0, 1)
        light = tone.srgb(both).mean(-1)
        sums = _lift(g, s, torch.cat([torch.ones_like(light[:, :1]), light, both.flatten(1)], 1), views)
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


def _vividness(g: Gaussians, shaded: list[_Shaded], views: Views) -> Tensor:
    """[N, 1] relative standard deviation of each Gaussian's brightness over the views."""
    total = torch.zeros(len(g), 3, device=g.means.device)
    for s in shaded:
        light = s.radiance.mean(1, keepdim=True)
        sums = _lift(g, s, torch.cat([light, torch.ones_like(light)], 1), views)
        mean, mass = sums[:, :1] / sums[:, 1:].clamp_min(1e-6), sums[:, 1:].clamp(max=20)
        total += torch.cat([mass, mass * mean, mass * mean.square()], 1)
    mean = total[:, 1:] / total[:, :1].clamp_min(1e-6)
    deviation = (mean[:, 1:] - mean[:, :1].square()).clamp_min(0).sqrt()
    return deviation / (mean[:, :1] + 0.05)


def _shaded(
    g: Gaussians, features: Tensor, light: FittedLight, views: Views, i: int, occluders: Occluders | None,
    cells: Tensor | None,
) -> _Shaded:  # fmt: skip
    assert light.atlas is not None
    (viewmat, K), (width, height) = views.matrices(i), views.cameras.sizes[i]
    image, reduce = views.image(i), 1
    while width * height / reduce**2 > PIXELS and not (width % (2 * reduce) or height % (2 * reduce)):
        reduce *= 2
    if reduce > 1:
        width, height = width // reduce, height // reduce
        image = F.avg_pool2d(image.permute(2, 0, 1)[None], reduce)[0].permute(1, 2, 0)
        K = torch.cat([K[:, :2] / reduce, K[:, 2:]], 1)
    out = raster.rasterize(
        g.means, g.quats, g.scales, g.opacities, None, viewmat, K, width, height, features=features, **views.options
    )
    assert out.features is not None
    alpha = out.alpha.reshape(-1, 1)
    centre, rays = px.view_rays(viewmat[0], K[0], width, height)
    f = out.features.reshape(len(alpha), -1) / alpha.clamp_min(1e-6)
    view, normal = -F.normalize(rays.reshape(-1, 3), dim=1), F.normalize(f[:, :3], dim=1)
    cosine = (view * normal).sum(1)
    rows = ((alpha[:, 0] > 0.5) & (cosine > 0.1)).nonzero()[:, 0]
    view, normal, cosine, irradiance = view[rows], normal[rows], cosine[rows], f[rows, 3:]
    away = 2 * cosine[:, None] * normal - view
    points = centre + out.depth.reshape(-1, 1)[rows] * rays.reshape(-1, 3)[rows]
    radiance = image.reshape(-1, 3)[rows]
    gain, offset = [], []
    for level in LEVELS:
        roughness = torch.full_like(cosine, level.roughness)
        incoming = light.prefilter.lookup(light.atlas, away, roughness)
        if occluders is not None and cells is not None:
            free, lent = surroundings(occluders, cells, points, normal, away, roughness, RAYS)
            incoming = free[:, None] * incoming + lent
        A, B = (t[:, None] for t in ggx.albedo_terms(cosine, roughness))
        lost = 1 / (A + B).clamp_min(1e-3) - 1
        layer = (ggx.F0 * A + B) * (1 + ggx.F0 * lost)
        # Compensation for a reflectance of about a half: what is left is linear in the colour.
        gain += [(1 - layer) * irradiance, A * incoming * (1 + 0.7 * lost)]
        offset += [layer * incoming, B * incoming]
    trust = 1 / (radiance.mean(1, keepdim=True) + 0.05)
    shown = tone.srgb(radiance.clamp(0, 1))
    return _Shaded(
        (viewmat, K), (width, height), rows, alpha[rows], radiance, shown, trust, torch.stack(gain, 1),
        torch.stack(offset, 1),
    )  # fmt: skip


def _lift(g: Gaussians, s: _Shaded, values: Tensor, views: Views) -> Tensor:
    """[N, C] of values [P, C]."""
    maps = px.spread(values, s.rows, s.size[1], s.size[0])
    sums, _ = raster.lift(g.means, g.quats, g.scales, g.opacities, *s.matrices, *s.size, maps[None], **views.options)
    return sums


def _colors(g: Gaussians, shaded: list[_Shaded], trusts: list[Tensor], views: Views) -> Tensor:
    """[N, H, 3] with which each material fits best, by weighted least squares."""
    top = bottom = torch.zeros(())
    for s, trust in zip(shaded, trusts, strict=True):
        weight = trust[..., None] * (s.radiance < CLIPPED)[:, None]
        both = torch.cat([weight * s.gain * (s.radiance[:, None] - s.offset), weight * s.gain.square()], 1)
        sums = _lift(g, s, both.reshape(len(both), -1), views).reshape(len(g), 2 * len(KINDS), 3)
        top, bottom = top + sums[:, : len(KINDS)], bottom + sums[:, len(KINDS) :]
    few = 1e-3 * bottom.mean((0, 2), keepdim=True)
    return ((top + 0.5 * few) / (bottom + few)).clamp(0.02, 1.0)


def _shown(g: Gaussians, s: _Shaded, color: Tensor, views: Views) -> Tensor:
    """[P, H, 3] radiance of the materials in their colours [N, H, 3]."""
    out = raster.rasterize(
        g.means, g.quats, g.scales, g.opacities, None, *s.matrices, *s.size, features=color.reshape(len(g), -1),
        **views.options,
    )  # fmt: skip
    assert out.features is not None
    there = out.features.reshape(s.size[0] * s.size[1], -1)[s.rows].reshape(len(s.rows), -1, 3) / s.alpha[:, None]
    return there * s.gain + s.offset


def _differences(s: _Shaded, radiance: Tensor) -> tuple[Tensor, Tensor]:
    """[P, H, 3] difference to the photograph, in display units; and the weight [P, H] of each pixel in the next fit of
    colours: that of a least absolute deviation. A lamp's reflection beside its place is an outlier of a hundred times
    what else is seen.
    """
    away = (radiance.clamp(max=1) - s.radiance[:, None]).abs().mean(-1) * s.trust
    beyond = radiance.mean(-1).clamp_min(1).square()
    return tone.srgb(radiance.clamp(0, 1)) - s.shown[:, None], s.trust / ((away + 0.05) * beyond)


def _lifted_mean(g: Gaussians, shaded: list[_Shaded], values: list[Tensor], views: Views) -> tuple[Tensor, Tensor]:
    """[N, H] mean over the views of the size of each Gaussian's mean in a view of [P, H, C], and [N, 1] its weight.

    Of differences with their signs, patterns finer than a Gaussian, which no material explains, do not count.
    """
    total, mass = torch.zeros(()), torch.zeros(())
    for s, v in zip(shaded, values, strict=True):
        sums = _lift(g, s, torch.cat([v.flatten(1), torch.ones_like(v[:, 0, :1])], 1), views)
        total = total + sums[:, :-1].reshape(len(g), *v.shape[1:]).abs().mean(2)
        mass = mass + sums[:, -1:]
    return total / mass.clamp_min(1e-6), mass
