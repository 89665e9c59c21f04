"""The light of the mode `inverse` while it is fitted."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat.shading import cubemap, transfer
from featuresplat.shading.prefilter import Prefilter

COARSEST = 8
EVERY = 4
"""Steps whose gradients are gathered for one step of the light: filtering it costs as much as rendering a view."""
LAMP = 0.6
"""Radiance from which texels may be a lamp whose reflections were clipped; at twice that they are."""
BRIGHTEST = 8.0
"""Most that lamps are brightened by at once."""
FOLLOWED, KNOWN = 6.0, 1.2
"""Radiance up to which steps may follow a lamp that photographs cut at 1, before and after it was measured how bright
lamps are. Nothing pulls them back from more: a reflection whose edge is a little beside its place would have them ever
brighter, and broader."""
DAMPED = 0.6
"""Learning rate of each level, as a share of the one before."""


class FittedLight:
    """An environment whose logarithm is a sum of ever finer cubemaps: what is coarse is found first.

    Shading looks at copies that are filtered for it; the gradients gathered there are carried to the parameters
    every few steps.

    Attributes:
        params: the levels by name, [6, s, s, 3], coarse to fine.
        atlas: [T, 3] of `Prefilter`, or None before `filter`.
        directions: [6 SIZE^2, 3] means over the texels that `transfer` knows.
        most: [6, S, S, 3] radiance that steps leave it with at most; who sets the light may go beyond.
    """

    def __init__(self, size: int, value: Tensor, device: torch.device, white: float, even: float):
        self.size, self.device, self.white, self.even = size, device, white, even
        sizes = [s for s in (COARSEST << k for k in range(12)) if s <= size]
        levels = {f"light{k}": torch.zeros(6, s, s, 3, device=device) for k, s in enumerate(sizes)}
        levels["light0"] += value.log()
        self.params = {k: Parameter(v) for k, v in levels.items()}
        dirs = cubemap.directions(size).reshape(-1, 3).to(device)
        self._lookups = [cubemap.corners(*cubemap.locate(dirs), s) for s in sizes[:-1]]
        self._prefilter: Prefilter | None = None
        self.atlas: Tensor | None = None
        self.directions: Tensor | None = None
        self.most = torch.full((6, size, size, 3), FOLLOWED, device=device)

    @property
    def prefilter(self) -> Prefilter:
        if self._prefilter is None:
            self._prefilter = Prefilter(self.size, self.device)
        return self._prefilter

    def log_radiance(self) -> Tensor:
        """[6, S, S, 3], differentiable in the parameters."""
        *coarse, fine = self.params.values()
        total = fine.reshape(-1, 3)
        for level, (index, weights) in zip(coarse, self._lookups, strict=True):
            total = total + cubemap.weighted_rows(cubemap.padded(level), index, weights)
        return total.reshape(fine.shape)

    def cube(self) -> Tensor:
        """[6, S, S, 3] radiance as it is now."""
        with torch.no_grad():
            return self.log_radiance().exp()

    def seen(self, dirs: Tensor) -> Tensor:
        """[P, 3] radiance in directions [P, 3], differentiable."""
        where = cubemap.locate(dirs)
        if self.atlas is not None:
            return cubemap.weighted_rows(self.atlas, *cubemap.corners(*where, self.size))
        total = dirs.new_zeros(dirs.shape)
        for level in self.params.values():
            total = total + cubemap.weighted_rows(cubemap.padded(level), *cubemap.corners(*where, level.shape[1]))
        return total.exp()

    @torch.no_grad()
    def filter(self) -> None:
        """Filter the light as it is now, for the steps to come."""
        *_, fine = self.params.values()
        fine -= (self.log_radiance() - self.most.log()).clamp_min(0)
        cube = self.log_radiance().exp()
        self.atlas = self.prefilter.atlas(cube).requires_grad_()
        self.directions = _directions(cube).requires_grad_()

    def pull(self) -> None:
        """Carry the gathered gradients to the parameters; the optimiser's next step takes them."""
        if self.atlas is None or self.directions is None or self.atlas.grad is None:
            return
        with torch.enable_grad():
            logs = self.log_radiance()
            cube = logs.exp()
            total = (self.prefilter.atlas(cube) * (self.atlas.grad / EVERY)).sum()
            if self.directions.grad is not None:
                total = total + (_directions(cube) * (self.directions.grad / EVERY)).sum()
            total = total + self.white * (cube - cube.mean(-1, keepdim=True)).abs().mean()
            total = total + self.even * _variation(logs)
            found = torch.autograd.grad(total, list(self.params.values()))
        for p, g in zip(self.params.values(), found, strict=True):
            p.grad = g
        self.atlas.grad = self.directions.grad = None

    @property
    def moved(self) -> bool:
        """The parameters have just taken a step."""
        return self.params["light0"].grad is not None

    @torch.no_grad()
    def set(self, logs: Tensor) -> None:
        """Make the sum equal to ``logs`` [6, S, S, 3]; each level takes what the coarser ones leave."""
        self.most = logs.exp().clamp_min(FOLLOWED)
        for level in self.params.values():
            level.zero_()
        for level in self.params.values():
            rest = logs - self.log_radiance()
            level.copy_(cubemap.shrink(rest, self.size // level.shape[1]))

    @torch.no_grad()
    def brighten_lamps(self, gain: float) -> float:
        """Brighten what photographs may have clipped until the mean radiance has grown by ``gain``; by how much it has.

        Nothing happens where ``gain`` is not above 1 or nothing is that bright.
        """
        cube, bright = self.cube(), self.lamps()
        area = cubemap.solid_angles(self.size).to(cube)[None, ..., None]
        total, lamps = float((cube * area).sum()), float((bright * area).sum())
        if gain <= 1 or lamps < 1e-3 * total:
            return 1.0
        more = min((gain - 1) * total / lamps, BRIGHTEST)
        self.set_lamps(1 + more)
        return 1 + more * lamps / total

    @torch.no_grad()
    def lamps(self) -> Tensor:
        """[6, S, S, 3] the part of the light whose reflections photographs may have clipped."""
        cube = self.cube()
        return ((cube.mean(-1, keepdim=True) - LAMP) / LAMP).clamp(0, 1) * cube

    @torch.no_grad()
    def set_lamps(self, gain: float) -> None:
        """Make lamps so much brighter, which is as bright as they are."""
        self.set((self.cube() + (gain - 1) * self.lamps()).log())
        self.most = self.cube().clamp_min(KNOWN)
        self.filter()

    def gathered(self) -> dict[str, Tensor]:
        """Gradients that no step has taken yet, and what else the parameters do not say."""
        found = {"atlas": self.atlas, "directions": self.directions}
        grads = {k: v.grad for k, v in found.items() if v is not None and v.grad is not None}
        return {**grads, "most": self.most}

    def restore(self, gathered: dict[str, Tensor]) -> None:
        """After the parameters were given back: filter them, and go on gathering."""
        self.most = gathered["most"]
        self.filter()
        assert self.atlas is not None
        assert self.directions is not None
        self.atlas.grad, self.directions.grad = gathered.get("atlas"), gathered.get("directions")


def _directions(cube: Tensor) -> Tensor:
    return cubemap.shrink(cube, cube.shape[1] // transfer.SIZE).reshape(-1, 3)


def _variation(logs: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring texels within the faces."""
    return (logs[:, 1:] - logs[:, :-1]).abs().mean() + (logs[:, :, 1:] - logs[:, :, :-1]).abs().mean()
