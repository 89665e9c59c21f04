"""What keeps moving nodes plausible: as rigid as possible, and without jerks."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from featuresplat.modes._motion import dualquat
from featuresplat.modes._motion.nodes import Nodes, neighbours, sample_times

TOGETHER = 0.25
"""Weight of an edge from which two nodes count as one body."""


def arap(nodes: Nodes, ids: Tensor, weights: Tensor, frames: Tensor, others: Tensor) -> Tensor:
    """As rigid as possible (Sorkine and Alexa 2007) between pairs of frames, a mean squared length.

    Each node expects its neighbours where its own turn between the two frames carries them; and edges keep their
    length whatever the turn.

    Args:
        ids: [M, J] neighbours of each node. weights: [M, J] of the edges. frames, others: [P] pairs of frames.
    """
    p, q = nodes.positions, torch.nn.functional.normalize(nodes.quats, dim=-1)
    edges = p[ids] - p[:, None]  # [M, J, T, 3]
    before, after = edges[:, :, others], edges[:, :, frames]
    turn = dualquat.quat_mul(q[:, frames], dualquat.quat_conj(q[:, others]))  # [M, P, 4]
    off = ((after - dualquat.rotate(turn[:, None], before)) ** 2).sum(-1)
    stretch = (after.norm(dim=-1) - before.norm(dim=-1)) ** 2
    total = weights.sum().clamp_min(1e-12) * len(frames)
    return (weights[..., None] * (off + stretch)).sum() / total


def turn_smoothness(nodes: Nodes, ids: Tensor, weights: Tensor, frames: Tensor, others: Tensor) -> Tensor:
    """Mean squared difference between the turns of neighbouring nodes (of their quaternions, up to sign)."""
    q = torch.nn.functional.normalize(nodes.quats, dim=-1)
    turn = dualquat.quat_mul(q[:, frames], dualquat.quat_conj(q[:, others]))  # [M, P, 4]
    alike = (turn[ids] * turn[:, None]).sum(-1)  # [M, J, P] cosine of half the angle between
    return (weights[..., None] * (1 - alike**2)).sum() / (weights.sum().clamp_min(1e-12) * len(frames))


def acceleration(nodes: Nodes) -> tuple[Tensor, Tensor]:
    """Mean squared second differences over frames of positions, and of quaternions up to sign."""
    p, q = nodes.positions, torch.nn.functional.normalize(nodes.quats, dim=-1)
    if p.shape[1] < 3:
        return p.new_zeros(()), p.new_zeros(())
    place = ((p[:, 2:] - 2 * p[:, 1:-1] + p[:, :-2]) ** 2).sum(-1).mean()
    first = dualquat.quat_mul(q[:, 1:-1], dualquat.quat_conj(q[:, :-2]))
    second = dualquat.quat_mul(q[:, 2:], dualquat.quat_conj(q[:, 1:-1]))
    side = torch.where((first * second).sum(-1, keepdim=True) < 0, -1.0, 1.0).to(q.dtype)
    return place, ((second - side * first) ** 2).sum(-1).mean()


def bodies_of(ids: Tensor, weights: Tensor) -> Tensor:
    """[M] the body that each node belongs to: nodes joined by strong edges, as `edges_of` gives them."""
    count = len(ids)
    strong = (weights > TOGETHER).cpu()
    rows = torch.arange(count)[:, None].expand_as(ids)[strong].numpy()
    graph = coo_array((np.ones(len(rows)), (rows, ids.cpu()[strong].numpy())), shape=(count, count))
    return torch.from_numpy(connected_components(graph, directed=False)[1]).long()


def edges_of(nodes: Nodes, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` neighbours [M, J] of each node by path, and weights [M, J] that fall with path distance.

    Edges whose ends do not keep their distance over time weigh little: two objects that touch are not one.
    """
    with torch.no_grad():
        some = sample_times(nodes.positions.shape[1], 12)
        paths = nodes.positions[:, some]
        ids = neighbours(paths, paths, count + 1)
        own = ids == torch.arange(len(ids), device=ids.device)[:, None]
        # A node is its own nearest; where a twin came first, drop the last neighbour instead.
        own[:, -1] |= ~own.any(1)
        ids = ids[~own].reshape(len(ids), ids.shape[1] - 1)
        lengths = (paths[ids] - paths[:, None]).norm(dim=-1)  # [M, J, S]
        mean, change = lengths.mean(-1), lengths.std(-1, correction=0)
        reach = mean[:, : max(1, min(4, mean.shape[1]))].mean(1, keepdim=True).clamp_min(1e-9)
        return ids, torch.exp(-0.5 * (mean / (2 * reach)) ** 2 - 0.5 * (change / (0.35 * reach)) ** 2)
