"""Configuration of scenes that move; part of `featuresplat.config`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass
class PriorsConfig:
    """What is known about the frames beside their colours; each is used where it is given."""

    depth: Path | None = None
    """Folder of depth maps: NAME.npy in scene units, or 16-bit NAME.png in thousandths."""
    tracks: Path | None = None
    """File of point tracks (.npz or .safetensors)."""


@dataclass
class DynamicConfig:
    """Motion of the modes `dynamic` and `hexplane`."""

    nodes: int = 512
    """Most motion nodes."""
