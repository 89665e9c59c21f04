"""Which numbers of a configuration make sense. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from featuresplat.errors import FeaturesplatError

ANY, FRACTION, POSITIVE = (-math.inf, math.inf), (0, 1), (5e-324, math.inf)
COUNT, SOME = (0, math.inf), (1, math.inf)
INT64 = (-(2**63), 2**63 - 1)

RANGES: dict[str, tuple[float, float]] = {
    "steps": SOME,
    "seed": INT64,
    "eval_views": COUNT,
    "eval_every": SOME,
    "checkpoint_every": SOME,
    "data.downscale": COUNT,
    "data.max_pixels": SOME,
    "data.test_every": SOME,
    "model.sh_degree": (0, 4),
    "model.sh_interval": COUNT,
    "model.init_count": SOME,
    "model.init_scale": POSITIVE,
    "model.max_scale": COUNT,
    "model.budget": SOME,
    "optim.means_lr": POSITIVE,
    "optim.means_lr_final": POSITIVE,
    "optim.batch": SOME,
    "loss.dssim": FRACTION,
    "loss.opacity": COUNT,
    "loss.scale": COUNT,
    "loss.depth": COUNT,
    "densify.start": FRACTION,
    "densify.stop": FRACTION,
    "densify.min_opacity": FRACTION,
    "densify.growth": COUNT,
    "densify.noise": COUNT,
    "densify.reset_every": COUNT,
    "exposure.regularise": COUNT,
    "dynamic.nodes": SOME,
    "dynamic.most_nodes": SOME,
    "dynamic.follow": SOME,
    "dynamic.fit_steps": COUNT,
    "dynamic.moving": SOME,
    "dynamic.rigidity": COUNT,
    "dynamic.smoothness": COUNT,
    "dynamic.mask": COUNT,
    "dynamic.grid_smoothness": COUNT,
    "inverse.radiance_run": COUNT,
    "inverse.pixels": SOME,
    "inverse.normal_gradient": FRACTION,
    "teacher.size": COUNT,
    "teacher.edges": COUNT,
    "field.dim": COUNT,
    "field.steps": COUNT,
    "field.cache_channels": COUNT,
    "field.memory": POSITIVE,
}
"""Least and greatest value by dotted name. Others may be any finite number, rates and weights none below 0."""


def check_ranges(config: Any, part: str = "") -> None:
    """Look at every number of a configuration, or of the ``part`` of one that it is.

    Raises:
        FeaturesplatError: one is no number, or outside of what makes sense; the hint says the default.
    """
    for entry in dataclasses.fields(config):
        name, value = f"{part}{entry.name}", getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            least, most = RANGES.get(name, COUNT if name.endswith(("_lr", ".lr", "_weight")) else ANY)
            if (isinstance(value, float) and not math.isfinite(value)) or not least <= value <= most:
                raise FeaturesplatError(f"{name}: expected {_words(least, most)}, got {value}", _remedy(name, entry))


def _words(least: float, most: float) -> str:
    if (least, most) == POSITIVE:
        return "a number above 0"
    if (least, most) == ANY:
        return "a finite number"
    if (least, most) == INT64:
        return "a whole number of 64 bits"
    if most == math.inf:
        return f"at least {least:g}"
    return f"{least:g} to {most:g}"


def _remedy(name: str, entry: dataclasses.Field) -> str:
    flag = name.replace("_", "-")
    return f"Leave --{flag} out to have {entry.default}."
