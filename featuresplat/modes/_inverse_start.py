"""Where the mode `inverse` starts: flat Gaussians along the points' surface, or those of a finished run."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor
from torch.nn import Parameter

from featuresplat import modes
from featuresplat.config_inverse import InverseConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat, rotmat_to_quat
from featuresplat.io.scene_folder import read_scene_folder
from featuresplat.modes import _inverse_looks as looks
from featuresplat.modes._inverse_points import PointSurface, lying
from featuresplat.modes._inverse_solve import Views
from featuresplat.shading import tone
from featuresplat.shading.light import as_cubemap
from featuresplat.types import SH_C0, Gaussians

NEIGHBOURS = 12
FEWEST = 100
"""Points that make a box."""
THIN = 0.02
SEEN = 0.5
"""What shows less than this past the points' surface is what mirrors showed."""
OPAQUE = 2.0
"""Logit of the opacity of surfels."""


@torch.no_grad()
def oriented(params: dict[str, Parameter]) -> None:
    """Turn fresh Gaussians so that their third axis is the normal of the points around them, and flatten them."""
    means = params["means"]
    if len(means) > NEIGHBOURS:
        xyz = means.detach().cpu().double().numpy()
        _, near = KDTree(xyz).query(xyz, k=NEIGHBOURS, workers=-1)
        around = torch.from_numpy(xyz[near])
        around = around - around.mean(1, keepdim=True)
        _, vectors = torch.linalg.eigh(around.transpose(1, 2) @ around)  # columns, smallest variance first
        frame = torch.stack([vectors[..., 1], vectors[..., 2], vectors[..., 0]], dim=-1)
        frame[..., 0] *= torch.linalg.det(frame)[:, None].sign()
        params["quats"].copy_(rotmat_to_quat(frame).to(means))
    scales = params["log_scales"]
    scales[:, 2] = scales[:, :2].amin(1) + math.log(THIN)


def started(inputs: modes.ModeInputs) -> dict[str, Tensor]:
    """The Gaussians of ``config.inverse.start`` in the training frame, third axis the shortest, flattened.

    Raises:
        FeaturesplatError: no finished run there.
    """
    path = inputs.config.inverse.start
    assert path is not None
    g = read_scene_folder(path).gaussians
    degree = inputs.config.model.sh_degree
    if g.sh_degree != degree:
        raise FeaturesplatError(
            f"{path}: has spherical harmonics of degree {g.sh_degree}, the configuration asks for {degree}",
            f"Add --model.sh-degree {g.sh_degree}.",
        )
    frame = inputs.frame
    means = ((g.means.double() - frame.center) * frame.scale).float()
    log_scales = g.log_scales + math.log(frame.scale)
    order = log_scales.argsort(1, descending=True)
    axes = quat_to_rotmat(g.quats).gather(2, order[:, None].expand(-1, 3, -1))
    axes[..., 0] *= torch.linalg.det(axes)[:, None].sign()
    log_scales = log_scales.gather(1, order)
    log_scales[:, 2] = log_scales[:, 1] + math.log(THIN)
    box = points_box(inputs) if inputs.config.inverse.background != "none" else None
    kept = torch.ones(len(means), dtype=torch.bool) if box is None else inside(means, box.cpu())
    tensors = {
        "means": means,
        "quats": rotmat_to_quat(axes),
        "log_scales": log_scales,
        "logit_opacities": g.logit_opacities,
        "sh0": g.sh0,
        "shN": g.shN,
    }
    return {k: v[kept].to(inputs.device).contiguous() for k, v in tensors.items()}


@torch.no_grad()
def covered(
    params: dict[str, Tensor], surface: PointSurface, count: int, thin: float, seed: int
) -> tuple[dict[str, Tensor], int]:
    """Surfels all over the points' surface in place of the Gaussians near it; ``count`` of both together at most.

    Returns the parameters, surfels first, and how many these are.

    Radiance fields are sparse where a surface is plain, and put half of what a mirror shows behind it: neither carries
    normals. The colours are still to be found.
    """
    _, _, sure = surface.planes(params["means"])
    kept = {k: v[sure == 0] for k, v in params.items()}
    means, normals, sizes = surface.surfels(max(count - len(kept["means"]), count // 2), seed)
    n = len(means)
    fresh = {
        "means": means,
        "quats": lying(normals),
        "log_scales": torch.stack([sizes, sizes, sizes + math.log(thin)], 1),
        "logit_opacities": means.new_full((n,), OPAQUE),
        "sh0": means.new_zeros(n, *kept["sh0"].shape[1:]),
        "shN": means.new_zeros(n, *kept["shN"].shape[1:]),
    }
    return {k: torch.cat([fresh[k], kept[k]]).contiguous() for k in kept}, n


@torch.no_grad()
def resurfaced(
    params: dict[str, Tensor], surface: PointSurface, inputs: modes.ModeInputs, thin: float, views: Views | None
) -> dict[str, Tensor]:
    """`covered`, without what no view sees past the surface, and in the colours of the photographs."""
    config = inputs.config
    tensors, surfels = covered(params, surface, config.model.budget, thin, config.seed)
    if views is None:
        return tensors
    _, shown, _ = looks.oriented(Gaussians(**tensors), views)
    alive = (shown > SEEN) | (torch.arange(len(shown), device=shown.device) < surfels)
    tensors = {k: v[alive].contiguous() for k, v in tensors.items()}
    tensors["sh0"] = ((looks.colored(Gaussians(**tensors), views) - 0.5) / SH_C0)[:, None]
    return tensors


def started_light(inputs: modes.ModeInputs) -> Tensor | None:
    """[6, S, S, 3] logarithm of the light of ``config.inverse.start``; None where that run has none."""
    path = inputs.config.inverse.start
    light = None if path is None else (read_scene_folder(path).mode_state or {}).get("light")
    if light is None:
        return None
    return as_cubemap(light, inputs.config.inverse.light_size).to(inputs.device).clamp_min(1e-4).log()


def check_stages(config: InverseConfig) -> None:
    shares = config.stages
    if len(shares) != 3 or not 0 <= shares[0] <= shares[1] <= shares[2] <= 1:
        raise FeaturesplatError(
            f"inverse.stages: expected three growing shares in 0..1, got {list(shares)}", "For example 0.3 0.4 0.7."
        )


def on_environment(inputs: modes.ModeInputs) -> bool:
    wanted, data = inputs.config.inverse.background, inputs.dataset
    if wanted != "auto" or data is None:
        return wanted != "none"
    return data.alpha(data.train[0]) is None


def first_light(inputs: modes.ModeInputs) -> Tensor:
    """A grey light: the mean radiance of the first photographs."""
    data = inputs.dataset
    if data is None:
        return torch.tensor(0.5, device=inputs.device)
    some = data.train[:: max(1, len(data.train) // 8)]
    mean = torch.stack([tone.linear(data.image(i).float() / 255).mean() for i in some]).mean()
    return mean.clamp_min(0.05).to(inputs.device)


def points_box(inputs: modes.ModeInputs) -> Tensor | None:
    """[2, 3] the box of the data's points with a margin; beyond it lies what the light replaces. None: no points."""
    if inputs.points is None or len(inputs.points) < FEWEST:
        return None
    xyz = inputs.points.xyz.cpu().numpy()
    low, high = (torch.from_numpy(np.quantile(xyz, q, axis=0)).float() for q in (0.002, 0.998))
    margin = 0.1 * (high - low).max()
    return torch.stack([low - margin, high + margin]).to(inputs.device)


def inside(means: Tensor, box: Tensor) -> Tensor:
    """[N] bool."""
    return ((means > box[0]) & (means < box[1])).all(1)
