"""A scene that moves, the dense way: planes of features over space and time deform every Gaussian. The baseline.

After HexPlane (Cao and Johnson 2023) and 4D Gaussian Splatting (Wu et al. 2024): six planes, one for each pair of x,
y, z and t, are sampled at a Gaussian's place and the time; the product of the six goes through a small network that
says how far the Gaussian moves and turns. In a finished scene, ``mode_state`` holds the planes, the network and the
box [2, 3] that the planes span.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import grid_sample

from featuresplat import modes
from featuresplat.errors import FeaturesplatError
from featuresplat.modes._motion import dualquat
from featuresplat.modes._motion.panel import panel
from featuresplat.modes._motion.pictures import KINDS, picture, report
from featuresplat.modes.static import Mode as StaticMode
from featuresplat.priors.film import clock_of
from featuresplat.types import Gaussians, RenderOutput

if TYPE_CHECKING:
    from featuresplat.scene import Scene

__all__ = ["KINDS", "Mode", "at", "panel", "picture", "report"]

CHANNELS, HIDDEN = 16, 48
PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The axes of the six planes: the last three run over time."""
STILL = 0.02
"""Share of the steps in which nothing moves yet, so that there is something to deform."""


class Mode(StaticMode):
    """The Gaussians of a static scene, and what deforms them."""

    def __init__(self, inputs: modes.ModeInputs):
        super().__init__(inputs)
        assert inputs.dataset is not None  # only tests of other modes leave it out
        clock_of(inputs.dataset)
        grid = inputs.config.dynamic.grid
        if len(grid) != 4 or min(grid) < 2:
            raise FeaturesplatError(
                f"dynamic.grid: expected four sizes of at least 2, got {list(grid)}.", "32 32 32 24"
            )
        means = self.gaussian_params["means"].detach().cpu()
        low, high = means.quantile(0.01, dim=0), means.quantile(0.99, dim=0)
        self.box = torch.stack([low - 0.1 * (high - low), high + 0.1 * (high - low)]).to(inputs.device)
        generator = torch.Generator().manual_seed(inputs.config.seed)
        self.extra_params = {
            name: Parameter(value.to(inputs.device)) for name, value in _fresh(grid, generator).items()
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        d = self.config.dynamic
        groups = super().parameter_groups()
        for name, value in self.extra_params.items():
            groups.append({"name": name, "params": [value], "lr": _rate(name, d.grid_lr, d.network_lr)})
        return groups

    def rates(self, progress: float) -> dict[str, float]:
        d, fall = self.config.dynamic, 0.1**progress
        moving = 0.0 if progress < STILL else fall
        return {name: _rate(name, d.grid_lr, d.network_lr) * moving for name in self.extra_params}

    def at(self, time: float | None = None) -> Gaussians:
        g = super().at(time)
        return g if time is None else deformed(g, time, self.box, self.extra_params, 1.0)

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        terms = super().losses(out, batch)
        planes = [v for k, v in self.extra_params.items() if k.startswith("plane.")]
        down = [((p[..., 1:, :] - p[..., :-1, :]) ** 2).mean() for p in planes]
        across = [((p[..., 1:] - p[..., :-1]) ** 2).mean() for p in planes]
        terms["planes"] = self.config.dynamic.grid_smoothness * torch.stack(down + across).sum()
        return terms

    def buffers(self) -> dict[str, Tensor]:
        return {"box": self.box}

    def load_buffers(self, buffers: dict[str, Tensor]) -> None:
        self.box = buffers["box"].to(self.inputs.device)

    def state(self) -> dict[str, Tensor]:
        frame = self.inputs.frame
        box = self.box.double() / frame.scale + frame.center.to(self.box.device)
        state = {f"hexplane.{k}": v.detach().clone() for k, v in self.extra_params.items()}
        return state | {"hexplane.box": box.float(), "hexplane.unit": torch.tensor([1 / frame.scale])}


def at(scene: Scene, time: float | None) -> Gaussians:
    """The Gaussians of a finished scene at a time; None gives them undeformed."""
    if time is None:
        return scene.gaussians
    state = {k.removeprefix("hexplane."): v for k, v in scene.mode_state.items() if k.startswith("hexplane.")}
    return deformed(scene.gaussians, time, state["box"], state, float(state["unit"]))


def deformed(g: Gaussians, time: float, box: Tensor, params: Any, unit: float) -> Gaussians:
    """The Gaussians moved and turned for a time.

    Args:
        box: [2, 3] lower and upper corner of what the planes span. params: planes and network by name.
        unit: length of one training unit.
    """
    place = (g.means.detach() - box[0]) / (box[1] - box[0]) * 2 - 1  # [N, 3] in -1..1
    point = torch.cat([place, torch.full_like(place[:, :1], 2 * time - 1)], dim=1)
    features = torch.ones_like(point[:, :1])
    for a, b in PAIRS:
        plane = params[f"plane.{'xyzt'[a]}{'xyzt'[b]}"]
        at_ = point[:, (b, a)][None, None]  # the last axis of the plane comes first
        features = features * grid_sample(plane, at_, align_corners=True, padding_mode="border")[0, :, 0].T
    hidden = torch.relu(features @ params["network.w1"] + params["network.b1"])
    hidden = torch.relu(hidden @ params["network.w2"] + params["network.b2"])
    out = hidden @ params["network.w3"]  # [N, 6]
    turn = torch.cat([torch.ones_like(out[:, :1]), out[:, 3:]], dim=1)
    turn = torch.nn.functional.normalize(turn, dim=1)
    return replace(g, means=g.means + unit * out[:, :3], quats=dualquat.quat_mul(turn, g.quats))


def _fresh(grid: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
    """Planes [1, CHANNELS, n_a, n_b] near one, a network whose last layer is zero: nothing moves at first."""
    out = {}
    for a, b in PAIRS:
        shape = (1, CHANNELS, grid[a], grid[b])
        start = torch.ones(shape) if b == 3 else 0.1 + 0.4 * torch.rand(shape, generator=generator)
        out[f"plane.{'xyzt'[a]}{'xyzt'[b]}"] = start
    for name, rows, cols in (("1", CHANNELS, HIDDEN), ("2", HIDDEN, HIDDEN)):
        bound = math.sqrt(6.0 / rows)
        out[f"network.w{name}"] = (2 * torch.rand(rows, cols, generator=generator) - 1) * bound
        out[f"network.b{name}"] = torch.zeros(cols)
    out["network.w3"] = torch.zeros(HIDDEN, 6)
    return out


def _rate(name: str, grid: float, network: float) -> float:
    return grid if name.startswith("plane.") else network
