"""A finished scene of the mode `dynamic`: its tensors, its Gaussians at a time, several such scenes in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from featuresplat.modes._motion import dualquat, losses, skinning
from featuresplat.modes._motion.nodes import Nodes
from featuresplat.types import Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene


def nodes_of(scene: Scene) -> Nodes:
    """The nodes of a finished scene, in the data's own frame."""
    s = scene.mode_state
    names = ("nodes.times", "nodes.positions", "nodes.quats", "nodes.log_radii")
    return Nodes(*(s[n] for n in names), rest=int(s["nodes.rest"]))


def state_of(nodes: Nodes) -> dict[str, Tensor]:
    """Nodes as a finished scene keeps them."""
    return {
        "nodes.times": nodes.times.clone(),
        "nodes.positions": nodes.positions,
        "nodes.quats": normalize(nodes.quats, dim=-1),
        "nodes.log_radii": nodes.log_radii,
        "nodes.rest": torch.tensor([nodes.rest]),
    }


def moves(scene: Scene) -> Tensor:
    """Bool [N]: which Gaussians of a finished scene move."""
    return scene.mode_state["gaussian.nodes"][:, 0] > 0


def at(scene: Scene, time: float | None) -> Gaussians:
    """The Gaussians of a finished scene at a time, each by its own clock; None gives the nodes' rest frame."""
    g, s = scene.gaussians, scene.mode_state
    if time is None:
        return g
    moving = moves(scene).nonzero()[:, 0]
    if not len(moving):
        return g
    ids, weights = s["gaussian.nodes"][moving].long().clamp_min(1) - 1, s["gaussian.weights"][moving]
    motion = _by_clock(nodes_of(scene), ids, weights, time, s.get("gaussian.clock"), moving)
    means, quats = g.means[moving], g.quats[moving]
    placed = s.get("gaussian.placed")
    if placed is None:
        means, quats = skinning.move(means, quats, motion)
    else:
        # Moved as a whole: x(t) = A D(t) A^-1 x, so that it is A's picture of what it was, at every time.
        log_scale, turn, shift = placement(placed[moving])
        size, back = log_scale.exp()[:, None], dualquat.quat_conj(turn)
        home = dualquat.rotate(back, means - shift) / size
        means, quats = skinning.move(home, dualquat.quat_mul(back, quats), motion)
        means, quats = dualquat.rotate(turn, means * size) + shift, dualquat.quat_mul(turn, quats)
    return replace(g, means=g.means.index_put((moving,), means), quats=g.quats.index_put((moving,), quats))


def placement(placed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log scale [N], turn [N, 4] and shift [N, 3] of rows of ``gaussian.placed``."""
    turn = placed[:, 1:5] + placed.new_tensor([1.0, 0, 0, 0])
    return placed[:, 0], normalize(turn, dim=1), placed[:, 5:]


def _by_clock(nodes: Nodes, ids: Tensor, weights: Tensor, time: float, clock: Tensor | None, rows: Tensor) -> Tensor:
    """[R, 8] motions of Gaussians that may each have a clock of their own."""
    if clock is None:
        return skinning.motions(nodes.at(time), ids, weights)
    own = (1 + clock[rows, 0]) * time + clock[rows, 1]
    out = weights.new_zeros(len(rows), 8)
    for value in own.unique().tolist():
        group = own == value
        out[group] = skinning.motions(nodes.at(value), ids[group], weights[group])
    return out


def joined(scenes: Sequence[Scene]) -> list[Scene]:
    """The scenes, all following nodes of the first one, to which the others' nodes are added where they are others."""
    first = scenes[0]
    base = nodes_of(first)
    all_nodes, out = base, []
    width = max(s.mode_state["gaussian.nodes"].shape[1] for s in scenes if s.mode == first.mode)
    for scene in scenes:
        if scene.mode != first.mode:
            out.append(scene)
            continue
        state, own = dict(scene.mode_state), nodes_of(scene)
        ids = state["gaussian.nodes"]
        if own.positions.shape != base.positions.shape or not torch.equal(own.positions, base.positions):
            scene = replace(scene, gaussians=_resting_at(scene, float(base.times[base.rest])))
            ids = torch.where(ids > 0, ids + len(all_nodes), ids)
            all_nodes = _together(all_nodes, own)
        spare = width - ids.shape[1]
        state |= {
            "gaussian.nodes": pad(ids, (0, spare)),
            "gaussian.weights": pad(state["gaussian.weights"], (0, spare)),
        }
        out.append(replace(scene, mode_state=state))
    out[0].mode_state.update(state_of(all_nodes))
    return out


def _resting_at(scene: Scene, time: float) -> Gaussians:
    """The Gaussians at a time of the nodes, whatever their clocks."""
    state = {k: v for k, v in scene.mode_state.items() if k != "gaussian.clock"}
    return at(replace(scene, mode_state=state), time)


def _together(nodes: Nodes, more: Nodes) -> Nodes:
    """The nodes of both, at the times and in the rest frame of the first."""
    motions = torch.stack([more.at(float(t)) for t in nodes.times], dim=1)  # [M, T, 8]
    places = dualquat.apply(motions, more.rest_positions[:, None])
    start = normalize(more.quats[:, more.rest], dim=-1)[:, None]
    return Nodes(
        nodes.times,
        torch.cat([nodes.positions, places]),
        torch.cat([nodes.quats, dualquat.quat_mul(motions[..., :4], start)]),
        torch.cat([nodes.log_radii, more.log_radii]),
        nodes.rest,
    )


def bodies(scene: Scene) -> Tensor:
    """[N] which body each Gaussian belongs to by the way it moves: nodes that keep their distances; -1 holds still."""
    nodes = nodes_of(scene)
    ids, weights = scene.mode_state["gaussian.nodes"].long(), scene.mode_state["gaussian.weights"]
    if len(nodes) < 2:
        return torch.where(ids[:, 0] > 0, 0, -1)
    owner = losses.bodies_of(*losses.edges_of(nodes, 8)).to(ids.device)
    first = ids.gather(1, weights.argmax(1, keepdim=True))[:, 0]
    return torch.where(ids[:, 0] > 0, owner[first.clamp_min(1) - 1], -1)
