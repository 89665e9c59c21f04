"""The run folder's scene: ``scene.json`` names every other file with its sha256, and is written last.

::

    scene.json       format, generator, units {center, scale}, mode, fields, files {name: {sha256, bytes}},
    info gaussians.ply    Gaussians; the codes of all fields side by side as feature_0 .. feature_{D-1}
    cameras.json     see featuresplat.io.cameras
    mode.safetensors tensors of the mode, when it has any
"""

from __future__ import annotations

import hashlib
import json
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
        fields: codes by field name, in the order of writing.
        mode: name of the mode.
        mode_state: its tensors, or None.
        info: what the writer wanted to be kept; JSON.
        units: ``center`` [3] and ``scale``: training saw (x - center) * scale; the files hold x.
        decoders: paths of the decoder files, by field name.
    """

    gaussians: Gaussians
    cameras: Cameras
    fields: dict[str, FeatureField] = field(default_factory=dict)
    mode: str = "static"
    mode_state: dict[str, Tensor] | None = None
    info: dict[str, Any] = field(default_factory=dict)
    units: dict[str, Any] = field(default_factory=lambda: {"center": [0.0, 0.0, 0.0], "scale": 1.0})
    decoders: dict[str, Path] = field(default_factory=dict)


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
    decoders: Mapping[str, str] | None = None,
) -> Path:
    """Write a scene; all files are complete on the disk before the first of them gets its name.

    Args:
        folder: the run folder; made when missing. Other files in it are left alone.
        gaussians: N Gaussians, frame of the input data.
        cameras: the cameras of the scene.
        fields: [N, D] codes by name.
        mode: name of the mode.
        mode_state: tensors of the mode by name.
        info: anything that JSON can say.
        units: ``center`` [3] and ``scale`` of the normalisation that training used, for information.
        decoders: file in ``folder`` by field name; the files are there already.

    Returns:
        The path of scene.json.

    Raises:
        FeaturesplatError: a field of another N or with an unusable name, a decoder that is not there or lies
            outside of the folder, a full disk and the like; the old scene is untouched then.
    """
    folder = Path(folder)
    fields, decoders = fields or {}, decoders or {}
    described = _describe_fields(folder, len(gaussians), fields, decoders)
    codes = torch.cat([f.codes.detach().cpu().float() for f in fields.values()], dim=1) if fields else None
    files: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        # The stack renames in reverse: scene.json, which vouches for all others, comes last.
        scene = stack.enter_context(atomic_path(folder / SCENE))
        staged = {name: stack.enter_context(atomic_path(folder / name)) for name in (GAUSSIANS, CAMERAS)}
        write_ply(staged[GAUSSIANS], gaussians, codes, comments=[f"sidecar {SCENE}"])
        write_cameras(staged[CAMERAS], cameras)
        if mode_state:
            staged[MODE] = stack.enter_context(atomic_path(folder / MODE))
            write_tensors(staged[MODE], mode_state)
        for name, path in {**staged, **{n: inside(folder, n) for n in decoders.values()}}.items():
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


def _describe_fields(
    folder: Path, count: int, fields: Mapping[str, FeatureField], decoders: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    described: dict[str, dict[str, Any]] = {}
    offset = 0
    for name, value in fields.items():
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
            raise FeaturesplatError(f"fields: '{name}' is no usable name.", "Use letters, digits, '_', '-' and '.'.")
        if value.codes.ndim != 2 or len(value.codes) != count:
            raise FeaturesplatError(
                f"fields: expected codes [{count}, D] for '{name}', got {tuple(value.codes.shape)}.",
                "Give one row per Gaussian.",
            )
        decoder = decoders.get(name)
        described[name] = {"dim": value.dim, "offset": offset, "teacher": value.teacher, "decoder": decoder}
        offset += value.dim
    for name, file in decoders.items():
        if name not in fields or not inside(folder, file, "decoders").is_file():
            missing = f"file '{file}'" if name in fields else f"field '{name}'"
            raise FeaturesplatError(
                f"decoders: there is no {missing}.",
                "Write the decoder into the run folder first, and name its field.",
            )
    return described


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
    decoders = {n: inside(folder, e["decoder"]) for n, e in entries.items() if e["decoder"] is not None}
    for name in (GAUSSIANS, CAMERAS, *(e["decoder"] for e in entries.values() if e["decoder"] is not None)):
        if name not in files:
            raise FeaturesplatError(f"{folder / SCENE}: does not list the file '{name}' that it needs.", _AGAIN)
    for name, path in files.items():
        _check_file(path, content["files"][name])
    loaded = read_ply(files[GAUSSIANS], drop_invalid=False)
    have = 0 if loaded.features is None else loaded.features.shape[1]
    fields: dict[str, FeatureField] = {}
    at = 0
    for name, entry in entries.items():
        if entry["offset"] != at or entry["dim"] < 1 or at + entry["dim"] > have or loaded.features is None:
            raise FeaturesplatError(
                f"{folder / SCENE}: the field '{name}' is said to be columns {entry['offset']} to "
                f"{entry['offset'] + entry['dim'] - 1}, but columns {at} to {have - 1} are left for it.",
                _AGAIN,
            )
        fields[name] = FeatureField(loaded.features[:, at : at + entry["dim"]].contiguous(), str(entry["teacher"]))
        at += entry["dim"]
    if at != have:
        raise FeaturesplatError(f"{folder / SCENE}: its fields use {at} of {have} feature columns.", _AGAIN)
    return SceneFolder(
        gaussians=loaded.gaussians,
        cameras=read_cameras(files[CAMERAS]),
        fields=fields,
        mode=str(content["mode"]),
        mode_state=read_tensors(files[MODE])[0] if MODE in files else None,
        info=dict(content["info"]),
        units=dict(content["units"]),
        decoders=decoders,
    )


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    if not path.is_file():
        raise FeaturesplatError(f"{path}: scene.json names this file, but it is missing.", "Copy the whole folder.")
    if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
        raise FeaturesplatError(
            f"{path}: is not the file that scene.json describes (its sha256 differs).",
            "Copy the whole folder again; to use the file by itself, give its own path.",
        )


_AGAIN = "Train or export the scene again."
