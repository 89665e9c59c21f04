"""A light as people ask for it: a map, turned, brighter or darker, and point lights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.shading import cubemap, presets
from featuresplat.shading.light import DEFAULT_SIZE, Lamp, Light, as_cubemap, rotation_about

MOST_SAMPLES = 4096


def light_of(
    environment: Path | str | Any | None = None,
    *,
    turn: float = 0.0,
    gain: float = 1.0,
    up: Sequence[float] | None = None,
    points: Sequence[Sequence[float]] = (),
    samples: int = 0,
    size: int = DEFAULT_SIZE,
) -> Light | None:
    """The light that is asked for, or None where nothing is asked: the scene's own.

    Args:
        environment: map, as `Light.of` takes it, or a name of `presets.PRESETS`; None keeps the scene's own, turned
            and all.
        turn: degrees about ``up``, counter-clockwise seen from above.
        gain: factor on the environment's radiance; 0 leaves the point lights alone.
        up: world direction that the map's zenith is to point to; default +z, which is where maps have it.
        points: x y z intensity, or x y z red green blue: world frame, radiant intensity; what arrives at a distance d
            is intensity / d^2.
        samples: per pixel and kind of the Monte-Carlo option with shadows; 0 takes the fast forms.
        size: of the cubemap that a map is turned into.

    Raises:
        FeaturesplatError: a map that cannot be read, numbers that make no sense.
    """
    axis = _direction(up)
    if not math.isfinite(turn) or not (math.isfinite(gain) and gain >= 0):
        raise FeaturesplatError(
            f"light: expected a turn in degrees and a factor of at least 0, got {turn:g} and {gain:g}.",
            "--light-turn 90 --light-gain 2, for example.",
        )
    if not 0 <= samples <= MOST_SAMPLES:
        raise FeaturesplatError(
            f"light: expected 0 to {MOST_SAMPLES} samples, got {samples}.", "64 is slow and good; 0 is fast."
        )
    lamps = tuple(_lamp(p) for p in points)
    if environment is None and not (turn or gain != 1 or lamps or samples or up is not None):
        return None
    light = Light() if environment is None else _map(environment, size)
    if up is not None and light.environment is not None:
        # The map is as its maker saw it, with its zenith along +z; that is to be up here.
        light = replace(light, environment=cubemap.turned(light.environment, _onto(axis)))
    return replace(light, turn=light.turn + turn, gain=light.gain * gain, up=axis, lamps=lamps, samples=samples)


def _map(environment: Any, size: int) -> Light:
    if isinstance(environment, (str, Path)) and not Path(environment).exists():
        name = str(environment).lower()
        if name in presets.PRESETS:
            return Light(as_cubemap(presets.environment(name), size))
        if not Path(environment).suffix:
            close = difflib.get_close_matches(name, presets.PRESETS, n=1)
            hint = f"Perhaps you meant '{close[0]}'. " if close else ""
            raise FeaturesplatError(
                f"light: there is no map and no preset '{environment}'.",
                f"{hint}Presets: {', '.join(presets.PRESETS)}; or give an .hdr, .exr or .npy file.",
            )
    return Light.of(environment, size)


def _lamp(numbers: Sequence[float]) -> Lamp:
    if len(numbers) not in (4, 6):
        raise FeaturesplatError(
            f"point light: expected X Y Z INTENSITY or X Y Z R G B, got {len(numbers)} numbers.",
            "For example: --point-light 0 0 2 10",
        )
    x, y, z, *power = (float(v) for v in numbers)
    r, g, b = power if len(power) == 3 else power * 3
    return Lamp((x, y, z), (r, g, b))


def _direction(up: Sequence[float] | None) -> tuple[float, float, float]:
    if up is None:
        return (0.0, 0.0, 1.0)
    length = math.sqrt(sum(float(v) ** 2 for v in up)) if len(up) == 3 else 0.0
    if not (math.isfinite(length) and length > 1e-9):
        raise FeaturesplatError(f"light: up: expected a direction X Y Z, got {tuple(up)}.", "For example 0 -1 0.")
    x, y, z = (float(v) / length for v in up)
    return (x, y, z)


def _onto(axis: tuple[float, float, float]) -> torch.Tensor:
    """[3, 3] the shortest rotation that takes +z to ``axis``; about x where it is -z."""
    x, y, z = axis
    if math.hypot(x, y) < 1e-9:
        return torch.eye(3) if z > 0 else torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    return rotation_about((-y, x, 0.0), math.degrees(math.acos(max(-1.0, min(1.0, z)))))
