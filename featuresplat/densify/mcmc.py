"""Densification as sampling: "3D Gaussian Splatting as Markov Chain Monte Carlo" (Kheradmand et al. 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featuresplat.config import DensifyConfig
from featuresplat.densify import _edit
from featuresplat.geometry import quat_to_rotmat
from featuresplat.types import RenderOutput

MOST_COPIES = 51
"""At most so many Gaussians come to share one place in a round; the binomial sums are exact enough up to here."""
NOISE_SLOPE, NOISE_CENTER = 100.0, 0.005
"""The noise is gated by sigmoid(NOISE_SLOPE (NOISE_CENTER - opacity)): only what hardly shows explores."""
NOISE_LIMIT = 0.15
"""Opacity above which the gate, below 6e-7, is taken as shut."""


def relocated(opacities: Tensor, scales: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity and scales of ``copies`` coinciding Gaussians that look like one (eq. 9 of the paper).

    With o' = 1 - (1 - o)^(1/n), the scales are multiplied by

        o / sum_{i=1..n} sum_{k=0..i-1} C(i-1, k) (-1)^k o'^(k+1) / sqrt(k+1)
      = o / sum_{j=1..n} C(n, j) (-1)^(j+1) o'^j / sqrt(j),

    the second by summing the binomials over i first.

    Args:
        opacities: [M] in 0..1. scales: [M, 3]. copies: [M] int64, n in 1..MOST_COPIES, the original included.

    Returns:
        opacities [M] and scales [M, 3] of each copy, in the dtypes given.
    """
    o, n = opacities.double(), copies.double()
    shared = -torch.expm1(torch.log1p(-o) / n)
    j = torch.arange(1, MOST_COPIES + 1, dtype=torch.float64, device=o.device)
    table = torch.zeros(MOST_COPIES + 1, MOST_COPIES, dtype=torch.float64)
    for row in range(1, MOST_COPIES + 1):
        terms = [math.comb(row, i) * (-1) ** (i + 1) / math.sqrt(i) for i in range(1, row + 1)]
        table[row, :row] = torch.tensor(terms, dtype=torch.float64)
    total = (table.to(o.device)[copies] * shared[:, None] ** j).sum(1)
    return shared.to(opacities.dtype), scales * (o / total).to(scales.dtype)[:, None]


class MCMC:
    """Moves dead Gaussians onto live ones, grows to the budget, and jitters what hardly shows.

    Rounds happen between the configured shares of the training; the noise is added after every step, in
    proportion to the learning rate of the means.
    """

    absgrad = False

    def __init__(self, config: DensifyConfig, budget: int, steps: int):
        self.config, self.budget = config, budget
        self.first, self.last = config.start * steps, config.stop * steps

    def before_backward(self, step: int, out: RenderOutput) -> None: ...

    def state_dict(self) -> dict[str, Tensor]:
        """Empty: everything it knows is in the parameters."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

    @torch.no_grad()
    def after_step(self, step, params, optimizer, out, generator) -> None:
        """See `featuresplat.densify.Strategy`."""
        if self.first < step < self.last and step % self.config.every == 0:
            self.relocate(params, optimizer, generator)
            self.grow(params, optimizer, generator, self.share(step, len(params["means"])))
        self.add_noise(params, optimizer, generator)

    def share(self, step: int, count: int) -> float:
        """How much more Gaussians this round brings: the configured share, or what it takes to reach the budget by
        the middle of the rounds when that is more (a short training has few rounds)."""
        rounds = max(1, int((0.5 * (self.first + self.last) - step) // self.config.every) + 1)
        return max(self.config.growth, (self.budget / count) ** (1 / rounds) - 1)

    @torch.no_grad()
    def relocate(self, params: _edit.Params, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> int:
        """Move every dead Gaussian onto a live one, drawn by opacity; returns how many moved.

        Moments of the moved and of those they moved onto are zeroed: neither is what it was.
        """
        opacities = params["logit_opacities"].sigmoid()
        # Written so that a NaN is dead, too.
        alive = (opacities > self.config.min_opacity) & params["means"].isfinite().all(1)
        dead, live = (~alive).nonzero()[:, 0], alive.nonzero()[:, 0]
        if not len(dead) or not len(live):
            return 0
        sources = live[_draw(opacities[live], len(dead), generator)]
        self._share(params, sources)
        for value in params.values():
            value[dead] = value[sources]
        _edit.zero_moments(params, optimizer, torch.cat([dead, sources]))
        return len(dead)

    @torch.no_grad()
    def grow(
        self, params: _edit.Params, optimizer: torch.optim.Optimizer, generator: torch.Generator, share: float
    ) -> int:
        """Add that share of Gaussians, within the budget, as copies drawn by opacity; returns how many."""
        count = len(params["means"])
        extra = min(self.budget, int(count * (1 + share))) - count
        opacities = params["logit_opacities"].sigmoid()
        drawable = torch.where(params["means"].isfinite().all(1), opacities.nan_to_num(0), 0)
        if extra <= 0 or not drawable.any():
            return 0
        sources = _draw(drawable, extra, generator)
        self._share(params, sources)
        _edit.zero_moments(params, optimizer, sources)
        _edit.append(params, optimizer, {name: value.detach()[sources] for name, value in params.items()})
        return extra

    @torch.no_grad()
    def add_noise(self, params: _edit.Params, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Langevin noise on the means, shaped by each covariance: noise * lr * gate(opacity) * Sigma * normal."""
        if self.config.noise <= 0:
            return
        means, logits = params["means"], params["logit_opacities"]
        rate = next((g["lr"] for g in optimizer.param_groups if any(p is means for p in g["params"])), 0.0)
        rows = (logits < math.log(NOISE_LIMIT / (1 - NOISE_LIMIT))).nonzero()[:, 0]
        if not len(rows):
            return
        gate = torch.sigmoid(NOISE_SLOPE * (NOISE_CENTER - logits[rows].sigmoid()))
        normal = torch.randn(len(rows), 3, generator=generator, device=generator.device).to(means)
        rotation = quat_to_rotmat(params["quats"][rows])
        local = (normal[:, None] @ rotation)[:, 0] * (2 * params["log_scales"][rows]).exp()
        local *= (self.config.noise * float(rate)) * gate[:, None]
        means.index_add_(0, rows, (rotation @ local[..., None])[..., 0])

    def _share(self, params: _edit.Params, sources: Tensor) -> None:
        """Give each Gaussian of ``sources`` the opacity and scales of as many copies as it will have."""
        unique, counts = sources.unique(return_counts=True)
        opacities, scales = relocated(
            params["logit_opacities"][unique].sigmoid(),
            params["log_scales"][unique].exp(),
            (counts + 1).clamp(max=MOST_COPIES),
        )
        # Not below the threshold, else the next round would undo this one.
        opacities = opacities.clamp(self.config.min_opacity, 1 - 1e-6)
        params["logit_opacities"][unique] = torch.logit(opacities)
        params["log_scales"][unique] = scales.log()


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count] indices drawn with replacement in proportion to ``weights`` [M]."""
    # torch.multinomial refuses more than 2^24 categories; a search in the running sum has no bound.
    running = weights.double().cumsum(0)
    ticks = torch.rand(count, generator=generator, device=generator.device, dtype=torch.float64)
    found = torch.searchsorted(running, ticks.to(running.device) * running[-1], right=True)
    return found.clamp(max=len(weights) - 1)
