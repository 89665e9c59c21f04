"""Add an affinity field to a run: its objects apart, without names."""

from __future__ import annotations

from pathlib import Path

from featuresplat.verbs._shared import Flag, Run, given

ORDER = 16


def run(
    run: Run = "",
    masks: str = "segments",
    weights: Path | None = None,
    dim: int = 32,
    steps: int = 300,
    seed: int = 0,
    device: str = "auto",
    quiet: Flag = False,
) -> None:
    """Add an affinity field to a finished run: learned from masks of its photographs that know no classes, so that
    Gaussians of one object are alike. Clicks and the list of all objects use it.

    Args:
        run: Folder that train made; the field is written into it.
        masks: What makes the masks: sam, or segments (colour edges; no weights needed).
        weights: File of SAM's weights; default: downloaded by name.
        dim: Channels.
        steps: Of training, one view each.
        seed: Of everything random.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress bar.
    """
    folder = given("affinity", run, "the folder of a run", "runs/NAME")
    from featuresplat.affinity_run import train_affinity
    from featuresplat.devices import usable_device

    place = usable_device(device)
    count = train_affinity(folder, masks, weights, dim, steps, seed, place, progress=not quiet)
    print(f"field 'affinity' of {dim} channels from {count} masks, written to {folder}")
