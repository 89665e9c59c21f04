"""Configuration of scenes that move; part of `featuresplat.config`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class PriorsConfig:
    """What is known about the frames beside their colours; each is used where it is given."""

    depth: Path | None = None
    """Folder of depth maps: NAME.npy in scene units, or 16-bit NAME.png in thousandths."""
    depth_kind: Literal["metric", "relative", "disparity"] = "metric"
    """'relative' depth and 'disparity' (inverse depth) are right up to a factor and an offset per frame, which are
    found from the start points."""
    tracks: Path | None = None
    """File of point tracks (.npz or .safetensors): uv [P, T, 2] in pixels or xyz [P, T, 3], and visible [P, T]."""
    flow: Path | None = None
    """Folder of optical flow: NAME.npy to the next frame, NAME_back.npy to the one before, [H, W, 2] in pixels."""
    masks: Path | None = None
    """Folder of motion masks NAME.png: black holds still."""


@dataclass
class DynamicConfig:
    """Motion of the modes `dynamic` and `hexplane`."""

    nodes: int = 200
    """Most motion nodes at the start."""
    most_nodes: int = 512
    """Most motion nodes after growing where the error is."""
    follow: int = 4
    """Nodes that each moving Gaussian follows."""
    fit_steps: int = 120
    """Steps of fitting the nodes to the point tracks before the training."""
    moving: int = 8000
    """Most moving Gaussians at the start."""
    nodes_lr: float = 2e-4
    """Learning rate of the nodes' positions at the start, in scene extents; it falls to a twentieth."""
    turns_lr: float = 5e-4
    """Learning rate of the nodes' turns at the start; it falls to a twentieth."""
    rigidity: float = 10.0
    """Weight of as-rigid-as-possible."""
    smoothness: float = 0.02
    """Weight of the accelerations."""
    mask: float = 0.05
    """Weight of the difference between the moving part's render and the motion masks."""
    grid: tuple[int, ...] = (32, 32, 32, 24)
    """hexplane: cells along x, y, z and time."""
    grid_lr: float = 1e-2
    """hexplane: learning rate of the planes at the start; it falls to a tenth."""
    network_lr: float = 1e-3
    """hexplane: learning rate of the network at the start; it falls to a tenth."""
    grid_smoothness: float = 1e-3
    """hexplane: weight of the planes' differences between neighbouring cells."""
