"""Configuration of inverse rendering; part of `featuresplat.config`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class InverseConfig:
    """Materials and light of the mode `inverse`."""

    light_size: int = 128
    """Pixels along a side of the environment cubemap."""
