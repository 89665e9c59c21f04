"""A field in which Gaussians of one object are alike, learned from class-agnostic masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from featuresplat.types import FeatureField

if TYPE_CHECKING:
    from featuresplat.scene import Scene

TEACHER = "affinity"
"""What an affinity field gives as its teacher."""


def train(
    scene: Scene,
    masks: Callable[[str], list[Tensor]],
    dim: int = 32,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureField:
    """Train an affinity field (contrastive, after GaussianGrasper and SAGA).

    Pixels of one mask attract each other, pixels of different masks repel.

    Args:
        scene: a trained scene.
        masks: name of a photograph -> bool [H, W] masks of it, any size, may overlap; empty where there are none.
        dim: channels.
        steps: of one view each.
        progress: called as ``progress(step, steps)``.

    Returns:
        Unit codes [N, dim].
    """
    raise NotImplementedError
