"""How bright lamps are that photographs have cut: as bright as makes what is of one colour evenly bright.

A photograph says of a lamp's reflection no more than that it is white, or brighter. What the lamp shines on tells more:
were it brighter, a larger part of the light would come from there, shadows would be darker for it, and what lies in
them paler.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat.modes._inverse_solve import pooled

GAINS = tuple(2 ** (k / 6) for k in range(-3, 13))
"""What lamps may be brighter by."""
PLACES, AROUND = 4000, 16
"""Gaussians that are compared with others around them, and with how many."""
REACH = 0.08
"""How far around, as a share of the extent of all."""
CHROMA = 0.02
"""Difference of chromaticity at which two Gaussians are a third as likely to be of one colour."""
EVEN = 0.1
"""Difference of the colour's logarithm that counts half: beyond it two are not of one colour."""
SPREADS = 6
"""Times that light and colour are averaged over neighbours: rays to so few directions are grain."""


@torch.no_grad()
def lamps_gain(means: Tensor, shown: Tensor, lamps: Tensor, rest: Tensor, usable: Tensor, near: Tensor) -> float:
    """By how much lamps are to be brighter.

    Args:
        means: [N, 3]. shown: [N, 3] diffuse radiance.
        lamps, rest: [N, 3] irradiance / pi that lamps bring now, and that all else brings.
        usable: [N] bool, what is matt and seen. near: see `_inverse_solve.neighbours`.
    """
    ids = usable.nonzero()[:, 0]
    if len(ids) < 100 or float(lamps[ids].sum()) <= 0:
        return 1.0
    weight = usable[:, None].to(shown)
    shown, lamps, rest = pooled(near, torch.cat([shown, lamps, rest], 1), weight, SPREADS).split(3, 1)
    first, second = _pairs(means, ids)
    chroma = shown / shown.sum(1, keepdim=True).clamp_min(1e-4)
    alike = torch.exp(-((chroma[first] - chroma[second]).abs().sum(1) / CHROMA).square())
    costs = []
    for gain in GAINS:
        color = (shown / (rest + gain * lamps).clamp_min(1e-6)).clamp_min(1e-3).log().mean(1)
        away = (color[first] - color[second]).abs()
        costs.append(float((alike * away / (away + EVEN)).sum()))
    return GAINS[int(np.argmin(costs))]


def _pairs(means: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of Gaussians, and of others around them."""
    xyz = means[ids].cpu().numpy()
    draw = np.random.default_rng(0)
    some = draw.permutation(len(xyz))[:PLACES]
    reach = REACH * float((xyz.max(0) - xyz.min(0)).max())
    first, second = [], []
    for place, around in zip(some, KDTree(xyz).query_ball_point(xyz[some], reach, workers=-1), strict=True):
        chosen = draw.choice(around, min(AROUND, len(around)), replace=False)
        first.append(np.full(len(chosen), place))
        second.append(chosen)
    return tuple(ids[torch.from_numpy(np.concatenate(part)).to(ids.device)] for part in (first, second))  # pyright: ignore
