"""Materials and light taken away: columns of a PLY, the light beside it, the light as an environment map."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.config import load_config
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import ENDINGS as MAPS
from featuresplat.io.envmap import read_environment, write_environment
from featuresplat.modes import _inverse_scene as finished
from featuresplat.prompts import materials
from featuresplat.shading import cubemap
from featuresplat.shading.tone import TONE_MAPS

if TYPE_CHECKING:
    from featuresplat.scene import Scene

MODE = "inverse"


def light_beside(path: str | Path) -> Path:
    """Where a PLY with materials keeps its light."""
    path = Path(path)
    return path.with_name(f"{path.name.removesuffix('.ply')}.light.npy")


def write_light(scene: Scene, path: str | Path) -> int:
    """Write a scene's light as a latitude-longitude map, .npy, .hdr or .exr; returns its height.

    Raises:
        FeaturesplatError: a scene without light; OpenEXR is not installed; the disk is full and the like.
    """
    finished.check(scene)
    cube = scene.mode_state["light"].cpu()
    height = 2 * cube.shape[1]
    write_environment(path, cubemap.to_equirect(cube, height, 2 * height).clamp_min(0).numpy())
    return height


ENDINGS: dict[str, Callable[[Scene, Path], int]] = dict.fromkeys(MAPS, write_light)
"""Files that `export` leaves to this mode."""


def columns(scene: Scene, path: str | Path) -> tuple[list[str], dict[str, Tensor]]:
    """Header comments and columns [N] of a PLY at ``path``; the light is written beside it. docs/formats.md lists them.

    Raises:
        FeaturesplatError: the disk is full and the like.
    """
    if not materials.has_materials(scene) or "light" not in scene.mode_state:
        return [], {}
    out: dict[str, Tensor] = {}
    for name in finished.NAMES:
        value = finished.material(scene, name)
        wide = value.shape[1] > 1
        out |= {f"{name}_{k}" if wide else name: value[:, k] for k in range(value.shape[1])}
    write_environment(light_beside(path), scene.mode_state["light"].cpu().numpy())
    told = {
        "light": light_beside(path).name,
        "environment": bool(scene.mode_state["environment"]),
        "tone": finished.tone_of(scene),
        "shadows": scene.config is None or scene.config.inverse.shadows,
    }
    return [f"mode {MODE} {json.dumps(told)}"], out


def from_columns(scene: Scene, told: str, found: Mapping[str, Tensor], path: str | Path) -> Scene:
    """The way back: the scene with its materials, from the rest of the comment and the columns.

    Without the file of the light beside it, the scene is under an even grey light.

    Raises:
        FeaturesplatError: the comment or the file beside is damaged, or a column is missing.
    """
    values = _read(told, path)
    state: dict[str, Tensor] = {}
    widths = {"base_color": 3, "normal": 3, "direct": 3, "reflected": 3}
    for name in finished.NAMES:
        count = widths.get(name, 1)
        keys = [f"{name}_{k}" for k in range(count)] if count > 1 else [name]
        missing = [k for k in keys if k not in found]
        if missing:
            raise FeaturesplatError(f"{path}: lacks the column '{missing[0]}' of its materials.", "Export it again.")
        value = torch.stack([found[k].float() for k in keys], dim=1)
        state[f"gaussian.{name}"] = value[:, 0] if name == "shown" else value
    beside = Path(path).with_name(values["light"])
    if beside.is_file():
        light = read_environment(beside)
        if light.ndim != 4:
            raise FeaturesplatError(f"{beside}: expected a cubemap [6, S, S, 3].", "Export the run again.")
    else:
        light = np.full((6, 128, 128, 3), 0.5, np.float32)
    config = load_config(MODE)
    config.inverse.tone, config.inverse.shadows = values["tone"], values["shadows"]
    state |= {"light": torch.from_numpy(light), "environment": torch.tensor(values["environment"])}
    return replace(scene, mode=MODE, mode_state=state, config=config)


def _read(told: str, path: str | Path) -> dict[str, Any]:
    try:
        values = json.loads(told)
        good = isinstance(values["light"], str) and Path(values["light"]).name == values["light"]
        good = (
            good
            and values["tone"] in TONE_MAPS
            and all(isinstance(values[k], bool) for k in ("environment", "shadows"))
        )
    except (ValueError, KeyError, TypeError):
        good, values = False, {}
    if not good:
        raise FeaturesplatError(f"{path}: what it says about its materials is damaged.", "Export the run again.")
    return values
