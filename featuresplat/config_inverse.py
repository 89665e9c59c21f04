"""Configuration of inverse rendering; part of `featuresplat.config`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass
class InverseConfig:
    """Materials and light of the mode `inverse`."""

    start: Path | None = None
    """A finished run to start from, in place of points."""
    radiance_run: float = 3.0
    """Where no run is named to start from, one of mode static is trained first, in the folder `radiance` of this run:
    its steps, as a share of `steps`. 0: start from the points; the radiance is then the surfels' own."""
    light_size: int = 128
    """Pixels along a side of the environment cubemap, a power of two."""
    tone: Literal["none", "aces"] = "none"
    """How linear radiance became the photographs' colours, before the sRGB curve."""
    background: Literal["auto", "environment", "none"] = "auto"
    """'environment': what shines through between Gaussians is the light itself; 'none': the configured colour. 'auto'
    takes the environment unless the images are transparent."""
    stages: tuple[float, ...] = (0.3, 0.4, 0.7)
    """Shares of the steps after which the specular, the diffuse and the joint stage begin."""
    progress: bool = True
    """Distil progressively: a map of how far the physical model may explain each pixel. Without it, it must explain
    all."""
    fit: Literal["l1", "l2"] = "l1"
    """'l2' replaces the photometric loss by the mean square, for comparison."""
    search: bool = True
    """Begin with mirrors, and with the material that explains each Gaussian best; without it, all begin as half
    bright, half rough dielectrics under an even light."""
    shadows: bool = True
    """Bake which light reaches each Gaussian, and what the others reflect onto it."""
    pixels: int = 16384
    """Pixels of a view that a step shades, drawn at random."""
    mask_weight: float = 0.08
    """Pull of the progress to 1: the physical model keeps what it explains to within twice this."""
    white_weight: float = 0.03
    """Pull of the light to grey."""
    even_weight: float = 0.005
    """Pull of the light to be even: total variation of its logarithm."""
    normal_weight: float = 0.05
    """Agreement of the Gaussians' normals with those of the rendered depth."""
    normal_gradient: float = 0.1
    """Share of the shading's gradient that turns the Gaussians."""
    points_weight: float = 2.0
    """Pull of the Gaussians to the surface on which the data's points lie; none where those are few or noisy."""
    spread_weight: float = 1.0
    """Pull of the Gaussians along a ray to one depth."""
    opaque_weight: float = 0.1
    """Pull of every pixel to be either covered or empty, while geometry is found."""
    smooth_weight: float = 0.02
    """Smoothness of roughness and metallic where the image is smooth."""
    material_lr: float = 0.02
    """Learning rate of base colour, roughness and metallic."""
    progress_lr: float = 0.02
    """Learning rate of the progress; a quarter of it in the joint stage."""
    light_lr: float = 0.05
    """Learning rate of the light's logarithm."""
