"""A set of the Gaussians of a scene."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(eq=False)
class Selection:
    """A set of the N Gaussians of a scene; ``&``, ``|``, ``-``, ``^`` and ``~`` combine such sets.

    Attributes:
        mask: bool [N].
        name: what to call it.
    """

    mask: Tensor
    name: str = ""

    @property
    def count(self) -> int:
        """How many Gaussians are in it."""
        raise NotImplementedError

    def __and__(self, other: Selection) -> Selection:
        raise NotImplementedError

    def __or__(self, other: Selection) -> Selection:
        raise NotImplementedError

    def __sub__(self, other: Selection) -> Selection:
        raise NotImplementedError

    def __xor__(self, other: Selection) -> Selection:
        raise NotImplementedError

    def __invert__(self) -> Selection:
        raise NotImplementedError

    def grow(self, scene: Scene, k: int = 1) -> Selection:
        """With the neighbours of its Gaussians, ``k`` times."""
        raise NotImplementedError

    def shrink(self, scene: Scene, k: int = 1) -> Selection:
        """Without the Gaussians that have a neighbour outside, ``k`` times."""
        raise NotImplementedError

    def cleanup(self, scene: Scene, smallest: float = 0.05) -> Selection:
        """Without stray bits, with small holes filled, judged on the neighbour graph.

        Args:
            smallest: connected parts below this share of the largest one are dropped (of holes: filled).
        """
        raise NotImplementedError

    def save(self, path: str | Path, scene: Scene) -> None:
        """Write it as safetensors, with the scene's fingerprint.

        Raises:
            FeaturesplatError: it does not belong to ``scene``, the disk is full and the like.
        """
        raise NotImplementedError

    @staticmethod
    def load(path: str | Path, scene: Scene) -> Selection:
        """Read what `save` wrote.

        Raises:
            FeaturesplatError: missing or damaged, or made on another scene.
        """
        raise NotImplementedError


def fingerprint(scene: Scene) -> str:
    """Says which Gaussians a selection counts: 16 hexadecimal digits of N and all ``means``."""
    raise NotImplementedError
