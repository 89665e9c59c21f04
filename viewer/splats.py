"""Gaussians for the browser's own renderer: colours per Gaussian, and not more than a browser can sort."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from featuresplat.geometry import quat_scale_to_covar
from featuresplat.io.colormap import colormap
from featuresplat.scene import Scene
from featuresplat.types import Cameras

from .look import Look
from .pictures import GREY, Overlay, facing_normals, heat, normal_colors, shown

BUDGET = 250_000
"""Gaussians that are handed to a browser at most; a still view is rendered from all of them."""
TINT = 0.4


@dataclass(frozen=True)
class Splats:
    """What viser takes: [N, 3], [N, 3, 3], [N, 3], [N, 1], float32."""

    centers: np.ndarray
    covariances: np.ndarray
    rgbs: np.ndarray
    opacities: np.ndarray

    def __len__(self) -> int:
        return len(self.centers)


@torch.no_grad()
def splats(scene: Scene, camera: Cameras | None, look: Look, overlay: Overlay, budget: int = BUDGET) -> Splats:
    """The Gaussians that a browser draws for a look; ``camera`` decides which way normals face."""
    scene, rows = shown(scene, look)
    g = scene.at(look.time)
    keep = important(g.scales, g.opacities, budget)
    colors = _colors(scene, camera, look, overlay, rows)
    for mark in (m for m in overlay.marks if look.outlines and not m.line):
        mask = mark.mask if rows is None else mark.mask[rows]
        colors = torch.where(mask[:, None], torch.lerp(colors, colors.new_tensor(mark.color), TINT), colors)
    scales, quats = g.scales, torch.nn.functional.normalize(g.quats, dim=1)
    if keep is not None:
        scales, quats, colors = scales[keep], quats[keep], colors[keep]
        # Fewer splats leave gaps: what remains grows so that its area makes up for a part of what is gone.
        scales = scales * min(1.5, (len(g) / len(keep)) ** 0.25)
    means, opacities = (g.means, g.opacities) if keep is None else (g.means[keep], g.opacities[keep])
    covariances = quat_scale_to_covar(quats, scales)
    finite = means.isfinite().all(1) & covariances.isfinite().all((1, 2)) & opacities.isfinite()
    finite &= covariances.abs().amax((1, 2)) < 6e4  # viser stores half precision
    return Splats(
        means[finite].cpu().numpy(),
        covariances[finite].cpu().numpy(),
        colors[finite].clamp(0, 1).nan_to_num(0.0).cpu().numpy(),
        opacities[finite, None].cpu().numpy(),
    )


def important(scales: Tensor, opacities: Tensor, budget: int) -> Tensor | None:
    """Indices of the ``budget`` Gaussians that cover most, or None when there are not more than that."""
    if len(scales) <= budget:
        return None
    area = scales.sort(dim=1).values[:, 1:].prod(dim=1)  # of the two longer axes
    return (opacities * area).topk(budget).indices.sort().values


def _colors(scene: Scene, camera: Cameras | None, look: Look, overlay: Overlay, rows: Tensor | None) -> Tensor:
    """[N, 3] in 0..1."""
    values = overlay.values if overlay.values is None or rows is None else overlay.values[rows]
    if look.kind == "normals" and camera is not None:
        return normal_colors(facing_normals(scene, camera))
    if look.kind in ("features", "instances") and values is not None:
        return values
    plain = scene.gaussians.colors.clamp(0, 1)
    if look.kind == "relevancy" and values is not None:
        grey = (plain * GREY.to(plain)).sum(1, keepdim=True)
        if 0 <= look.prompt < values.shape[1]:
            return 0.25 * grey + 0.75 * colormap(values[:, look.prompt]).to(grey) / 255
        return heat(values, grey, look.prompt, overlay)
    return plain
