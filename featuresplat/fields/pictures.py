"""A field as colours: its three main directions become red, green and blue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from featuresplat.scene import Scene
from featuresplat.types import Cameras, FeatureField

_SAMPLE = 20_000


@dataclass(frozen=True)
class FeatureColors:
    """A projection of codes to colours, fixed for a whole scene.

    Attributes:
        mean: [D]. axes: [D, 3]. low, high: [3] what becomes 0 and 1.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """[..., D] codes of any length to [..., 3] in 0..1."""
        unit = torch.nn.functional.normalize(codes.float(), dim=-1)
        return (((unit - self.mean) @ self.axes - self.low) / (self.high - self.low)).clamp(0, 1)


def feature_colors(field: FeatureField) -> FeatureColors:
    """The colours of a field: principal components of the directions of its codes, weighted by confidence.

    The same for every view and from run to run: the sample is even, and each axis points to where it is skewed.
    """
    codes, weights = field.codes.detach().float(), field.confidence
    step = max(1, len(codes) // _SAMPLE)
    unit = torch.nn.functional.normalize(codes[::step], dim=1)
    w = torch.ones(len(unit), device=unit.device) if weights is None else weights[::step].to(unit).float().sqrt()
    w = torch.where(unit.isfinite().all(1), w, 0.0)
    unit = unit.nan_to_num(0.0)
    w = w / w.sum().clamp_min(1e-12)
    mean = (w[:, None] * unit).sum(0)
    centred = unit - mean
    covariance = (centred * w[:, None]).T @ centred
    axes = torch.linalg.eigh(covariance.double()).eigenvectors.flip(1)[:, :3].float()  # [D, <=3]
    axes = torch.nn.functional.pad(axes, (0, 3 - axes.shape[1]))
    values = centred @ axes
    axes = axes * torch.where((w[:, None] * values**3).sum(0) < 0, -1.0, 1.0)
    values = (centred @ axes)[w > 0]
    if len(values) == 0:
        values = values.new_zeros(1, 3)
    ordered = values.sort(dim=0).values
    low, high = ordered[round(0.02 * (len(ordered) - 1))], ordered[round(0.98 * (len(ordered) - 1))]
    return FeatureColors(mean, axes, low, torch.maximum(high, low + 1e-6))


def render_features(
    scene: Scene, cameras: Cameras, field: str | None = None, colors: FeatureColors | None = None
) -> Tensor:
    """[C, H, W, 3] in 0..1: a field in colours, black where nothing is.

    Args:
        field: its name; default the scene's last one.
        colors: what `feature_colors` gave, where many views are rendered.
    """
    _, found = scene.field(field)
    colors = colors or feature_colors(found)
    out = scene.render(cameras, features=colors(found.codes))
    assert out.features is not None
    return out.features.clamp(0, 1)
