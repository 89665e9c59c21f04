"""Densification: where Gaussians are added, moved and removed while training.

A strategy is a small object with hooks around the backward pass. It edits the parameters and the optimizer's moments
together, so that training goes on as if the Gaussians had always been so. All randomness comes from the generator it
is handed; with `state_dict` a resumed run is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from featuresplat.config import DensifyConfig, ModelConfig
from featuresplat.densify.classic import Classic
from featuresplat.densify.mcmc import MCMC
from featuresplat.errors import FeaturesplatError
from featuresplat.types import RenderOutput

__all__ = ["MCMC", "Classic", "Fixed", "Strategy", "make_strategy"]


class Strategy(Protocol):
    """What the trainer calls.

    Attributes:
        absgrad: the rasterizer must fill ``out.meta.means2d_grad``.
    """

    absgrad: bool

    def before_backward(self, step: int, out: RenderOutput) -> None: ...

    def after_step(
        self,
        step: int,
        params: dict[str, torch.nn.Parameter],
        optimizer: torch.optim.Optimizer,
        out: RenderOutput,
        generator: torch.Generator,
    ) -> None:
        """Called after the optimizer's step number ``step``.

        Args:
            step: counts from 0 or from 1, as the trainer likes.
            params: per-Gaussian parameters, rows = Gaussians: at least means [N, 3], quats [N, 4], log_scales
                [N, 3] and logit_opacities [N]; others ride along. When N changes, the entries are replaced.
            optimizer: Adam with a group named like each parameter; its moments are edited alike.
            out: the render that was just differentiated.
            generator: the source of all randomness.
        """
        ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


class Fixed:
    """The Gaussians stay the ones training began with."""

    absgrad = False

    def before_backward(self, step: int, out: RenderOutput) -> None: ...

    def after_step(self, step, params, optimizer, out, generator) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def make_strategy(config: DensifyConfig, model: ModelConfig, steps: int, scene_extent: float) -> Strategy:
    """The strategy that ``config.strategy`` names.

    Args:
        config, model: settings; ``model.budget`` is the number of Gaussians never passed by growing.
        steps: length of the training, which the shares in ``config`` refer to.
        scene_extent: size of the scene in units of the means.

    Raises:
        FeaturesplatError: an unknown strategy, or a setting that cannot work.
    """
    if config.every < 1 or model.budget < 1:
        raise FeaturesplatError(
            f"densify: expected every and budget of at least 1, got {config.every} and {model.budget}",
            "Use the preset's values, or 'none' as the strategy to switch densification off.",
        )
    if not 0 < config.min_opacity < 1:
        raise FeaturesplatError(
            f"densify: expected min_opacity between 0 and 1, got {config.min_opacity}", "0.005 is usual."
        )
    if config.strategy == "mcmc":
        return MCMC(config, model.budget, steps)
    if config.strategy == "classic":
        return Classic(config, model.budget, steps, scene_extent)
    if config.strategy == "none":
        return Fixed()
    raise FeaturesplatError(f"densify: there is no strategy '{config.strategy}'", "Use mcmc, classic or none.")
