"""The file's ending chooses the format: ``.ply``, ``.compressed.ply``, ``.splat``, ``.spz``."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.compressed_ply import read_compressed_ply, write_compressed_ply
from featuresplat.io.ply import GaussianFile, read_ply, read_point_cloud, write_ply
from featuresplat.io.ply_header import read_header
from featuresplat.io.splat import read_splat, write_splat
from featuresplat.io.spz import read_spz, write_spz
from featuresplat.points import gaussians_from_points
from featuresplat.types import Gaussians

ENDINGS = {
    ".compressed.ply": "SuperSplat's compressed PLY, 16 bytes a Gaussian and a byte a coefficient",
    ".ply": "everything, exactly",
    ".splat": "32 bytes a Gaussian, no view-dependent colour",
    ".spz": "Niantic's SPZ, the smallest",
}
"""The known endings and what they are for."""


def ending_of(path: str | Path) -> str:
    """The known ending of a path.

    Raises:
        FeaturesplatError: naming the known ones.
    """
    name = Path(path).name.lower()
    for ending in ENDINGS:  # the longer of two that match comes first
        if name.endswith(ending):
            return ending
    raise FeaturesplatError(
        f"{path}: expected the ending {', '.join(ENDINGS)}, got '{Path(path).suffix or 'none'}'.",
        "The ending chooses the format.",
    )


def save_gaussians(path: str | Path, gaussians: Gaussians, features: Tensor | None = None, plain: bool = False) -> None:
    """Write Gaussians in the format of the path's ending, atomically.

    Only ``.ply`` holds features; where they are given for another format and ``plain`` is false, a warning
    says that they were left out. ``plain`` writes nothing but the properties that every tool knows.

    Raises:
        FeaturesplatError: unknown ending, or as the format's writer.
    """
    ending = ending_of(path)
    if ending == ".ply":
        return write_ply(path, gaussians, features, plain)
    if features is not None and not plain:
        warnings.warn(f"{path}: {ending} holds no features; they were left out. Use .ply to keep them.", stacklevel=2)
    {".compressed.ply": write_compressed_ply, ".splat": write_splat, ".spz": write_spz}[ending](path, gaussians)


def load_gaussians(path: str | Path) -> GaussianFile:
    """Read Gaussians from any format that we write; a PLY tells by its header whether it is plain, compressed
    or a coloured point cloud, which becomes small opaque-ish Gaussians (:mod:`featuresplat.points`).

    Raises:
        FeaturesplatError: unknown ending, or as the format's reader.
    """
    ending = ending_of(path)
    if ending == ".splat":
        return GaussianFile(read_splat(path))
    if ending == ".spz":
        return GaussianFile(read_spz(path))
    header = read_header(path)
    if header.kind == "compressed":
        return GaussianFile(read_compressed_ply(path), comments=header.comments)
    if header.kind == "points":
        points = gaussians_from_points(read_point_cloud(path), opacity=0.9)
        return GaussianFile(points, comments=header.comments)
    return read_ply(path)
