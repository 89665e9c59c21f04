"""A scene that holds still: N Gaussians, as Kerbl et al. 2023."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat import modes
from featuresplat.config import OptimConfig, TrainConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.points import gaussians_from_points
from featuresplat.types import Cameras, Gaussians, PointCloud, RenderOutput

LIMIT_EVERY = 20
"""Steps between two looks at the scales."""


class Mode(modes.Mode):
    """The parameters of a static scene in the training frame."""

    def __init__(self, inputs: modes.ModeInputs):
        """Start from the points, or at random in front of the cameras."""
        super().__init__(inputs)
        model = inputs.config.model
        start = start_points(inputs.config, inputs.cameras, inputs.points)
        gaussians = gaussians_from_points(start, model.sh_degree, model.init_opacity, scale=model.init_scale)
        self.gaussian_params = {k: Parameter(v.to(inputs.device)) for k, v in gaussians.tensors().items()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = first_rates(self.config.optim)
        return [{"name": k, "params": [p], "lr": rates[k]} for k, p in self.gaussian_params.items()]

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        if self.config.model.max_scale > 0 and step % LIMIT_EVERY == 0:
            self._limit_scales()

    @torch.no_grad()
    def _limit_scales(self) -> None:
        """Hold every scale below its share of the distance to the nearest training camera."""
        means, cameras = self.gaussian_params["means"], self.inputs.cameras.positions.to(self.inputs.device).float()
        nearest = torch.cat([torch.cdist(rows, cameras).amin(1) for rows in means.split(1 << 16)])
        limit = (self.config.model.max_scale * nearest.clamp_min(1e-6)).log()
        scales = self.gaussian_params["log_scales"]
        scales.copy_(torch.minimum(scales, limit[:, None]))

    def at(self, time: float | None = None) -> Gaussians:
        return Gaussians(**self.gaussian_params)

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        c, terms = self.config.loss, {}
        if c.opacity:
            terms["opacity"] = c.opacity * self.gaussian_params["logit_opacities"].sigmoid().mean()
        if c.scale:
            terms["scale"] = c.scale * self.gaussian_params["log_scales"].exp().mean()
        return terms


def first_rates(optim: OptimConfig) -> dict[str, float]:
    """The learning rates that the parameters of plain Gaussians begin with."""
    return {
        "means": optim.means_lr,
        "quats": optim.quats_lr,
        "log_scales": optim.scales_lr,
        "logit_opacities": optim.opacities_lr,
        "sh0": optim.sh0_lr,
        "shN": optim.shN_lr,
    }


def start_points(config: TrainConfig, cameras: Cameras, points: PointCloud | None) -> PointCloud:
    """The points to start from, at most the budget."""
    init, generator = config.model.init, torch.Generator().manual_seed(config.seed)
    if init == "points" and (points is None or not len(points)):
        raise FeaturesplatError("model.init: 'points' asked for, but the data brings none", "Use --model.init random.")
    if init != "random" and points is not None and len(points):
        if len(points) <= config.model.budget:
            return points
        keep = torch.randperm(len(points), generator=generator)[: config.model.budget]
        return PointCloud(points.xyz[keep], points.rgb[keep])
    return _random_points(cameras, min(config.model.init_count, config.model.budget), generator)


def _random_points(cameras: Cameras, count: int, generator: torch.Generator) -> PointCloud:
    """Points spread over the views' frusta: a random camera, a random pixel, a random depth.

    Depths run from a tenth to three times the distance to where the optical axes meet, even in the logarithm, so
    that near things get many and the background some.
    """
    c2w, Ks = cameras.c2w.float(), cameras.Ks.float()
    which = torch.randint(len(cameras), (count,), generator=generator)
    sizes = torch.tensor(cameras.sizes, dtype=torch.float32)
    pixels = torch.rand(count, 2, generator=generator) * sizes[which]
    K = Ks[which]
    x = (pixels[:, 0] - K[:, 0, 2]) / K[:, 0, 0]
    y = (pixels[:, 1] - K[:, 1, 2]) / K[:, 1, 1]
    reach = _focus_distance(cameras)
    z = reach * 10.0 ** (torch.rand(count, generator=generator) * 1.477 - 1.0)
    local = torch.stack([x * z, y * z, z], dim=1)
    xyz = (c2w[which, :3, :3] @ local[..., None])[..., 0] + c2w[which, :3, 3]
    return PointCloud(xyz, torch.rand(count, 3, generator=generator))


def _focus_distance(cameras: Cameras) -> float:
    """Median distance of the cameras from the point nearest to all optical axes; 1 where that says nothing."""
    forward = cameras.viewmats[:, 2, :3].double()
    positions = cameras.positions.double()
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]  # [C, 3, 3]
    focus = torch.linalg.lstsq(across.sum(0), (across @ positions[..., None]).sum(0)).solution[:, 0]
    along = ((focus - positions) * forward).sum(1).median()
    return float(along) if 0.05 < float(along) < 100 else 1.0
