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
    """Variant of the teacher's model, e.g. 'ViT-B-16/laion2b_s34b_b88k' (clip), 'vit_h' (sam); empty takes the
    teacher's default."""
    size: int = 0
    """Longer side, in pixels, at which a patch teacher sees the photograph; 0 takes the teacher's default."""
    edges: int = 0
    """clip, lseg and dino: bring patch features to this longer side along the photograph's edges; 0 keeps the patches'
    grid."""
    level: Literal["dense", "subpart", "part", "whole"] = "dense"
    """clip: 'dense' features of patches, or of crops around masks at one of three levels."""
    masks: Path | None = None
    """clip with a level of masks: weights of SAM (vit_h, vit_l or vit_b); none cuts masks without a network."""


@dataclass
class FieldConfig:
    """How a feature field is made from a teacher's maps."""

    name: str = ""
    """Name of the field in the scene; empty takes the teacher's."""
    lift: Literal["mean", "squared", "centre", "robust", "cg"] = "mean"
    """Closed form that carries maps onto Gaussians: 'mean' of the pixels by blending weight; by its square; the map at
    the projected 'centre'; 'robust' against views that contradict the others; 'cg': the least-squares solution."""
    dim: int = 0
    """Channels stored per Gaussian; 0 keeps all of the teacher's, fewer get a decoder that begins as the maps'
    principal components."""
    decoder: Literal["linear", "mlp"] = "linear"
    """Decoder from the stored channels to the teacher's. A linear one lets prompts be answered without decoding."""
    steps: int = 0
    """Steps that train codes and decoder further after the lift, one view each; 0 keeps the closed form."""
    lr: float = 0.005
    """Learning rate of the codes at the start, for codes of unit length; it falls to a tenth."""
    loss: Literal["cosine", "l1"] = "cosine"
    """'cosine' compares directions; 'l1' is L1 + 0.1 (1 - SSIM) of the values."""
    codebook: int = 0
    """Store each Gaussian as 4 weights into a codebook of so many entries, at most 256; 0 stores channels."""
    cache: Path | None = None
    """Folder where maps are kept between runs; default: featuresplat/maps in the user's cache folder."""
    cache_channels: int = 0
    """Keep only so many principal components of the maps in the cache; 0 keeps the maps exactly (as 16-bit floats)."""
    memory: float = 1.0
    """GiB that a lift may take for maps and sums; below what N Gaussians need, channels are lifted in blocks."""
