"""A whole moving scene in one file, ``NAME.motion.safetensors``; docs/formats.md lists its tensors.

Gaussians and nodes are float32; of each feature field, what holds still keeps its codes, what moves is blended from
codes on the nodes.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.modes._motion.codes import from_nodes, on_nodes
from featuresplat.modes._motion.finished import moves
from featuresplat.types import FeatureField, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

ENDING = ".motion.safetensors"
FORMAT = 1


def write_whole(scene: Scene, path: str | Path, fields: bool = True) -> int:
    """Write a scene of the mode `dynamic`; returns the number of Gaussians.

    Raises:
        FeaturesplatError: a scene of another mode, a disk that is full and the like.
    """
    if "gaussian.nodes" not in scene.mode_state:
        raise FeaturesplatError(
            f"{path}: a scene of mode '{scene.mode}' has no nodes to write.",
            "Export it at one time: --time 0.5, to .ply.",
        )
    tensors = {f"gaussians.{k}": v for k, v in scene.gaussians.tensors().items()}
    tensors |= {k: v for k, v in scene.mode_state.items() if k.startswith(("nodes.", "gaussian."))}
    still, described = ~moves(scene), {}
    for name, field in scene.fields.items() if fields else ():
        tensors[f"fields.{name}.still"] = field.codes[still]
        tensors[f"fields.{name}.nodes"] = on_nodes(scene, field)
        described[name] = {"dim": field.dim, "teacher": field.teacher}
    meta = {"format": str(FORMAT), "generator": "featuresplat", "fields": json.dumps(described)}
    write_tensors(path, tensors, meta | {"units": json.dumps(scene.units)})
    return len(scene.gaussians)


def read_whole(path: str | Path, like: Scene) -> Scene:
    """The scene that `write_whole` wrote, with the cameras and the decoders of ``like``.

    Raises:
        FeaturesplatError: missing, damaged, or of a newer format.
    """
    tensors, meta = read_tensors(path)
    try:
        if int(meta["format"]) > FORMAT:
            raise FeaturesplatError(
                f"{path}: is of format {meta['format']}; known is {FORMAT}.", "Update featuresplat."
            )
        names = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")
        gaussians = Gaussians(**{k: tensors[f"gaussians.{k}"] for k in names})
        described = json.loads(meta["fields"])
        units = json.loads(meta["units"])
    except (KeyError, ValueError) as error:
        raise FeaturesplatError(f"{path}: is no moving scene of ours ({error}).", "Export it again.") from None
    state = {k: v for k, v in tensors.items() if k.startswith(("nodes.", "gaussian."))}
    scene = replace(like, gaussians=gaussians, mode="dynamic", mode_state=state, units=units, fields={})
    moving = moves(scene)
    for name, facts in described.items():
        codes = torch.zeros(len(gaussians), int(facts["dim"]))
        codes[~moving] = tensors[f"fields.{name}.still"]
        codes[moving] = from_nodes(scene, tensors[f"fields.{name}.nodes"])
        known = like.fields.get(name)
        field = FeatureField(codes, facts["teacher"]) if known is None else replace(known, codes=codes, confidence=None)
        scene.fields[name] = field
    return scene
