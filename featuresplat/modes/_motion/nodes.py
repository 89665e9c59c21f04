"""Sparse motion nodes: M points, each with a rigid motion at every one of T frames (SC-GS, Huang et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featuresplat.modes._motion import dualquat

_CHUNK = 4096


@dataclass
class Nodes:
    """M nodes over T times.

    Node m sits at ``positions[m, t]`` with orientation ``quats[m, t]``; from the rest frame to t it moves by the
    rigid motion that carries one onto the other.

    Attributes:
        times: [T] ascending, in 0..1.
        positions: [M, T, 3].
        quats: [M, T, 4] wxyz, normalised on use.
        log_radii: [M] logarithm of the reach of each node, in units of the positions.
        rest: the frame in which Gaussians are stored.
    """

    times: Tensor
    positions: Tensor
    quats: Tensor
    log_radii: Tensor
    rest: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def map(self, fn) -> Nodes:
        """A copy with ``fn`` applied to positions, quats and radii."""
        return replace(self, positions=fn(self.positions), quats=fn(self.quats), log_radii=fn(self.log_radii))

    def detach(self) -> Nodes:
        return self.map(lambda t: t.detach())

    def frame(self, t: int) -> Tensor:
        """[M, 8] dual quaternions from the rest frame to frame ``t``."""
        if t == self.rest:
            return dualquat.identity(len(self), like=self.positions)
        turn = dualquat.quat_mul(_unit(self.quats[:, t]), dualquat.quat_conj(_unit(self.quats[:, self.rest])))
        return dualquat.from_rigid(turn, self.positions[:, t] - dualquat.rotate(turn, self.positions[:, self.rest]))

    def frames(self) -> Tensor:
        """[M, T, 8] dual quaternions from the rest frame to every frame."""
        turn = dualquat.quat_mul(_unit(self.quats), dualquat.quat_conj(_unit(self.quats[:, self.rest]))[:, None])
        moved = dualquat.rotate(turn, self.positions[:, self.rest, None])
        return dualquat.from_rigid(turn, self.positions - moved)

    def at(self, time: float) -> Tensor:
        """[M, 8] dual quaternions from the rest frame to a time; between frames blended, outside held still."""
        i, j, u = bracket(self.times, time)
        if i == j:
            return self.frame(i)
        pair = torch.stack([self.frame(i), self.frame(j)], dim=1)  # [M, 2, 8]
        return dualquat.blend(pair, pair.new_tensor([1 - u, u]).expand(len(self), 2))

    @property
    def rest_positions(self) -> Tensor:
        """[M, 3] in the frame in which Gaussians are stored."""
        return self.positions[:, self.rest]


def bracket(times: Tensor, time: float) -> tuple[int, int, float]:
    """The frames before and after a time and the share of the second; the same frame twice at and past the ends."""
    last = len(times) - 1
    j = int(torch.searchsorted(times.detach().cpu().double(), time - 1e-6))
    if j > last or (j == 0 and time <= float(times[0])):
        end = min(j, last)
        return end, end, 0.0
    if abs(float(times[j]) - time) < 1e-6:
        return j, j, 0.0
    before, after = float(times[j - 1]), float(times[j])
    return j - 1, j, (time - before) / (after - before)


def neighbours(paths: Tensor, queries: Tensor, count: int) -> Tensor:
    """[N, K] indices of the nodes whose paths are nearest to those of the queries, nearest first.

    Comparing whole paths, not places, keeps a book's cover from following the page that it once lay on.

    Args:
        paths: [M, S, 3] the nodes' places at S times. queries: [N, S, 3]. count: K; fewer where M is less.
    """
    count = min(count, len(paths))
    flat = paths.reshape(len(paths), -1)
    parts = [
        torch.cdist(part.reshape(len(part), -1), flat).topk(count, largest=False).indices
        for part in queries.split(_CHUNK)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, count, dtype=torch.long, device=paths.device)


def rbf_weights(points: Tensor, centres: Tensor, log_radii: Tensor, ids: Tensor) -> Tensor:
    """[N, K] weights exp(-d^2 / 2 r^2), normalised to sum 1, of points [N, 3] towards the nodes ``ids`` [N, K]."""
    d2 = ((points[:, None] - centres[ids]) ** 2).sum(-1)
    return torch.softmax(-0.5 * d2 * (-2 * log_radii)[ids].exp(), dim=1)


def sample_times(count: int, most: int = 8) -> Tensor:
    """Up to ``most`` of ``count`` frames, evenly spread, both ends included."""
    return torch.linspace(0, count - 1, min(most, count)).round().long().unique()


def _unit(q: Tensor) -> Tensor:
    return torch.nn.functional.normalize(q, dim=-1)
