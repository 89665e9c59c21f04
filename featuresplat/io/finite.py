"""What becomes of NaN and infinity in Gaussians that come from, or go to, a file."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.types import Gaussians

LOGIT_LIMIT = 20.0
"""An infinite logit is read as this: sigmoid(20) is 1 to 2e-9."""
LOG_SCALE_LIMIT = -20.0
"""A scale of zero is read as exp(-20) units, 2e-9."""


def finite_rows(gaussians: Gaussians, features: Tensor | None = None) -> tuple[Gaussians, Tensor]:
    """Make every value finite, or find that it cannot be.

    Two infinities have a meaning and are clamped: a logit of +-inf (opacity 0 or 1, which other tools write)
    and a log scale of -inf (a flat Gaussian).

    Args:
        gaussians: on the CPU, without a gradient.
        features: [N, D] likewise, to be looked at as well.

    Returns:
        (Gaussians of the same N with those two clamped, [N] bool: the rows that are finite throughout).
    """
    logits = gaussians.logit_opacities
    scales = gaussians.log_scales
    # NaN compares false, so it stays and is found below.
    logits = torch.where(logits.isinf(), logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), logits)
    scales = torch.where(scales == -torch.inf, torch.full_like(scales, LOG_SCALE_LIMIT), scales)
    values = dict(gaussians.tensors(), logit_opacities=logits, log_scales=scales)
    good = np.ones(len(gaussians), bool)
    for value in (*values.values(), features):
        if value is not None:
            # numpy, because torch's isfinite makes a float copy of the whole on its way.
            good &= np.isfinite(value.numpy()).reshape(len(good), -1).all(axis=1)
    return Gaussians(**values), torch.from_numpy(good)


def without_bad_rows(gaussians: Gaussians, where: str) -> Gaussians:
    """The Gaussians whose values are all finite; a warning tells how many were not.

    Raises:
        FeaturesplatError: when not one is.
    """
    gaussians, good = finite_rows(gaussians)
    if bool(good.all()):
        return gaussians
    warn_dropped(where, good)
    return gaussians[good]


def ready_to_write(gaussians: Gaussians, path: Path) -> Gaussians:
    """Float32 on the CPU, without a gradient, all values finite: what a quantised format needs.

    Raises:
        FeaturesplatError: when there is nothing to write.
    """
    if len(gaussians) == 0:
        raise FeaturesplatError(f"{path}: there are no Gaussians to write.", "Check what was selected or trained.")
    return without_bad_rows(gaussians.detach().to("cpu", torch.float32), str(path))


def warn_dropped(where: str, good: Tensor) -> None:
    """Warn that the rows where ``good`` [N] is false were left out.

    Raises:
        FeaturesplatError: when no row is left.
    """
    bad = int((~good).sum())
    if bad == len(good):
        raise FeaturesplatError(
            f"{where}: every one of its {bad} Gaussians holds NaN or infinite values.",
            "The file is damaged, or its training diverged; take an earlier result.",
        )
    warnings.warn(f"{where}: left out {bad} of {len(good)} Gaussians that hold NaN or infinite values.", stacklevel=4)
