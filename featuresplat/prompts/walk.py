"""Labels spread from some Gaussians to all, by random walks that hardly cross changes of colour.

Grady, "Random Walks for Image Segmentation", IEEE TPAMI 2006, on the graph of neighbouring Gaussians.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from featuresplat.prompts.graph import Graph

CONTRAST = 60.0
"""Fall of the weights with the squared difference of colours."""
ERROR, MOST = 3e-3, 150
"""Where the solution is good enough to tell which label is the likeliest, relative; and the most iterations."""


def walk(graph: Graph, colors: Tensor, seeds: np.ndarray, count: int) -> Tensor:
    """Spread seeds over the graph: float32 [N, count], how likely a walk from each Gaussian ends at each label.

    A seed weighs as much as a near neighbour of one colour, so it may be overruled by those around it; one whose
    neighbours are seeds of its own label is certain, and not solved for.

    Args:
        colors: [N, 3] in 0..1; edges weigh exp(-CONTRAST |difference|^2).
        seeds: int64 [N] labels 0 .. count-1, -1 = none.
    """
    joined = graph.matrix(edge_weights(graph, colors))
    held = (seeds >= 0).astype(np.float64)
    diagonal = np.asarray(joined.sum(1))[:, 0] + held + 1e-6
    used = np.unique(seeds[seeds >= 0])
    given = (seeds[:, None] == used).astype(np.float64)  # [N, U]
    sure = certain(graph, seeds)
    rows = joined[~sure]
    found = given.copy()
    target = given[~sure] + rows[:, sure] @ given[sure]
    found[~sure] = conjugate_gradients(rows[:, ~sure], diagonal[~sure], target, ERROR, MOST)
    out = np.zeros((graph.count, count), np.float32)
    out[:, used] = found.clip(0, 1)
    out[out.max(1) < 1e-3, -1] = 1.0  # nothing reaches it
    return torch.from_numpy(out / out.sum(1, keepdims=True))


def certain(graph: Graph, seeds: np.ndarray) -> np.ndarray:
    """bool [N]: seeds [N] whose neighbours are all seeds of the same label."""
    out = seeds >= 0
    apart = seeds[graph.rows] != seeds[graph.cols]
    out[graph.rows[apart]] = False
    out[graph.cols[apart]] = False
    return out


def edge_weights(graph: Graph, colors: Tensor) -> np.ndarray:
    """[E]: near 1 between close neighbours of one colour, small across a change of colour or a gap."""
    rgb = colors.detach().cpu().double().clamp(0, 1).numpy()
    change = ((rgb[graph.rows] - rgb[graph.cols]) ** 2).sum(1)
    spacing = float(np.median(graph.lengths)) if len(graph.lengths) else 1.0
    return np.exp(-CONTRAST * change) * np.minimum(1, spacing / np.maximum(graph.lengths, 1e-12)) + 1e-4


def conjugate_gradients(
    joined: csr_matrix, diagonal: np.ndarray, target: np.ndarray, error: float, most: int, kind: type = np.float32
) -> np.ndarray:
    """X [N, U] with (diag - joined) X = target [N, U], each column to a relative ``error``; preconditioned by the
    diagonal. Columns go together, so that each step reads the matrix once.

    In place of scipy's, whose products go through BLAS: its threads wait for each other on vectors this short.
    """
    matrix, diagonal, target = joined.astype(kind), diagonal.astype(kind)[:, None], target.astype(kind)
    tiny = np.finfo(kind).tiny
    x = target / diagonal
    residual = target - (diagonal * x - matrix @ x)
    z = residual / diagonal
    direction, rz = z.copy(), (residual * z).sum(0)
    stop = error * np.sqrt((target * target).sum(0))
    for _ in range(most):
        if (np.sqrt((residual * residual).sum(0)) <= stop).all():
            break
        moved = diagonal * direction - matrix @ direction
        step = rz / np.maximum((direction * moved).sum(0), tiny)
        x += step * direction
        residual -= step * moved
        z = residual / diagonal
        before, rz = rz, (residual * z).sum(0)
        direction = z + (rz / np.maximum(before, tiny)) * direction
    return x
