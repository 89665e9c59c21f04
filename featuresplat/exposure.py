"""A colour transform per photograph: exposure, white balance, a lamp that moves with the camera."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.types import Cameras

EXPOSURES = "exposure.delta"
"""Name of `Exposure.delta` in a scene's state."""


class Exposure:
    """Affine colour transforms, one per training image: shown = rendered @ A^T + b (Kerbl et al. 2024).

    Attributes:
        delta: [M, 3, 4] learned difference of [A | b] from [I | 0].
    """

    def __init__(self, count: int, device: torch.device | str = "cpu"):
        self.delta = torch.nn.Parameter(torch.zeros(count, 3, 4, device=device))

    def apply(self, rgb: Tensor, index: int) -> Tensor:
        """Colours [..., 3] as photograph ``index`` shows them."""
        return transform(rgb, self.delta[index])

    def drift(self) -> Tensor:
        """Squared distance of the mean transform from the identity: keeps the scene's own colours in place."""
        return self.delta.mean(0).square().sum()


def transform(rgb: Tensor, delta: Tensor) -> Tensor:
    """rgb [..., 3] under the transform [I | 0] + delta [3, 4]."""
    A = torch.eye(3, device=rgb.device, dtype=rgb.dtype) + delta[:, :3]
    return rgb @ A.T + delta[:, 3]


def predict(delta: Tensor, train: Cameras, view: Cameras, neighbours: int = 4) -> Tensor:
    """The transform [3, 4] to expect of a view that was not trained on, from its pose alone.

    Light that moves with the camera makes the transform a smooth function of the pose, so the nearest training
    views' transforms are averaged with weights falling with the distance of position and viewing direction. No
    pixel of the view itself is looked at.

    Args:
        delta: [M, 3, 4] of the M training cameras.
        train: those cameras.
        view: one camera of the same frame.
    """
    here, positions = view.positions[0].double(), train.positions.double()
    spread = (positions - positions.mean(0)).norm(dim=1).mean().clamp_min(1e-12)
    forward, forwards = view.viewmats[0, 2, :3].double(), train.viewmats[:, 2, :3].double()
    distance = ((positions - here) / spread).square().sum(1) + (forwards - forward).square().sum(1)  # [M]
    nearest = distance.topk(min(neighbours, len(distance)), largest=False)
    weights = 1.0 / (nearest.values + 1e-4)
    weights = (weights / weights.sum()).to(delta.dtype)
    return (weights[:, None, None].to(delta.device) * delta[nearest.indices.to(delta.device)]).sum(0)
