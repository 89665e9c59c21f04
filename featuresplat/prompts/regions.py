"""The part of a scene around given points that hangs together best: no pieces, no features needed.

With points that are not meant (or a box), a random walk from either side decides. Without, the walk starts at the
points alone, and the set it fills is cut off where least holds it together for its size: the sweep over personalised
PageRank of Andersen, Chung and Lang, "Local Graph Partitioning using PageRank Vectors" (2006).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat.prompts.graph import graph_of
from featuresplat.prompts.walk import conjugate_gradients, edge_weights, walk
from featuresplat.types import Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

LEAKS = (1e-2, 3e-3, 1e-3, 3e-4)
"""Shares of the walk that stop at each step: how far it gets."""
_SEEDS = 8


def grow(
    scene: Scene, gaussians: Gaussians, wanted: np.ndarray, unwanted: np.ndarray, outside: np.ndarray | None = None
) -> Tensor:
    """[N] scores in 0..1 of a region.

    Args:
        wanted: [K, 3] places in it.
        unwanted: [M, 3] places not in it.
        outside: bool [N], Gaussians that are not in it.
    """
    tree = KDTree(gaussians.means.detach().double().cpu().numpy())
    graph = graph_of(gaussians.means)
    inside = _nearest(tree, wanted)
    outer = np.zeros(graph.count, bool) if outside is None else outside.copy()
    if len(unwanted):
        outer[_nearest(tree, unwanted)] = True
    outer[inside] = False
    if outer.any():
        seeds = np.full(graph.count, -1)
        seeds[outer], seeds[inside] = 0, 1
        return walk(graph, gaussians.colors, seeds, 2)[:, 1]
    weights = edge_weights(graph, gaussians.colors)
    joined = graph.matrix(weights)
    degree = np.asarray(joined.sum(1))[:, 0]
    best, members = np.inf, np.zeros(graph.count, bool)
    for leak in LEAKS:
        diagonal = degree * (1 + leak) + 1e-9
        start = np.zeros(graph.count)
        start[inside] = degree[inside]
        reached = conjugate_gradients(joined, diagonal, leak * start[:, None], 1e-6, 400, np.float64)[:, 0]
        looseness, order, size = _sweep(reached, graph.rows, graph.cols, weights, degree)
        if looseness < best:
            best, members = looseness, np.zeros(graph.count, bool)
            members[order[:size]] = True
    return torch.from_numpy(members.astype(np.float32))


def _nearest(tree: KDTree, places: np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(tree.query(places, min(_SEEDS, tree.n))[1]).ravel())


def _sweep(
    values: np.ndarray, rows: np.ndarray, cols: np.ndarray, weights: np.ndarray, degree: np.ndarray
) -> tuple[float, np.ndarray, int]:
    """The prefix of the order of falling ``values`` with the least conductance: that, the order, and its length."""
    order = np.argsort(-values, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    first, last = np.minimum(rank[rows], rank[cols]), np.maximum(rank[rows], rank[cols])
    # An edge is cut by every prefix that holds its first end and not its last.
    cut = np.cumsum(np.bincount(first, weights, len(order)) - np.bincount(last, weights, len(order)))
    volume = np.cumsum(degree[order])
    smaller = np.minimum(volume, volume[-1] - volume)
    able = (values[order] > 1e-9) & (np.arange(len(order)) >= 30) & (smaller > 0)
    if not able.any():
        return np.inf, order, min(30, len(order))
    looseness = np.where(able, cut / np.maximum(smaller, 1e-12), np.inf)
    return float(looseness.min()), order, int(looseness.argmin()) + 1
