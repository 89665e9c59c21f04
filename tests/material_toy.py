"""A scene with materials that no training made: three balls in a row under a known light, and a field that names them.

The first is red and dull, the second green and glossy, the third of blue metal; they stand so far apart that hardly
any light goes from one to the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from featuresplat.config import load_config
from featuresplat.geometry import rotmat_to_quat
from featuresplat.modes._inverse_pixels import view_rays
from featuresplat.paths import look_at
from featuresplat.scene import Scene
from featuresplat.shading import cubemap, transfer
from featuresplat.shading.monte_carlo import tangent_frame
from featuresplat.types import SH_C0, Cameras, FeatureField, Gaussians, TextTable

NAMES = ("red ball", "green ball", "blue ball")
COLORS = torch.tensor([[0.7, 0.08, 0.06], [0.1, 0.6, 0.12], [0.1, 0.2, 0.8]])
ROUGHNESS, METALLIC = (0.8, 0.2, 0.3), (0.0, 0.0, 1.0)
EACH, RADIUS = 700, 0.45
SIZE = 32
WIDTH, HEIGHT = 96, 48


def light() -> Tensor:
    """[6, SIZE, SIZE, 3] a bright warm side (+x), a dim blue rest."""
    dirs = cubemap.directions(SIZE)
    warm = torch.tensor([3.0, 2.4, 1.5]) * (dirs[..., :1] - 0.6).clamp_min(0) * 2
    return warm + torch.tensor([0.25, 0.3, 0.4]) * (1.2 + dirs[..., 2:])


def scene() -> Scene:
    """2100 Gaussians, z up, the balls along x, seen from -y; view_2 is held out."""
    k = torch.arange(EACH) + 0.5
    z, turn = 1 - 2 * k / EACH, math.pi * (1 + 5**0.5) * k
    shell = torch.stack([(1 - z * z).sqrt() * turn.cos(), (1 - z * z).sqrt() * turn.sin(), z], 1)
    normals, which = shell.repeat(3, 1), torch.arange(3).repeat_interleave(EACH)
    means = RADIUS * normals
    means[:, 0] += 1.4 * (which - 1)
    n = len(means)
    gaussians = Gaussians(
        means,
        rotmat_to_quat(tangent_frame(normals).transpose(1, 2)),
        torch.tensor([0.045, 0.045, 0.001]).log().repeat(n, 1),
        torch.full((n,), 6.0),
        ((COLORS[which] - 0.5) / SH_C0)[:, None],
        torch.zeros(n, 8, 3),
    )
    cube = light()
    sky = cubemap.shrink(cube, SIZE // transfer.SIZE).reshape(-1, 3)
    state = {
        "base_color": COLORS[which],
        "roughness": torch.tensor(ROUGHNESS)[which][:, None],
        "metallic": torch.tensor(METALLIC)[which][:, None],
        "progress": torch.full((n, 1), 0.9),
        "normal": normals,
        "direct": transfer.open_sky(normals) @ sky,
        "reflected": torch.zeros(n, 3),
        "openness": torch.ones(n, 1),
        "shown": torch.ones(n),
    }
    mode_state = {f"gaussian.{key}": value for key, value in state.items()}
    mode_state |= {"light": cube, "environment": torch.tensor(True)}
    table = TextTable(NAMES, torch.eye(3))
    codes = torch.nn.functional.one_hot(which, 3).float()
    field = FeatureField(codes, "precomputed", text=table, confidence=torch.ones(n))
    config = load_config("inverse")
    config.inverse.light_size = SIZE
    names = [f"view_{i}.png" for i in range(4)]
    info = {"split": {"train": [names[0], names[1], names[3]], "test": [names[2]]}, "background": [0.0, 0.0, 0.0]}
    return Scene(gaussians, cameras(names), {"objects": field}, "inverse", mode_state, config=config, info=info)


def cameras(names: list[str]) -> Cameras:
    """From the front, on a part of a circle of radius 4."""
    angles = torch.linspace(-0.3, 0.3, len(names), dtype=torch.float64)
    eyes = torch.stack([4 * angles.sin(), -4 * angles.cos(), torch.full_like(angles, 0.6)], dim=1)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    viewmats = look_at(eyes, torch.zeros(3, dtype=torch.float64), up)
    K = torch.tensor([[90.0, 0.0, WIDTH / 2], [0.0, 90.0, HEIGHT / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)
    return Cameras(viewmats, K.repeat(len(names), 1, 1), WIDTH, HEIGHT, names=names)


def ball(index: int) -> Tensor:
    """bool [N]: the Gaussians of one ball."""
    mask = torch.zeros(3 * EACH, dtype=torch.bool)
    mask[index * EACH : (index + 1) * EACH] = True
    return mask


def true_normals(camera: Cameras, index: int) -> Tensor:
    """[H, W, 3] of a ball where a camera's rays meet it."""
    centre, rays = view_rays(camera.viewmats[0].float(), camera.Ks[0].float(), camera.width, camera.height)
    unit = torch.nn.functional.normalize(rays, dim=-1)
    away = centre - torch.tensor([1.4 * (index - 1), 0, 0])
    along = (unit * away).sum(-1)
    near = -along - (along.square() - away @ away + RADIUS**2).clamp_min(0).sqrt()
    return (away + near[..., None] * unit) / RADIUS


def patch(image: Any, index: int) -> Any:
    """[8, 8, 3] in the middle of a ball, of an image [48, 96, 3] of view_2."""
    x = round(WIDTH / 2 + (index - 1) * 1.4 * 90 / 4.05)
    return image[HEIGHT // 2 - 4 : HEIGHT // 2 + 4, x - 4 : x + 4]
