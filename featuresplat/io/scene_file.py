"""Gaussians with their fields in one file, for taking away: a PLY, and beside it what columns cannot say.

``OUT.ply`` has the codes of all fields as ``feature_0 ...``; ``OUT.fields.safetensors`` has their decoders, confidence
and phrases. Other formats hold no features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from featuresplat.io.field_files import bundle, unbundle
from featuresplat.io.formats import ENDINGS, ending_of, load_gaussians, save_gaussians
from featuresplat.io.ply import GaussianFile, write_ply
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.types import FeatureField, Gaussians


def is_scene_file(path: str | Path) -> bool:
    """Whether a path has an ending of a format of Gaussians."""
    return str(path).lower().endswith(tuple(ENDINGS))


def fields_beside(path: str | Path) -> Path:
    """Where a PLY keeps what its feature columns do not say."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.ply')}.fields.safetensors")


def write_scene_file(
    path: str | Path,
    gaussians: Gaussians,
    fields: Mapping[str, FeatureField],
    plain: bool = False,
    comments: Sequence[str] = (),
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write Gaussians and fields in the format of the path's ending.

    Args:
        plain: no features, only the properties that every tool knows.
        comments, extra: see `featuresplat.io.ply.write_ply`; of a full PLY only.

    Raises:
        FeaturesplatError: as `featuresplat.io.formats.save_gaussians`.
    """
    path = Path(path)
    codes, content = bundle(fields)
    if ending_of(path) != ".ply" or plain:
        save_gaussians(path, gaussians, codes, plain)
        return
    told = [f"field {name} {f.dim} channels, teacher {f.teacher or 'unknown'}" for name, f in fields.items()]
    if codes is not None:
        told.append(f"sidecar {fields_beside(path).name}")
        write_tensors(fields_beside(path), *content)
    write_ply(path, gaussians, codes, comments=[one_line(line) for line in (*told, *comments)], extra=extra)


def read_scene_file(path: str | Path) -> tuple[GaussianFile, dict[str, FeatureField]]:
    """The way back. Feature columns with no file beside them are a field called ``features``.

    Raises:
        FeaturesplatError: as `featuresplat.io.formats.load_gaussians`, or the file beside is damaged or another's.
    """
    loaded = load_gaussians(path)
    if loaded.features is None:
        return loaded, {}
    beside = fields_beside(path)
    if not beside.is_file() or loaded.dropped:
        return loaded, {"features": FeatureField(loaded.features)}
    return loaded, unbundle(loaded.features, read_tensors(beside), str(beside))


def one_line(text: str) -> str:
    """One line of ASCII, as a PLY's header has to be."""
    return " ".join(text.split()).encode("ascii", "replace").decode()
