"""What materials the mode `inverse` begins its stages with. All values are 0..1."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.modes import _inverse_solve as solve
from featuresplat.modes._inverse_lamps import lamps_gain
from featuresplat.modes._inverse_light import FittedLight
from featuresplat.modes._inverse_looks import Baked, received
from featuresplat.modes._inverse_search import Before, Guess, searched
from featuresplat.shading.progress import stationary
from featuresplat.types import Gaussians

MIRROR = 0.12
"""Roughness of what the specular stage takes for mirrors, at its beginning."""
METAL = 0.99
LAMPS = 2.0
"""Brightest light of the first search: in a mirror it is white, as brighter ones are. How bright the lamps are is not
known yet, and where they are too bright every mirror looks too dim to be one.
"""
WHITE = 0.8
"""What the brightest matt surfaces reflect, at most: photographs clip the lamps, and the light comes out too dark to
explain more."""
BEGUN = 0.5
"""Progress at the beginning, as a share of where it would rest."""


@torch.no_grad()
def mirrors(
    g: Gaussians, sides: Tensor, views: solve.Views, light: FittedLight, baked: Baked | None
) -> dict[str, Tensor]:
    """Mirrors first: what changes much from view to view is metal, and lights up the environment, which is set.

    Args:
        sides: [N, 3] normals, outwards.
    """
    vivid = solve.vividness(solve.lifted(g, sides, views))
    vivid = ((vivid - solve.VIVID) / solve.VIVID).clamp(0, 1)
    occluders = baked.occluders if baked is not None else None
    cube, color = solve.projected(g, sides, vivid, views, occluders, light.cube())
    # Grey: what mirrors show of colours is as often theirs as the light's.
    light.set(cube.mean(-1, keepdim=True).clamp_min(1e-3).log().expand_as(cube))
    light.filter()
    ones = torch.ones_like(vivid[:, None])
    return {
        "base_color": color,
        "roughness": MIRROR * ones,
        "metallic": METAL * ones,
        "progress": BEGUN * vivid[:, None],
    }


@torch.no_grad()
def materials(
    g: Gaussians,
    sides: Tensor,
    views: solve.Views,
    light: FittedLight,
    baked: Baked | None,
    shown: Tensor,
    mask_weight: float,
    before: Before | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Every Gaussian takes the material that explains it best under the light found so far, whose lamps become as
    bright as `_inverse_lamps` says, and brighter where the brightest matt surfaces would reflect too much.

    Args:
        sides: [N, 3] normals, outwards. shown: [N] the most each shows in a view.
        before: what is known from an earlier search.

    Returns:
        The materials, and what this search leaves to the next one.
    """
    occluders, cells = (None, None) if baked is None else (baked.occluders, baked.cells)
    near = solve.neighbours(g.means, sides)
    whole = light.cube()
    if before is None:
        _relight(light, whole.clamp(max=LAMPS))
    under = received(light, baked, sides)
    found = searched(g, sides, under, light, views, occluders, cells, near, before)
    total = under.direct + under.reflected
    if before is None:
        _relight(light, whole)
        under, dim = received(light, baked, sides), total
        total = under.direct + under.reflected
        found.base_color = _paler(found, dim / total.clamp_min(1e-6))
    matt = (found.metallic < 0.5) & (shown > 0.05)
    if baked is not None:
        lamps = baked.transfer.direct(light.lamps())
        gain = lamps_gain(g.means, found.base_color * total, lamps, total - lamps, matt, near)
        light.set_lamps(gain)
        found.base_color = _paler(found, total / (total + (gain - 1) * lamps).clamp_min(1e-6))
    if bool(matt.any()):
        white = float(torch.quantile(found.base_color[matt].amax(1), 0.9))
        found.base_color[found.metallic < 0.5] /= light.brighten_lamps(white / WHITE)
    values = {
        "base_color": found.base_color.clamp(max=0.95),
        "roughness": found.roughness[:, None],
        "metallic": found.metallic[:, None].clamp(0.03, 0.97),
        "progress": BEGUN * stationary(found.residual[:, None], mask_weight)[:, None],
    }
    return values, found.gap


def _relight(light: FittedLight, cube: Tensor) -> None:
    light.set(cube.log())
    light.filter()


def _paler(found: Guess, share: Tensor) -> Tensor:
    """[N, 3] base colours, those of what is no metal times ``share`` [N, 3]: it sends out as much in other light."""
    return torch.where(found.metallic[:, None] < 0.5, found.base_color * share, found.base_color)
