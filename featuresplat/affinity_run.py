"""An affinity field for a finished run, from masks of its photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of
from featuresplat.io.atomic import check_folder
from featuresplat.prompts import affinity
from featuresplat.scene import Scene


def train_affinity(
    run: str | Path,
    masks: str = "segments",
    weights: Path | None = None,
    dim: int = 32,
    steps: int = 300,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> int:
    """Train an affinity field and write it into the run, as its field ``affinity``.

    Args:
        masks: ``sam``, or ``segments`` (needs the extra of that name and no weights).
        weights: of SAM.

    Returns:
        How many masks it was learned from.

    Raises:
        FeaturesplatError: no such run, its photographs are gone, no such maker of masks or its package is missing,
            no view has two masks, the run cannot be written.
    """
    maker = _maker(masks, weights, device)
    scene = Scene.load(run)
    check_folder(run)
    dataset = dataset_of(scene)
    names = list(dataset.cameras.names)
    count = 0

    def masks_of(name: str) -> list[Tensor]:
        nonlocal count
        found = maker.masks(dataset.image(names.index(name)).float() / 255)
        count += len(found)
        return found

    field = affinity.train(scene.to(device), masks_of, dim, steps, seed, _told(steps) if progress else None)
    scene.fields["affinity"] = field.to("cpu")
    scene.save(run)
    return count


def _maker(masks: str, weights: Path | None, device: str | torch.device) -> Any:
    if masks == "segments":
        from featuresplat.teachers._segments import SegmentMasks

        return SegmentMasks()
    if masks == "sam":
        from featuresplat.config_fields import TeacherConfig
        from featuresplat.teachers import make_teacher

        return make_teacher("sam", TeacherConfig(name="sam", path=weights), device)
    raise FeaturesplatError(f"masks: nothing called '{masks}' makes them", "Use segments or sam.")


def _told(steps: int):
    """A line now and then."""
    import sys

    def told(step: int, of: int) -> None:
        if step % max(1, steps // 10) == 0:
            print(f"affinity: step {step} of {of}", file=sys.stderr)

    return told
