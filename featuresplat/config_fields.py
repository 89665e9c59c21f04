"""Configuration of teachers and feature fields; part of `featuresplat.config`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class TeacherConfig:
    """Where the features come from."""

    name: str = ""
    """Which teacher: clip, lseg, sam, dino, offline, precomputed; empty trains no field."""
    path: Path | None = None
    """precomputed: the folder of maps. Others: a local file of weights, in place of downloading them."""
    model: str = ""
    """Variant of the teacher's model; empty takes the teacher's default."""


@dataclass
class FieldConfig:
    """How a feature field is made from a teacher's maps."""

    name: str = ""
    """Name of the field in the scene; empty takes the teacher's."""
    lift: Literal["mean", "squared", "centre", "robust", "cg"] = "mean"
    """Closed form that carries maps onto Gaussians."""
