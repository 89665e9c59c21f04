"""Feature codes on nodes: the moving part of a field, constant in time, in M rows in place of one per Gaussian."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featuresplat.modes._motion.finished import moves

if TYPE_CHECKING:
    from featuresplat.scene import Scene
    from featuresplat.types import FeatureField

RIDGE = 1e-3
"""Pull of a node's code to the mean of those around, as a share of what it carries; decides for nodes that carry
nothing."""


def on_nodes(scene: Scene, field: FeatureField) -> Tensor:
    """[M, D] the node codes whose blends come nearest to the codes of the moving Gaussians.

    Least squares, each Gaussian by its confidence: min over c of sum_g k_g |sum_m w_gm c_m - f_g|^2.
    """
    rows = moves(scene).nonzero()[:, 0]
    ids = scene.mode_state["gaussian.nodes"][rows].long().clamp_min(1) - 1
    weights = scene.mode_state["gaussian.weights"][rows]
    count = len(scene.mode_state["nodes.positions"])
    known = torch.ones(len(rows)).to(weights) if field.confidence is None else field.confidence[rows].to(weights)
    known = known / known.mean().clamp_min(1e-12)
    codes = field.codes[rows]
    A = torch.zeros(len(rows), count).to(weights).scatter_add_(1, ids, weights)  # [R, M]
    carried = (A * known[:, None]).sum(0)
    mean = (A * known[:, None]).T @ codes / carried[:, None].clamp_min(1e-9)
    fallback = (known[:, None] * codes).sum(0) / known.sum().clamp_min(1e-9)
    mean = torch.where(carried[:, None] > 1e-6, mean, fallback)
    ridge = RIDGE * carried.mean().clamp_min(1e-9)
    normal = (A * known[:, None]).T @ A + ridge * torch.eye(count).to(A)
    return torch.linalg.solve(normal, (A * known[:, None]).T @ codes + ridge * mean)


def from_nodes(scene: Scene, node_codes: Tensor) -> Tensor:
    """[R, D] codes of the moving Gaussians, blended from the nodes' codes [M, D]."""
    rows = moves(scene).nonzero()[:, 0]
    ids = scene.mode_state["gaussian.nodes"][rows].long().clamp_min(1) - 1
    return (scene.mode_state["gaussian.weights"][rows][..., None] * node_codes[ids]).sum(1)


def carried_by_nodes(scene: Scene, field: FeatureField) -> FeatureField:
    """The field with the codes of its moving Gaussians replaced by blends of codes on the nodes."""
    codes = field.codes.clone()
    codes[moves(scene)] = from_nodes(scene, on_nodes(scene, field))
    return replace(field, codes=codes)
