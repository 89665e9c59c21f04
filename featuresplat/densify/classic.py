"""Adaptive density control of "3D Gaussian Splatting" (Kerbl et al. 2023, sec. 5.2): clone, split, prune, reset."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featuresplat.config import DensifyConfig
from featuresplat.densify import _edit
from featuresplat.geometry import quat_to_rotmat
from featuresplat.types import RenderOutput

SPLIT_FACTOR = 1.6
"""The halves of a split Gaussian are smaller by this (the paper's phi)."""
PRUNE_SCALE = 0.1
"""Share of the scene's extent above which a Gaussian is pruned, once opacities have been reset."""


class Classic:
    """Clones or splits where the screen-space gradient is large; prunes the transparent and the huge.

    The gradient is averaged over the views that saw a Gaussian, in normalised device units (pixels times half of the
    longer side). When the budget is short, the largest gradients go first.

    Args:
        config, budget, steps, scene_extent: see `featuresplat.densify.make_strategy`.
        absolute: accumulate the sums of absolute gradients (Ye et al. 2024, AbsGS), which do not cancel within a
            Gaussian; wants a threshold some four times larger.
    """

    absgrad = True

    def __init__(self, config: DensifyConfig, budget: int, steps: int, scene_extent: float, *, absolute: bool = False):
        self.config, self.budget, self.extent, self.absolute = config, budget, scene_extent, absolute
        self.first, self.last = config.start * steps, config.stop * steps
        self.sums = torch.zeros(0)
        self.views = torch.zeros(0)

    def before_backward(self, step: int, out: RenderOutput) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        """``sums`` [N] of gradient norms and ``views`` [N] that saw each Gaussian, since the last round."""
        return {"sums": self.sums.clone(), "views": self.views.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """An empty state, as of a run that used another strategy, starts the averages anew."""
        self.sums, self.views = (state.get(k, torch.zeros(0)).clone() for k in ("sums", "views"))

    @torch.no_grad()
    def after_step(self, step, params, optimizer, out, generator) -> None:
        """See `featuresplat.densify.Strategy`."""
        if step >= self.last:
            return
        self.observe(out)
        if step > self.first and step % self.config.every == 0:
            self.grow(params, optimizer, generator)
            self.prune(step, params, optimizer)
            self.sums, self.views = torch.zeros(0), torch.zeros(0)
        if step > 0 and self.config.reset_every > 0 and step % self.config.reset_every == 0:
            self.reset_opacities(params, optimizer)

    @torch.no_grad()
    def observe(self, out: RenderOutput) -> None:
        """Add this render's screen-space gradients to the running averages."""
        grads = out.meta.means2d_absgrad if self.absolute else out.meta.means2d_grad
        if grads is None:
            return
        if len(self.sums) != grads.shape[1]:
            self.sums = torch.zeros(grads.shape[1], device=grads.device)
            self.views = torch.zeros_like(self.sums)
        # Those of a checkpoint come from its file, on the CPU.
        self.sums, self.views = self.sums.to(grads.device), self.views.to(grads.device)
        # The loss is a mean over the cameras; each alone would have C times the gradient.
        cameras, height, width = out.alpha.shape[:3]
        seen = (out.meta.radii > 0).all(-1)
        norms = grads.norm(dim=-1) * (0.5 * max(width, height) * cameras)
        self.sums += torch.where(seen, norms, 0).nan_to_num(0, 0, 0).sum(0)
        self.views += seen.sum(0)

    @torch.no_grad()
    def grow(self, params: _edit.Params, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
        """Clone the small, split the large, of those with a high mean gradient; returns how many were added."""
        count = len(params["means"])
        if len(self.sums) != count:
            return 0
        mean = self.sums / self.views.clamp(min=1)
        high = (mean > self.config.grad_threshold).nonzero()[:, 0]
        room = max(self.budget - count, 0)
        if len(high) > room:
            order = mean[high].argsort(descending=True, stable=True)
            high = high[order[:room]].sort().values
        if not len(high):
            return 0
        large = params["log_scales"][high].amax(1) > math.log(max(self.config.split_scale * self.extent, 1e-30))
        new = {name: value.detach()[high] for name, value in params.items()}
        split = high[large]
        if len(split):
            new["log_scales"][large] -= math.log(SPLIT_FACTOR)
            first, second = (_sample(params, split, generator) for _ in range(2))
            new["means"][large] = second
            params["means"][split] = first
            params["log_scales"][split] -= math.log(SPLIT_FACTOR)
            _edit.zero_moments(params, optimizer, split)
        _edit.append(params, optimizer, new)
        return len(high)

    @torch.no_grad()
    def prune(self, step: int, params: _edit.Params, optimizer: torch.optim.Optimizer) -> int:
        """Remove the nearly transparent, the broken and, after a reset, the huge; returns how many."""
        fine = (params["logit_opacities"].sigmoid() >= self.config.min_opacity) & params["means"].isfinite().all(1)
        # Before the first reset large ones are often the background, not yet resolved.
        if 0 < self.config.reset_every < step:
            fine &= params["log_scales"].amax(1) <= math.log(max(PRUNE_SCALE * self.extent, 1e-30))
        removed = int((~fine).sum())
        # With nothing left there would be nothing to learn from.
        if removed == 0 or removed == len(fine):
            return 0
        _edit.keep(params, optimizer, fine.nonzero()[:, 0])
        return removed

    @torch.no_grad()
    def reset_opacities(self, params: _edit.Params, optimizer: torch.optim.Optimizer) -> None:
        """Lower all opacities to at most twice the pruning threshold, so that what is not needed fades."""
        ceiling = min(2 * self.config.min_opacity, 0.99)
        params["logit_opacities"].clamp_(max=math.log(ceiling / (1 - ceiling)))
        _edit.zero_moments(params, optimizer, slice(None), ["logit_opacities"])


def _sample(params: _edit.Params, rows: Tensor, generator: torch.Generator) -> Tensor:
    """[M, 3] one point drawn from each Gaussian at ``rows``."""
    means, scales = params["means"][rows], params["log_scales"][rows].exp()
    normal = torch.randn(len(rows), 3, generator=generator, device=generator.device).to(means)
    return means + (quat_to_rotmat(params["quats"][rows]) @ (normal * scales)[..., None])[..., 0]
