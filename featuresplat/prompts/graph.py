"""Which Gaussians are neighbours: the k-nearest-neighbour graph of their centres."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

NEIGHBOURS = 12
REACH = 4.0
"""Edges longer than this many times the typical spacing around their ends join nothing: a stray Gaussian far from
everything has no neighbours, however many nearest ones it has."""


@dataclass(frozen=True)
class Graph:
    """An undirected graph over N Gaussians.

    Attributes:
        rows, cols: int64 [E] ends of each edge, every edge once, rows < cols.
        lengths: float32 [E] world units.
        count: N.
    """

    rows: np.ndarray
    cols: np.ndarray
    lengths: np.ndarray
    count: int

    def matrix(self, weights: np.ndarray | None = None) -> csr_matrix:
        """Symmetric sparse [N, N] with ``weights`` [E] (default ones) on its edges."""
        values = np.ones(len(self.rows), np.float32) if weights is None else np.asarray(weights)
        both = np.concatenate([self.rows, self.cols]), np.concatenate([self.cols, self.rows])
        return csr_matrix((np.concatenate([values, values]), both), shape=(self.count, self.count))

    def dilate(self, inside: np.ndarray) -> np.ndarray:
        """bool [N]: ``inside`` and all its neighbours."""
        out = inside.copy()
        out[self.rows[inside[self.cols]]] = True
        out[self.cols[inside[self.rows]]] = True
        return out

    def parts(self, inside: np.ndarray, keep: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Connected parts of a subset.

        Args:
            inside: bool [N].
            keep: bool [E], edges that connect; default all.

        Returns:
            int64 [N] part of each Gaussian, -1 outside, largest part first; and the parts' sizes.
        """
        joined = inside[self.rows] & inside[self.cols]
        if keep is not None:
            joined &= keep
        shape = (self.count, self.count)
        ones = np.ones(int(joined.sum()), np.int8)
        labels = connected_components(
            csr_matrix((ones, (self.rows[joined], self.cols[joined])), shape=shape), directed=False
        )[1]
        out = np.full(self.count, -1, np.int64)
        if not inside.any():
            return out, np.zeros(0, np.int64)
        found, number, sizes = np.unique(labels[inside], return_inverse=True, return_counts=True)
        order = np.argsort(-sizes, kind="stable")
        rank = np.empty(len(found), np.int64)
        rank[order] = np.arange(len(found))
        out[inside] = rank[number]
        return out, sizes[order]


def build(means: Tensor, neighbours: int = NEIGHBOURS) -> Graph:
    """The graph of centres [N, 3]: the nearest ``neighbours`` of each, as long as they are near."""
    points = means.detach().cpu().double().numpy()
    count = len(points)
    k = min(neighbours, count - 1)
    if k < 1:
        none = np.zeros(0, np.int64)
        return Graph(none, none, np.zeros(0, np.float32), count)
    found = KDTree(points).query(points, k + 1)
    distances, indices = np.asarray(found[0]), np.asarray(found[1])
    start = np.repeat(np.arange(count), k)
    end, length = indices[:, 1:].reshape(-1), distances[:, 1:].reshape(-1)
    spacing = np.median(distances[:, 1:], axis=1)
    # The spacing of the surroundings, so that a pair of strays does not vouch for each other.
    spacing = np.median(spacing[indices], axis=1)
    near = (length <= REACH * np.minimum(spacing[start], spacing[end])) & (start != end)
    low, high = np.minimum(start, end)[near], np.maximum(start, end)[near]
    _, first = np.unique(low * count + high, return_index=True)
    return Graph(low[first], high[first], length[near][first].astype(np.float32), count)


_known: dict[int, tuple[weakref.ref, Graph]] = {}


def graph_of(means: Tensor) -> Graph:
    """`build`, remembered as long as the tensor lives; tensors of a scene are never written to."""
    key = id(means)
    found = _known.get(key)
    if found is not None and found[0]() is means:
        return found[1]
    graph = build(means)
    _known[key] = (weakref.ref(means, lambda _: _known.pop(key, None)), graph)
    return graph


def to_numpy(mask: Tensor) -> np.ndarray:
    return mask.detach().cpu().numpy()


def to_mask(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device)
