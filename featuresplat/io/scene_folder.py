"""The run folder's scene: ``scene.json`` names every other file with its sha256, and is written last.

::

    scene.json       format, generator, units {center, scale}, mode, fields, files {name: {sha256, bytes}}, info
    gaussians.ply    Gaussians; the codes of all fields side by side as feature_0 .. feature_{D-1}
    cameras.json     see featuresplat.io.cameras
    mode.safetensors tensors of the mode, when it has any
    NAME.decoder.safetensors, NAME.field.safetensors   what fields have beside codes: featuresplat.io.field_files

Two fields over the same codes share their columns.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path, atomic_write_json
from featuresplat.io.cameras import read_cameras, write_cameras
from featuresplat.io.field_files import field_files, read_field, sparse_codes
from featuresplat.io.ply import read_ply, write_ply
from featuresplat.io.safe_paths import inside
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.types import Cameras, FeatureField, Gaussians

FORMAT = 1
SCENE, GAUSSIANS, CAMERAS, MODE = "scene.json", "gaussians.ply", "cameras.json", "mode.safetensors"


@dataclass
class SceneFolder:
    """What a run folder holds.

    Attributes:
        gaussians: float32, frame of the input data.
        cameras: as they were written.
        fields: by name, in the order of writing.
        mode: name of the mode.
        mode_state: its tensors, or None.
        info: what the writer wanted to be kept; JSON.
        units: ``center`` [3] and ``scale``: training saw (x - center) * scale; the files hold x.
    """

    gaussians: Gaussians
    cameras: Cameras
    fields: dict[str, FeatureField] = field(default_factory=dict)
    mode: str = "static"
    mode_state: dict[str, Tensor] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=lambda: {"center": [0.0, 0.0, 0.0], "scale": 1.0})


def write_scene_folder(
    folder: str | Path,
    gaussians: Gaussians,
    cameras: Cameras,
    fields: Mapping[str, FeatureField] | None = None,
    mode: str = "static",
    mode_state: Mapping[str, Tensor] | None = None,
    info: Mapping[str, Any] | None = None,
    *,
    units: Mapping[str, Any] | None = None,
) -> Path:
    """Write a scene; all files are complete on the disk before the first of them gets its name.

    Args:
        folder: the run folder; made when missing. Other files in it are left alone.
        gaussians: N Gaussians, frame of the input data.
        cameras: the cameras of the scene.
        fields: of N rows, by name.
        mode: name of the mode.
        mode_state: tensors of the mode by name.
        info: anything that JSON can say.
        units: ``center`` [3] and ``scale`` of the normalisation that training used, for information.

    Returns:
        The path of scene.json.

    Raises:
        FeaturesplatError: a field of another N or with an unusable name, a full disk and the like; the old scene
            is untouched then.
    """
    folder = Path(folder)
    fields = fields or {}
    described, columns = _describe_fields(len(gaussians), fields)
    codes = torch.cat(columns, dim=1) if columns else None
    files: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        # The stack renames in reverse: scene.json, which vouches for all others, comes last.
        scene = stack.enter_context(atomic_path(folder / SCENE))
        staged = {name: stack.enter_context(atomic_path(folder / name)) for name in (GAUSSIANS, CAMERAS)}
        write_ply(staged[GAUSSIANS], gaussians, codes, comments=[f"sidecar {SCENE}"])
        write_cameras(staged[CAMERAS], cameras)
        further = {MODE: (dict(mode_state), {})} if mode_state else {}
        for name, value in fields.items():
            further |= field_files(name, value)
        for name, (tensors, header) in further.items():
            staged[name] = stack.enter_context(atomic_path(folder / name))
            write_tensors(staged[name], tensors, header)
        for name, path in staged.items():
            files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        content = {
            "format": FORMAT,
            "generator": "featuresplat",
            "units": {"center": [0.0, 0.0, 0.0], "scale": 1.0, **(units or {})},
            "mode": mode,
            "fields": described,
            "files": files,
            "info": dict(info or {}),
        }
        atomic_write_json(scene, content)
    return folder / SCENE


def read_scene_folder(folder: str | Path) -> SceneFolder:
    """Read a scene and check every file it names.

    Raises:
        FeaturesplatError: no such folder, an empty one, no scene.json in it, a newer format, a path that
            leaves the folder, a file that is missing or has changed since, or content that does not fit
            together.
    """
    folder = Path(folder)
    content = _read_scene_json(folder)
    try:
        return _assemble(folder, content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FeaturesplatError(
            f"{folder / SCENE}: is not as featuresplat writes it ({type(error).__name__}: {error}).", _AGAIN
        ) from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _describe_fields(count: int, fields: Mapping[str, FeatureField]) -> tuple[dict[str, dict[str, Any]], list[Tensor]]:
    """The entries of scene.json, and the columns [N, D] that go into the PLY."""
    described: dict[str, dict[str, Any]] = {}
    columns: list[Tensor] = []
    places: dict[int, int] = {}  # where the codes of a tensor stand: fields may share them
    width = 0
    for name, value in fields.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
            raise FeaturesplatError(f"fields: '{name}' is no usable name.", "Use letters, digits, '_', '-' and '.'.")
        if value.codes.ndim != 2 or len(value.codes) != count:
            raise FeaturesplatError(
                f"fields: expected codes [{count}, D] for '{name}', got {tuple(value.codes.shape)}.",
                "Give one row per Gaussian.",
            )
        sparse = sparse_codes(value) is not None
        offset = None if sparse else places.setdefault(id(value.codes), width)
        if offset == width:
            columns.append(value.codes.detach().cpu().float())
            width += value.dim
        described[name] = {
            "dim": value.dim,
            "offset": offset,
            "teacher": value.teacher,
            "out_dim": value.out_dim,
            "decoder": f"{name}.decoder.safetensors" if value.decoder is not None else None,
            "sidecar": next((f for f in field_files(name, value) if f.endswith(".field.safetensors")), None),
            "info": dict(value.info),
        }
    return described, columns


def _read_scene_json(folder: Path) -> dict[str, Any]:
    path = folder / SCENE
    if not folder.is_dir():
        what = "is a file, not a run folder" if folder.exists() else "there is no such run folder"
        raise FeaturesplatError(f"{folder}: {what}.", "Give the folder that train made, such as runs/NAME.")
    if not path.is_file():
        what = "holds no scene.json" if any(folder.iterdir()) else "is empty"
        raise FeaturesplatError(
            f"{folder}: {what}.",
            "Give a folder that train has finished, or resume its training with --resume.",
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeaturesplatError(f"{path}: is not readable JSON ({error}).", _AGAIN) from error
    version = content.get("format") if isinstance(content, dict) else None
    if not isinstance(version, int) or version < 1:
        raise FeaturesplatError(f"{path}: expected a scene with a format version, got {version!r}.", _AGAIN)
    if version > FORMAT:
        raise FeaturesplatError(
            f"{path}: was written in scene format {version}; the newest known here is {FORMAT}.",
            "Update featuresplat.",
        )
    return content


def _assemble(folder: Path, content: dict[str, Any]) -> SceneFolder:
    # All paths are judged before any file is opened.
    files = {name: inside(folder, name) for name in content["files"]}
    entries: dict[str, dict[str, Any]] = content["fields"]
    needed = [e.get(kind) for e in entries.values() for kind in ("decoder", "sidecar")]
    needed = [inside(folder, name).name for name in needed if name is not None]
    for name in (GAUSSIANS, CAMERAS, *needed):
        if name not in files:
            raise FeaturesplatError(f"{folder / SCENE}: does not list the file '{name}' that it needs.", _AGAIN)
    for name, path in files.items():
        _check_file(path, content["files"][name])
    loaded = read_ply(files[GAUSSIANS], drop_invalid=False)
    return SceneFolder(
        gaussians=loaded.gaussians,
        cameras=read_cameras(files[CAMERAS]),
        fields=_read_fields(folder, entries, files, loaded.features, len(loaded.gaussians)),
        mode=str(content["mode"]),
        mode_state=read_tensors(files[MODE])[0] if MODE in files else None,
        info=dict(content["info"]),
        units=_units(content["units"]),
    )


def _units(stored: Any) -> dict[str, Any]:
    units = dict(stored)
    numbers = [float(v) for v in (*units["center"], units["scale"])]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)) or numbers[3] <= 0:
        raise ValueError(f"units: expected a center of three numbers and a scale above 0, got {units}")
    return units


def _read_fields(
    folder: Path, entries: dict[str, dict[str, Any]], files: dict[str, Path], features: Tensor | None, count: int
) -> dict[str, FeatureField]:
    have = 0 if features is None else features.shape[1]
    fields: dict[str, FeatureField] = {}
    read: dict[int, Tensor] = {}  # codes by their first column: a second field may share them
    at = 0
    for name, entry in entries.items():
        first, dim = entry["offset"], entry["dim"]
        codes = None if first is None else read.get(first)
        if first is not None and (codes is None or codes.shape[1] != dim):
            if first != at or dim < 1 or at + dim > have or features is None:
                raise FeaturesplatError(
                    f"{folder / SCENE}: the field '{name}' is said to be columns {first} to {first + dim - 1}, but "
                    f"columns {at} to {have - 1} are left for it.",
                    _AGAIN,
                )
            codes = read[first] = features[:, at : at + dim].contiguous()
            at += dim
        decoder, sidecar = (files[entry[k]] if entry.get(k) else None for k in ("decoder", "sidecar"))
        fields[name] = read_field(codes, entry, decoder, sidecar, count)
    if at != have:
        raise FeaturesplatError(f"{folder / SCENE}: its fields use {at} of {have} feature columns.", _AGAIN)
    return fields


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise FeaturesplatError(f"{path}: scene.json names this file, but it is missing.", "Copy the whole folder.")
    if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
        raise FeaturesplatError(
            f"{path}: is not the file that scene.json describes (its sha256 differs).",
            "Copy the whole folder again; to use the file by itself, give its own path.",
        )


_AGAIN = "Train or export the scene again."
