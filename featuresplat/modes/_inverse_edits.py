"""What edits do to a scene of materials: its tensors follow, and its radiance shows what the physical model says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.geometry import sh_bases
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes import _inverse_scene as finished
from featuresplat.prompts import materials
from featuresplat.prompts.edits import Edit
from featuresplat.prompts.materials import Material
from featuresplat.shading import cubemap, tone, transfer
from featuresplat.shading.deferred import Received, shade
from featuresplat.shading.monte_carlo import Surface
from featuresplat.types import SH_C0

if TYPE_CHECKING:
    from featuresplat.scene import Scene

EDITS: dict[str, type[Edit]] = {Material.kind: Material}
LOOKS, FEWER, MANY = 64, 32, 5000
"""Directions in which a Gaussian's radiance is looked at, and fewer of them from so many Gaussians on; those below its
horizon are left out."""
RIDGE = 0.02
"""Pull of the harmonics to zero: half of the directions say nothing."""
GUESS = 0.5
"""Roughness of what comes from a scene without materials."""
_ROWS = 2048


@torch.no_grad()
def radiating(scene: Scene, mask: Tensor) -> Scene:
    """The scene whose Gaussians at ``mask`` [N] send out what the physical model says under the scene's own light.

    Their spherical harmonics are fitted to it, by least squares over directions above each horizon.
    """
    g = scene.gaussians
    rows = mask.nonzero()[:, 0]
    stage = finished.staged(scene, None)
    looks = LOOKS if len(rows) < MANY else FEWER
    k = torch.arange(looks, device=g.means.device, dtype=torch.float32) + 0.5
    z, turn = 1 - 2 * k / looks, math.pi * (1 + 5**0.5) * k
    dirs = torch.stack([(1 - z * z).sqrt() * turn.cos(), (1 - z * z).sqrt() * turn.sin(), z], 1)
    basis = sh_bases(-dirs, g.sh_degree)  # a Gaussian's colour is asked for in the direction of the ray
    found = []
    for part in rows.split(_ROWS):
        f = stage.features[part][:, None].expand(-1, looks, -1).reshape(len(part) * looks, -1)
        view = dirs.expand(len(part), -1, -1).reshape(-1, 3)
        normal = F.normalize(f[:, 6:9], dim=-1)
        position = g.means[part][:, None].expand(-1, looks, -1).reshape(-1, 3)
        surface = Surface(normal, view, f[:, :3], f[:, 3], f[:, 4], position)
        diffuse, specular = shade(surface, Received(f[:, 9:12], f[:, 12:15], f[:, 15]), stage.lighting)
        colors = tone.display(diffuse + specular, finished.tone_of(scene)).reshape(len(part), looks, 3) - 0.5
        weight = ((normal * view).sum(1).reshape(len(part), looks, 1) > 0.05).float()
        pull = RIDGE * looks * torch.eye(basis.shape[1]).to(basis)
        pull[0, 0] = 1e-4
        found.append(torch.linalg.solve((basis.T @ (weight * basis)) + pull, basis.T @ (weight * colors)))
    sh = torch.cat(found) if found else g.sh0.new_zeros(0, basis.shape[1], 3)
    sh0, shN = g.sh0.clone(), g.shN.clone()
    sh0[rows], shN[rows] = sh[:, :1], sh[:, 1:]
    return replace(scene, gaussians=replace(g, sh0=sh0, shN=shN))


def recolored(scene: Scene, mask: Tensor, matrix: Tensor, offset: Tensor) -> dict[str, Tensor]:
    """The mode's tensors after colours c at ``mask`` became matrix c + offset: so do the base colours, as encoded."""
    if not materials.has_materials(scene):
        return scene.mode_state
    base = scene.mode_state["gaussian.base_color"].clone()
    shown = tone.srgb(base[mask])
    base[mask] = tone.linear((shown @ matrix.T.to(shown) + offset.to(shown)).clamp(0, 1))
    return {**scene.mode_state, "gaussian.base_color": base}


def moved(
    scene: Scene, mask: Tensor, rotation: Tensor, scale: float, pivot: Tensor, translate: Tensor
) -> dict[str, Tensor]:
    """The mode's tensors after Gaussians at ``mask`` were moved: normals turn, and with them the light that arrives.

    Under the scene's own light that is the open sky's, dimmed by the openness of where they came from; under another
    light everything is found anew.
    """
    state = scene.mode_state
    if not materials.has_materials(scene):
        return state
    normals, direct = state["gaussian.normal"].clone(), state["gaussian.direct"].clone()
    normals[mask] = normals[mask] @ rotation.T.to(normals)
    light = state["light"]
    sky = cubemap.shrink(light, light.shape[1] // transfer.SIZE).reshape(-1, 3)
    openness = state["gaussian.openness"][mask].reshape(-1, 1)
    direct[mask] = (transfer.open_sky(normals[mask]) @ sky) * openness
    return {**state, "gaussian.normal": normals, "gaussian.direct": direct}


def joined(scenes: Sequence[Scene]) -> list[Scene]:
    """The same scenes; those without materials get a guess, so that another light does not find them black.

    Their base colour is their colour, they are no metals, the whole sky is open to them, and under the first scene's
    own light their radiance is shown as it is.
    """
    light = scenes[0].mode_state.get("light")
    return [s if light is None or materials.has_materials(s) else _guessed(s, light) for s in scenes]


def _guessed(scene: Scene, light: Tensor) -> Scene:
    g = scene.gaussians
    ones = g.means.new_ones(len(g), 1)
    normals = px.shortest_axes(g.quats, g.log_scales)
    # Out of the thing: away from its middle.
    normals = px.facing(normals, g.means - g.means.mean(0))
    sky = cubemap.shrink(light.to(g.means), light.shape[1] // transfer.SIZE).reshape(-1, 3)
    state = {
        "base_color": tone.linear((0.5 + SH_C0 * g.sh0[:, 0]).clamp(0, 1)),
        "roughness": GUESS * ones,
        "metallic": 0 * ones,
        "progress": 0 * ones,
        "normal": normals,
        "direct": transfer.open_sky(normals) @ sky,
        "reflected": torch.zeros_like(normals),
        "openness": ones,
        "shown": ones[:, 0],
    }
    own = {**scene.mode_state, **{f"gaussian.{k}": v for k, v in state.items()}}
    return replace(scene, mode="inverse", mode_state=own)
