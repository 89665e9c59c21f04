"""Points carried along by what moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.modes._motion import dualquat

if TYPE_CHECKING:
    from featuresplat.scene import Scene

SHOWS = 0.1
"""Opacity from which a Gaussian carries points."""


@torch.no_grad()
def carry(scene: Scene, points: Tensor, time: float, times: Sequence[float]) -> Tensor:
    """Where points that lie on things at one time are at other times: each rides on the Gaussian nearest to it.

    Args:
        scene: of any mode; where nothing moves, points stay.
        points: [P, 3] in the data's frame.
        time: at which they lie there. times: S of them.

    Returns:
        [P, S, 3].

    Raises:
        FeaturesplatError: the scene has no Gaussian that shows.
    """
    now = scene.at(time)
    shows = (now.opacities > SHOWS).nonzero()[:, 0]
    if not len(shows):
        raise FeaturesplatError("this scene has no Gaussian that shows.", "Train it again.")
    _, nearest = KDTree(now.means[shows].cpu().numpy()).query(points.cpu().numpy())
    rows = shows[torch.as_tensor(nearest)]
    unit = torch.nn.functional.normalize
    own = points.to(now.means) - now.means[rows]
    back = dualquat.quat_conj(unit(now.quats[rows], dim=1))
    out = []
    for value in times:
        then = scene.at(value)
        turn = dualquat.quat_mul(unit(then.quats[rows], dim=1), back)
        out.append(dualquat.rotate(turn, own) + then.means[rows])
    return torch.stack(out, dim=1)
