"""Nodes from point tracks: complete the tracks by their neighbours, choose nodes among them, refine all together.

Where depth is known along a track, it is a path in space; where it is not, it starts at a guess, follows the floor
(`depths`), and rigidity has the last word.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import normalize

from featuresplat.geometry import rotmat_to_quat
from featuresplat.modes._motion import dualquat, losses
from featuresplat.modes._motion.depths import TOGETHER, standing
from featuresplat.modes._motion.nodes import Nodes, neighbours, sample_times
from featuresplat.modes._motion.sightings import Paths
from featuresplat.modes._motion.trained import TrainedNodes

NEAR = 16
"""Neighbours that a track's unseen times are completed from."""
FOLLOW = 4
"""Nodes that a track follows."""
EDGES = 8
"""Neighbours of a node in the rigidity terms."""
STIFF = 0.08
"""Share of a body's radius by which its tracks may leave one rigid motion."""
AGREE = 0.9
"""Share of them that has to keep to that."""
FRAMES = 24
"""Frames looked at in one step of the refinement."""


def fit_motion(
    paths: Paths, times: Tensor, most_nodes: int, *, steps: int = 300, rigidity: float = 1.0, seed: int = 0
) -> Nodes | None:
    """Nodes that move as the tracks say.

    Args:
        paths: the tracks. times: [T] of the frames. most_nodes: M at most.
        steps: of the refinement. rigidity: weight of the terms that hold neighbours together.

    Returns:
        Nodes, or None where fewer than four tracks can be placed.
    """
    start = _placed(paths)
    if start is None:
        return None
    points, known = start
    if len(points) < 4:
        return None
    full = complete(points, known, paths.weight)
    merit, rest = known.float().mean(1), int(known.sum(0).argmax())
    chosen = spread(full, merit, most_nodes)
    nodes = _nodes(full, chosen, times, rest, paths.weight)
    full, rigid = stiffen(nodes, full, known, paths.weight)
    if bool(rigid.any()):
        chosen = spread(full, merit, most_nodes)
        nodes = _nodes(full, chosen, times, rest, paths.weight)
    return refine(nodes, paths, full, known, steps=steps, rigidity=rigidity, seed=seed)


def _placed(paths: Paths) -> tuple[Tensor, Tensor] | None:
    """World points [P, T, 3] and where they are known [P, T]; without depth where they stand."""
    if paths.has_depth:
        known = paths.seen & (paths.depth > 0)
        good = known.sum(1) >= 2
        paths.rays, paths.seen, paths.depth = paths.rays[good], paths.seen[good], paths.depth[good]
        paths.trust = None if paths.trust is None else paths.trust[good]
        known = known[good]
        return paths.world(torch.where(known, paths.depth, torch.ones_like(paths.depth))), known
    if paths.guess is None:
        return None
    # Who goes with whom, as if nothing moved along its ray; then where.
    rough = paths.world(paths.guess[:, None].expand_as(paths.depth))
    return standing(paths, *affinity(rough, paths.seen, TOGETHER)), paths.seen


def affinity(points: Tensor, known: Tensor, most: int = NEAR) -> tuple[Tensor, Tensor]:
    """The ``most`` neighbours [P, J] of each track and weights [P, J]: near while both are seen, at a steady distance.

    Args:
        points: [P, T, 3]. known: bool [P, T].
    """
    count = len(points)
    some = sample_times(points.shape[1], 36)
    x, k = points[:, some].nan_to_num(), known[:, some].float()
    both = torch.zeros(count, count)
    total, square = torch.zeros_like(both), torch.zeros_like(both)
    for s in range(len(some)):
        d = torch.cdist(x[:, s], x[:, s])
        pair = k[:, s, None] * k[None, :, s]
        both += pair
        total += pair * d
        square += pair * d * d
    mean = total / both.clamp_min(1)
    change = (square / both.clamp_min(1) - mean**2).clamp_min(0).sqrt()
    mean = torch.where(both > 0, mean, torch.inf).fill_diagonal_(torch.inf)
    near = min(most, count - 1)
    # Mostly the nearest; those that were hardly seen together, or whose distance changes, count as further away.
    cost = mean + 2 * change + mean / both.clamp_min(1)
    value, ids = cost.topk(near, largest=False)
    reach = value[:, : max(1, near // 4)].mean(1, keepdim=True)
    finite = value.isfinite() & reach.isfinite()
    scale = torch.where(finite, reach, torch.ones_like(reach)).clamp_min(1e-9)
    closeness = torch.exp(-0.5 * (torch.where(finite, value, torch.zeros_like(value)) / (1.5 * scale)) ** 2)
    return ids, torch.where(finite, closeness, torch.zeros_like(value))


def complete(points: Tensor, known: Tensor, trust: Tensor | None = None) -> Tensor:
    """[P, T, 3] with the unknown times filled: carried from frame to frame by the rigid motion of the neighbours.

    Between two known times the ways from both ends are blended; without any neighbour a point stays where it was.
    """
    ids, weights = affinity(points, known)
    weights = weights if trust is None else weights * trust[ids]
    forward, backward = _carried(points, known, ids, weights, 1), _carried(points, known, ids, weights, -1)
    (ahead, since), (behind, until) = forward, backward
    share = torch.where(since.isinf(), 1.0, torch.where(until.isinf(), 0.0, since / (since + until).clamp_min(1)))
    filled = torch.where(since.isinf()[..., None], behind, torch.where(until.isinf()[..., None], ahead, 0))
    both = ~since.isinf() & ~until.isinf()
    mixed = torch.lerp(ahead.nan_to_num(), behind.nan_to_num(), share.nan_to_num()[..., None])
    return torch.where(known[..., None], points, torch.where(both[..., None], mixed, filled))


def _carried(points: Tensor, known: Tensor, ids: Tensor, weights: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """Paths carried in one direction of time [P, T, 3], and frames since the point was last known [P, T]."""
    count = points.shape[1]
    order = list(range(count)) if sign > 0 else list(range(count - 1, -1, -1))
    out = torch.where(known[..., None], points, torch.zeros_like(points))
    since = torch.where(known, 0.0, torch.inf)
    for before, now in pairwise(order):
        here = since[:, before].isfinite()
        lost = (here & ~known[:, now]).nonzero()[:, 0]
        if not len(lost):
            continue
        near = ids[lost]
        usable = known[near, before] & known[near, now]
        # Those that were carried themselves help a little: they keep a body together that has left the picture.
        w = weights[lost] * torch.where(usable, 1.0, 0.0)
        R, t = dualquat.kabsch(out[near, before], points[near, now].nan_to_num(), w)
        moved = (R @ out[lost, before, :, None])[..., 0] + t
        alone = w.sum(1) < 1e-3
        out[lost, now] = torch.where(alone[:, None], out[lost, before], moved)
        since[lost, now] = since[lost, before] + 1
    return out, since


def stiffen(nodes: Nodes, full: Tensor, known: Tensor, trust: Tensor) -> tuple[Tensor, Tensor]:
    """Paths of bodies that hardly bend, replaced by the rigid motion that their trusted tracks agree on.

    Flow slides over a body without texture; the few corners on it know how it turns.

    Returns:
        Paths [P, T, 3], and which of them belong to such a body, bool [P].
    """
    some = sample_times(full.shape[1])
    bodies = losses.bodies_of(*losses.edges_of(nodes, EDGES))
    owner = bodies[neighbours(nodes.positions[:, some], full[:, some], 1)[:, 0]]
    out, rigid = full.clone(), torch.zeros(len(full), dtype=torch.bool)
    for body in owner.unique().tolist():
        rows = (owner == body).nonzero()[:, 0]
        if len(rows) < 6:
            continue
        moved = _as_one(full[rows], known[rows], trust[rows], nodes.rest)
        size = (full[rows, nodes.rest] - full[rows, nodes.rest].mean(0)).norm(dim=1).median().clamp_min(1e-9)
        off = torch.where(known[rows], (moved - full[rows]).norm(dim=-1), 0).sum(1) / known[rows].sum(1).clamp_min(1)
        # Nearly all have to agree: two bodies taken for one would share the motion of the one with more corners.
        if float(_weighted_quantile(off, 0.2 + trust[rows], AGREE)) < STIFF * float(size):
            out[rows], rigid[rows] = moved, True
    return out, rigid


def _as_one(points: Tensor, known: Tensor, trust: Tensor, rest: int) -> Tensor:
    """Paths [Q, T, 3] that go from where each point is best known, by one rigid motion from frame to frame."""
    count = points.shape[1]
    turns, shifts = torch.eye(3).repeat(count, 1, 1), torch.zeros(count, 3)
    for t in range(count - 1):
        w = trust * torch.where(known[:, t] & known[:, t + 1], 1.0, 1e-4)
        for _ in range(6):
            R, s = dualquat.kabsch(points[:, t], points[:, t + 1], w)
            off = (points[:, t] @ R.T + s - points[:, t + 1]).norm(dim=1)
            spread_ = _weighted_quantile(off, w, 0.5).clamp_min(1e-9)
            w = trust * torch.where(known[:, t] & known[:, t + 1], 1.0, 1e-4) / (1 + (off / (2 * spread_)) ** 2)
        turns[t + 1], shifts[t + 1] = R @ turns[t], R @ shifts[t] + s
    # Anchored in the frame in the middle of those in which it is known.
    order = torch.where(known, torch.arange(count).float(), torch.nan)
    anchor = torch.nanmedian(order, dim=1).values.nan_to_num(rest).long()
    rows = torch.arange(len(points))
    home = torch.einsum("qji,qj->qi", turns[anchor], points[rows, anchor] - shifts[anchor])
    return torch.einsum("tij,qj->qti", turns, home) + shifts


def _weighted_quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    order = values.argsort()
    total = weights[order].cumsum(0)
    return values[order][int(torch.searchsorted(total, share * total[-1]).clamp_max(len(values) - 1))]


def spread(paths: Tensor, merit: Tensor, most: int) -> Tensor:
    """Indices of at most ``most`` paths that are far from each other, seen well ones first (farthest-point sampling).

    Args:
        paths: [P, T, 3]. merit: [P] 0..1.
    """
    flat = paths[:, sample_times(paths.shape[1])].reshape(len(paths), -1)
    distance = torch.full((len(flat),), torch.inf)
    chosen = [int(merit.argmax())]
    for _ in range(min(most, len(flat)) - 1):
        distance = torch.minimum(distance, (flat - flat[chosen[-1]]).square().sum(1))
        best = int((distance * (0.2 + merit) ** 2).argmax())
        if float(distance[best]) <= 0:
            break
        chosen.append(best)
    return torch.tensor(chosen)


def _nodes(paths: Tensor, chosen: Tensor, times: Tensor, rest: int, trust: Tensor) -> Nodes:
    """Nodes at the chosen paths, turned as their surroundings turn."""
    centres = paths[chosen]
    quats = torch.zeros(len(chosen), paths.shape[1], 4)
    quats[..., 0] = 1
    nodes = Nodes(times, centres, quats, torch.zeros(len(chosen)), rest)
    some = sample_times(paths.shape[1], 12)
    near = neighbours(paths[:, some], centres[:, some], min(NEAR, len(paths)))  # [M, J] among all paths
    lengths = (paths[near][:, :, some] - centres[:, None, some]).norm(dim=-1)
    reach = lengths.mean(-1)[:, -1:].clamp_min(1e-9)
    weights = torch.exp(-0.5 * (lengths.std(-1, correction=0) / (0.2 * reach)) ** 2) * trust[near]
    source = paths[near, rest][:, None].expand(-1, paths.shape[1], -1, -1)
    target = paths[near].transpose(1, 2)
    R, _ = dualquat.kabsch(source, target, weights[:, None].expand(-1, paths.shape[1], -1))
    nodes.quats = _one_side(rotmat_to_quat(R))
    nodes.log_radii = node_radii(nodes)
    return nodes


def node_radii(nodes: Nodes) -> Tensor:
    """[M] log of the mean distance to the three nearest nodes by path."""
    some = sample_times(nodes.positions.shape[1])
    paths = nodes.positions[:, some]
    ids = neighbours(paths, paths, 4)
    lengths = (paths[ids] - paths[:, None]).square().sum(-1).mean(-1).sqrt()
    return lengths[:, 1:].mean(1).clamp_min(1e-6).log() if lengths.shape[1] > 1 else lengths.new_zeros(len(nodes))


def _one_side(quats: Tensor) -> Tensor:
    """The same rotations over time [M, T, 4], each quaternion on the side of the one before."""
    out = quats.clone()
    for t in range(1, quats.shape[1]):
        side = torch.where((out[:, t] * out[:, t - 1]).sum(-1, keepdim=True) < 0, -1.0, 1.0)
        out[:, t] = out[:, t] * side
    return out


def refine(
    nodes: Nodes, paths: Paths, full: Tensor, known: Tensor, *, steps: int, rigidity: float, seed: int = 0
) -> Nodes:
    """Fit the nodes to all tracks at once, with neighbours held together and no jerks (Adam).

    Each track is anchored at the time at which its neighbourhood is best known, goes to the rest frame and from there
    to every time; without depth the anchor moves along its ray, too.
    """
    generator = torch.Generator().manual_seed(seed)
    count = full.shape[1]
    size = nodes.log_radii.exp().median().clamp_min(1e-9)
    trained = TrainedNodes(nodes, torch.device("cpu"))
    p = trained.params
    anchor = (known.float() * known.float().sum(0)).argmax(1)
    rows = torch.arange(len(full))
    ids = neighbours(nodes.positions[:, sample_times(count)], full[:, sample_times(count)], FOLLOW)
    depth = torch.zeros(len(full), requires_grad=not paths.has_depth)
    rate = 0.02 * float(size)
    rates = [(p["nodes.positions"], rate), (p["nodes.quats"], 0.01), (p["bodies.shifts"], rate)]
    rates += [(p["bodies.turns"], 0.01), (depth, 0.01)]
    rates = [(q, r) for q, r in rates if q.requires_grad]
    adam = torch.optim.Adam([{"params": [q], "lr": r} for q, r in rates], betas=(0.9, 0.95))
    place = paths.local(full, torch.arange(count))[rows, anchor]  # [P, 3] in the anchor's camera
    R, shift = paths.viewmats[anchor, :3, :3], paths.viewmats[anchor, :3, 3]
    edges = losses.edges_of(nodes, EDGES)
    for step in range(steps):
        for group, (_, first) in zip(adam.param_groups, rates, strict=True):
            group["lr"] = first * (1 - 0.9 * step / steps)
        now = trained.now()
        start = (R.transpose(1, 2) @ (place * depth.exp()[:, None] - shift)[..., None])[..., 0]
        frames = torch.randperm(count, generator=generator)[:FRAMES].sort().values
        error = _track_error(now, paths, known, start, anchor, ids, frames)
        gap = torch.randint(1, max(2, min(6, count)), (len(frames),), generator=generator)
        others = (frames + gap) % count
        place_jerk, turn_jerk = losses.acceleration(now)
        loss = error / size
        loss = loss + rigidity * 4 * (losses.arap(now, *edges, frames, others) / size**2)
        loss = loss + rigidity * 2 * losses.turn_smoothness(now, *edges, frames, others)
        loss = loss + 0.2 * place_jerk / size**2 + 0.2 * turn_jerk
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        out = trained.now()
    out.quats = normalize(out.quats, dim=-1)
    out.log_radii = node_radii(out)
    return out


def _track_error(nodes: Nodes, paths: Paths, known: Tensor, start: Tensor, anchor: Tensor, ids: Tensor, frames: Tensor):
    """Mean distance, robust, between where the nodes carry the tracks and where they were seen."""
    motions = nodes.frames()  # [M, T, 8]
    size = nodes.log_radii.exp().median()
    home = motions[ids, anchor[:, None]]  # [P, K, 8]
    centres = nodes.positions[ids, anchor[:, None]]
    d2 = ((start[:, None] - centres) ** 2).sum(-1).detach()
    weights = torch.softmax(-0.5 * d2 * (-2 * nodes.log_radii)[ids].exp(), dim=1)
    back = dualquat.inverse(dualquat.blend(home, weights))
    rest = dualquat.apply(back, start)
    there = dualquat.blend(motions[:, frames][ids].transpose(1, 2), weights[:, None].expand(-1, len(frames), -1))
    local = paths.local(dualquat.apply(there, rest[:, None]), frames)
    z = local[..., 2].clamp_min(1e-3)
    across = local[..., :2] - paths.rays[:, frames] * z[..., None]
    deep = torch.where(paths.depth[:, frames] > 0, z - paths.depth[:, frames], torch.zeros_like(z))
    seen = known[:, frames] if paths.has_depth else paths.seen[:, frames]
    across = torch.where(seen[..., None], across, torch.zeros_like(across))
    square = across.square().sum(-1) + torch.where(seen, deep, torch.zeros_like(deep)).square()
    soft = 0.1 * size
    weight = seen * paths.weight[:, None]
    return (((square + soft**2).sqrt() - soft) * weight).sum() / weight.sum().clamp_min(1e-9)
