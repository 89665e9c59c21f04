"""Gaussians of a run, or of a file, in another format. docs/formats.md lists the columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.field_files import bundle
from featuresplat.io.formats import ending_of, save_gaussians
from featuresplat.io.ply import write_ply
from featuresplat.io.tensors import write_tensors
from featuresplat.scene import Scene, fields_beside


def export_run(
    source: str | Path,
    out: str | Path,
    plain: bool = False,
    *,
    labels: Sequence[str] | None = None,
    instances: bool = False,
    time: float | None = None,
) -> int:
    """Write Gaussians in the format that the ending of ``out`` chooses (see `featuresplat.io.formats`).

    A ``.ply`` holds the codes of all fields; what else belongs to the fields goes into ``OUT.fields.safetensors``
    beside it, and `Scene.load` reads both.

    Args:
        source: a run folder, or a file of Gaussians or coloured points.
        out: ends in .ply, .compressed.ply, .splat or .spz; its folder is made when missing.
        plain: no features, only the properties that every tool knows.
        labels: phrases; adds the column ``label``, the phrase that scores best above 0.5, -1 where none does. An empty
            sequence takes the labels that the scene's field knows by itself.
        instances: add the column ``instance``, the object of each Gaussian, -1 for none.
        time: in 0..1, of a scene that moves.

    Returns:
        How many Gaussians were written.

    Raises:
        FeaturesplatError: nothing to read, an unknown ending, ``out`` is part of the run itself, columns of one's own
            in a format that holds none, labels without a field that answers text.
    """
    source, out = Path(source), Path(out)
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
    if time is not None:
        scene = replace(scene, gaussians=scene.at(time).detach())
    if ending != ".ply" or plain:
        save_gaussians(out, scene.gaussians, bundle(scene.fields)[0], plain)
        return len(scene.gaussians)
    _write_full(out, scene, labels, instances)
    return len(scene.gaussians)


def _write_full(out: Path, scene: Scene, labels: Sequence[str] | None, instances: bool) -> None:
    codes, content = bundle(scene.fields)
    comments, extra = [], {}
    for name, field in scene.fields.items():
        comments.append(f"field {name} {field.dim} channels, teacher {field.teacher or 'unknown'}")
    if labels is not None:
        words, extra["label"] = _labels(scene, labels)
        comments += [f"label {k} {_ascii(word)}" for k, word in enumerate(words)]
    if instances:
        from featuresplat.prompts.instances import find

        found = find(scene)
        extra["instance"] = found.ids
        comments += [f"instance {k} {_ascii(name)}" for k, name in enumerate(found.names)]
    if codes is not None:
        beside = fields_beside(out)
        write_tensors(beside, *content)
        comments.append(f"sidecar {_ascii(beside.name)}")
    write_ply(out, scene.gaussians, codes, comments=comments, extra=extra)


def _labels(scene: Scene, phrases: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The phrases and, per Gaussian, which of them scores best; -1 where none scores above 0.5."""
    from featuresplat.prompts import text

    words = tuple(phrases) or text.labels_of(scene)
    if not words:
        raise FeaturesplatError("labels: the scene's field knows no labels by itself.", 'Name them: --labels "a mug".')
    best = text.score(scene, words).max(dim=0)
    return words, torch.where(best.values > 0.5, best.indices, -1).cpu()


def _ascii(text: str) -> str:
    """One line of ASCII, as a PLY's header has to be."""
    return " ".join(text.split()).encode("ascii", "replace").decode()
