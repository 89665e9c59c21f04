"""Gaussians of a run, or of a file, in another format."""

from __future__ import annotations

from pathlib import Path

import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.formats import ending_of, load_gaussians, save_gaussians
from featuresplat.io.scene_folder import read_scene_folder


def export_run(source: str | Path, out: str | Path, plain: bool = False) -> int:
    """Write Gaussians in the format that the ending of ``out`` chooses (see `featuresplat.io.formats`).

    Args:
        source: a run folder, or a file of Gaussians or coloured points.
        out: ends in .ply, .compressed.ply, .splat or .spz; its folder is made when missing.
        plain: no features, only the properties that every tool knows.

    Returns:
        How many Gaussians were written.

    Raises:
        FeaturesplatError: nothing to read, an unknown ending, or ``out`` is part of the run itself.
    """
    source, out = Path(source), Path(out)
    ending_of(out)
    if out.is_dir():
        raise FeaturesplatError(f"{out}: is a folder.", "Give the name of a file.")
    if not source.exists():
        raise FeaturesplatError(f"{source}: there is no such run folder or file.", "Check the path.")
    if source.resolve() == out.resolve() or (source / "gaussians.ply").resolve() == out.resolve():
        raise FeaturesplatError(f"{out}: is what would be exported.", "Give another name.")
    if source.is_dir():
        folder = read_scene_folder(source)
        gaussians = folder.gaussians
        features = torch.cat([f.codes for f in folder.fields.values()], dim=1) if folder.fields else None
    else:
        loaded = load_gaussians(source)
        gaussians, features = loaded.gaussians, loaded.features
    save_gaussians(out, gaussians, features, plain)
    return len(gaussians)
