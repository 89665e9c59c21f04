"""Gaussians of a run, or of a file, in another format. docs/formats.md lists the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.io.formats import ending_of
from featuresplat.io.scene_file import write_scene_file
from featuresplat.scene import Scene


def export_run(
    source: str | Path,
    out: str | Path,
    plain: bool = False,
    *,
    labels: Sequence[str] | None = None,
    instances: bool = False,
    time: float | None = None,
    frames: int | None = None,
) -> int:
    """Write Gaussians in the format that the ending of ``out`` chooses (see `featuresplat.io.formats`).

    A ``.ply`` holds the codes of all fields; what else belongs to the fields goes into ``OUT.fields.safetensors``
    beside it, and `Scene.load` reads both.

    Args:
        source: a run folder, or a file of Gaussians or coloured points.
        out: ends in .ply, .compressed.ply, .splat or .spz, or as the run's mode knows (.hdr, .exr, .npy: the light of
            the mode `inverse`); its folder is made when missing.
        plain: no features, only the properties that every tool knows.
        labels: phrases; adds the column ``label``, the phrase that scores best above 0.5, -1 where none does. An empty
            sequence takes the labels that the scene's field knows by itself.
        instances: add the column ``instance``, the object of each Gaussian, -1 for none.
        time: in 0..1, of a scene that moves.
        frames: a sequence of so many files over the whole time, ``OUT`` with a number before its ending.

    Returns:
        How many Gaussians were written.

    Raises:
        FeaturesplatError: nothing to read, a time of what holds still, an unknown ending, ``out`` is part of the run
            itself, columns of one's own in a format that holds none, labels without a field that answers text.
    """
    source, out = Path(source), Path(out)
    if frames is not None:
        return _sequence(source, out, frames, plain)
    own = _endings_of_mode(source)
    whole = next((e for e in own if out.name.lower().endswith(e)), None)
    if whole is not None:
        return own[whole](Scene.load(source), out)
    ending = ending_of(out)
    if out.is_dir():
        raise FeaturesplatError(f"{out}: is a folder.", "Give the name of a file.")
    if not source.exists():
        raise FeaturesplatError(f"{source}: there is no such run folder or file.", "Check the path.")
    if source.resolve() == out.resolve() or (source / "gaussians.ply").resolve() == out.resolve():
        raise FeaturesplatError(f"{out}: is what would be exported.", "Give another name.")
    if (labels is not None or instances) and (plain or ending != ".ply"):
        kind = "a plain PLY" if plain else f"'{ending}'"
        raise FeaturesplatError(f"{out}: {kind} holds no labels or instances.", "Export to .ply, without --plain.")
    scene = Scene.load(source)
    if time is not None and not 0 <= time <= 1:
        raise FeaturesplatError(f"time: expected 0..1, got {time:g}.", "0 is the beginning, 1 the end.")
    if time is not None:
        if not hasattr(registry.load("modes", scene.mode), "at"):
            raise FeaturesplatError(f"{source}: holds still, it has no times.", "Leave --time and --frames out.")
        scene = replace(scene, gaussians=scene.at(time).detach())
    comments, extra = _columns(scene, labels, instances)
    module = registry.load("modes", scene.mode)
    if ending == ".ply" and not plain and hasattr(module, "columns"):
        more, own_columns = module.columns(scene, out)
        comments, extra = [*comments, *more], {**extra, **own_columns}
    write_scene_file(out, scene.gaussians, scene.fields, plain, comments, extra)
    return len(scene.gaussians)


def _endings_of_mode(source: Path) -> dict[str, Callable[[Scene, Path], int]]:
    """What the mode of a run writes itself, by ending."""
    if not source.is_dir():
        return {}
    return getattr(registry.load("modes", Scene.load(source).mode), "ENDINGS", {})


def _sequence(source: Path, out: Path, frames: int, plain: bool) -> int:
    """One file per time: OUT_0000.ply and so on; returns the number of Gaussians in each."""
    if not 2 <= frames <= 9999:
        raise FeaturesplatError(f"frames: expected 2 to 9999, got {frames}.", "For one time: --time 0.5.")
    ending, count = ending_of(out), 0
    stem = out.name[: -len(ending)]
    for k in range(frames):
        count = export_run(source, out.with_name(f"{stem}_{k:04d}{ending}"), plain, time=k / (frames - 1))
    return count


def _columns(scene: Scene, labels: Sequence[str] | None, instances: bool) -> tuple[list[str], dict[str, Tensor]]:
    """Comments and columns for what was asked for."""
    comments: list[str] = []
    extra: dict[str, Tensor] = {}
    if labels is not None:
        words, extra["label"] = _labels(scene, labels)
        comments += [f"label {k} {word}" for k, word in enumerate(words)]
    if instances:
        from featuresplat.prompts.instances import find

        found = find(scene)
        extra["instance"] = found.ids
        comments += [f"instance {k} {name}" for k, name in enumerate(found.names)]
    return comments, extra


def _labels(scene: Scene, phrases: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The phrases and, per Gaussian, which of them scores best; -1 where none scores above 0.5."""
    from featuresplat.prompts import text

    words = tuple(phrases) or text.labels_of(scene)
    if not words:
        raise FeaturesplatError("labels: the scene's field knows no labels by itself.", 'Name them: --labels "a mug".')
    best = text.score(scene, words).max(dim=0)
    return words, torch.where(best.values > 0.5, best.indices, -1).cpu()
