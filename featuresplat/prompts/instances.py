"""All objects of a scene at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from featuresplat.prompts.selection import Selection

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Instances:
    """Objects of a scene.

    Attributes:
        ids: int64 [N], the object of each Gaussian, largest object first; -1 = none.
        names: one per object; ``object 1``, ... where no text field names it.
        colors: [K, 3] in 0..1, one per object, far apart.
    """

    ids: Tensor
    names: tuple[str, ...]
    colors: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def selection(self, index: int) -> Selection:
        """The Gaussians of one object."""
        raise NotImplementedError


def find(scene: Scene, field: str | None = None, phrases: tuple[str, ...] = (), smallest: int = 30) -> Instances:
    """All objects of a scene.

    Args:
        scene: with an affinity field they are its clusters; else what remains in one piece when supporting planes
            are taken away.
        field: affinity field to use; default: the last one, if there is one.
        phrases: names to choose from, scored with the scene's text field; default: the labels of a closed
            vocabulary, else none.
        smallest: objects of fewer Gaussians are none.
    """
    raise NotImplementedError
