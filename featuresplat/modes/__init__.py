"""Ways of representing a scene over training: one file, one mode.

A mode module has a class ``Mode`` with the members of :class:`Mode` below; ``registry.load("modes", name).Mode``.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor
from torch.nn import Parameter

from featuresplat.types import Gaussians, RenderOutput


class Mode(Protocol):
    """What the training loop asks of a mode.

    Attributes:
        gaussian_params: per-Gaussian parameters by name; densification edits them in place.
    """

    gaussian_params: dict[str, Parameter]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for Adam: one per parameter, with ``name`` and ``lr``."""
        ...

    def at(self, time: float | None = None) -> Gaussians:
        """The Gaussians at a time, differentiable, in the training frame."""
        ...

    def losses(self, out: RenderOutput, batch: Any) -> dict[str, Tensor]:
        """Terms to add to the photometric loss, weighted already."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What a saved scene needs beyond the Gaussians."""
        ...
