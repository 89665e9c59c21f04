"""A light to render a scene under: an environment, and lamps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import checked_environment, read_environment
from featuresplat.shading import cubemap

DEFAULT_SIZE = 128


@dataclass(frozen=True)
class Lamp:
    """A point that shines evenly: ``position`` (3), world frame; ``power`` (3), radiant intensity: what arrives at a
    distance d is power / d^2."""

    position: tuple[float, float, float]
    power: tuple[float, float, float]

    def __post_init__(self) -> None:
        numbers = (*self.position, *self.power)
        if len(self.position) != 3 or len(self.power) != 3 or not all(math.isfinite(v) for v in numbers):
            raise FeaturesplatError(f"lamp: expected 3 + 3 finite numbers, got {numbers}.", "Give x y z and r g b.")
        if min(self.power) < 0:
            raise FeaturesplatError(
                f"lamp: its power cannot be negative, got {self.power}.", "Give r g b of 0 or more."
            )


@dataclass(frozen=True)
class Light:
    """Attributes:
    environment: cubemap [6, S, S, 3] of linear radiance, or None for the light that the scene was photographed under.
    lamps: added to it.
    turn: degrees by which the environment is turned about ``up``, counter-clockwise seen from above.
    up: the world's up axis.
    gain: factor on the environment.
    samples: per pixel and kind, for the Monte-Carlo option; 0 takes the fast forms.
    behind: show the environment behind the scene, whatever background is asked for.
    """

    environment: Tensor | None = None
    lamps: Sequence[Lamp] = field(default_factory=tuple)
    turn: float = 0.0
    up: tuple[float, float, float] = (0.0, 0.0, 1.0)
    gain: float = 1.0
    samples: int = 0
    behind: bool = False

    @staticmethod
    def of(value: Any, size: int = DEFAULT_SIZE) -> Light:
        """A light from a Light, a path, or an array [H, 2 H, 3] or [6, S, S, 3] of NumPy or torch.

        Raises:
            FeaturesplatError: what is given is none, or holds negative or infinite values.
        """
        if isinstance(value, Light):
            return value
        if isinstance(value, (str, Path)):
            array = read_environment(value)
        elif isinstance(value, (np.ndarray, Tensor)):
            array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
            array = checked_environment(array, "light")
        else:
            raise FeaturesplatError(
                f"light: expected a file, an array or a Light, got {type(value).__name__}.",
                "Give the path of an .hdr, .exr or .npy file.",
            )
        return Light(as_cubemap(torch.from_numpy(array), size))

    def cube(self, own: Tensor, size: int) -> Tensor:
        """[6, size, size, 3] radiance; ``own`` is the scene's, for a light without an environment."""
        cube = own if self.environment is None else self.environment.to(own)
        if self.turn % 360:
            cube = cubemap.turned(cube, rotation_about(self.up, self.turn).to(cube))
        if cube.shape[1] != size:
            cube = as_cubemap(cube, size)
        return cube * self.gain

    def turned(self, degrees: float) -> Light:
        return replace(self, turn=self.turn + degrees)


def as_cubemap(values: Tensor, size: int) -> Tensor:
    """[6, size, size, 3] of an equirectangular map or of a cubemap of another size."""
    if values.ndim == 3:
        return cubemap.from_equirect(values, size)
    have = values.shape[1]
    if have % size == 0:
        return cubemap.shrink(values, have // size)
    fine = max(1, math.ceil(have / size))
    return cubemap.shrink(cubemap.sample(values, cubemap.directions(size * fine).to(values)), fine)


def rotation_about(axis: Sequence[float], degrees: float) -> Tensor:
    """[3, 3] rotation about an axis, right-handed (Rodrigues)."""
    x, y, z = torch.nn.functional.normalize(torch.tensor(axis, dtype=torch.float64), dim=0).tolist()
    K = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    a = math.radians(degrees)
    return (torch.eye(3, dtype=torch.float64) + math.sin(a) * K + (1 - math.cos(a)) * K @ K).float()
