"""Where the cameras and the Gaussians of a run are, in a frame that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featuresplat.paths import up_axis
from featuresplat.types import Cameras, Gaussians

MAX_POINTS = 1800
"""Gaussians in the drawings of the cameras."""


@dataclass
class Layout:
    """Where cameras and Gaussians are, in a frame whose third axis is up and whose first is the cameras' longest.

    Attributes:
        positions: [C, 3] camera centres.
        corners: [C, 4, 3] directions from the centre to the image's corners at depth 1, in turn.
        names, test: C names, and whether each is a test camera.
        points: [M, 3] a sample of the Gaussians.
    """

    positions: np.ndarray
    corners: np.ndarray
    names: list[str]
    test: list[bool]
    points: np.ndarray


def camera_layout(cameras: Cameras, test_names: Sequence[str], gaussians: Gaussians | None = None) -> Layout | None:
    """Cameras and a sample of the Gaussians (opacity above 0.2) in a frame whose third axis is up; None without
    cameras.
    """
    if not len(cameras):
        return None
    viewmats, Ks = cameras.viewmats.detach().cpu().double(), cameras.Ks.detach().cpu().double()
    rotations = viewmats[:, :3, :3]
    positions = -(rotations.transpose(1, 2) @ viewmats[:, :3, 3:])[..., 0]  # [C, 3]
    sizes = torch.tensor([cameras.widths, cameras.heights], dtype=torch.float64).T  # [C, 2]
    unit = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64)
    pixels = torch.cat([unit * sizes[:, None], torch.ones(len(sizes), 4, 1, dtype=torch.float64)], dim=2)
    corners = pixels @ torch.linalg.inv(Ks).transpose(1, 2) @ rotations  # camera to world: rows times R
    up = up_axis(cameras).cpu().double()
    flat = positions - positions.mean(0)
    level = torch.eye(3, dtype=torch.float64) - torch.outer(up, up)
    # The longest horizontal direction; the small multiple decides for a single camera, where any will do.
    right = level @ torch.linalg.eigh(level @ (flat.T @ flat) @ level + 1e-12 * level)[1][:, -1]
    right = right / right.norm()
    frame = torch.stack([right, torch.linalg.cross(up, right), up])  # rows; right-handed
    points = torch.zeros(0, 3, dtype=torch.float64)
    if gaussians is not None and len(gaussians):
        solid = (gaussians.opacities.detach() > 0.2).nonzero()[:, 0]
        if len(solid):
            pick = solid[torch.linspace(0, len(solid) - 1, min(MAX_POINTS, len(solid))).long()]
            points = gaussians.means.detach()[pick].cpu().double()
    held_out = set(test_names)
    return Layout(
        positions=(positions @ frame.T).numpy(),
        corners=(corners @ frame.T).numpy(),
        names=[str(n) for n in cameras.names],
        test=[n in held_out and n != "" for n in cameras.names],
        points=(points @ frame.T).numpy(),
    )
