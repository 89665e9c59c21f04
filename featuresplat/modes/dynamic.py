"""A scene that moves: still Gaussians, and moving ones that follow sparse nodes with a rigid motion at every frame.

After SC-GS (Huang et al. 2024) and MoSca (Lei et al. 2024). What holds still costs nothing more than in a static
scene. In a finished scene, ``mode_state`` holds, beside the nodes (``nodes.times`` [T], ``nodes.positions`` [M, T, 3],
``nodes.quats`` [M, T, 4], ``nodes.log_radii`` [M], ``nodes.rest`` [1]), for each Gaussian

- ``gaussian.nodes`` [N, K]: the nodes that it follows, counted from 1; 0 holds still;
- ``gaussian.weights`` [N, K]: their weights;

and once it has been edited in time or space (both zero where nothing was done)

- ``gaussian.clock`` [N, 2]: (a, b), it is shown at time (1 + a) t + b of its own;
- ``gaussian.placed`` [N, 8]: by what it was moved in all: log scale, quaternion minus the identity, translation.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat import modes
from featuresplat.modes._motion import dualquat, losses, skinning
from featuresplat.modes._motion.edits import EDITS, moved, understands
from featuresplat.modes._motion.finished import at, bodies, joined, state_of
from featuresplat.modes._motion.nodes import Nodes, neighbours, sample_times
from featuresplat.modes._motion.panel import panel
from featuresplat.modes._motion.pictures import KINDS, picture, report
from featuresplat.modes._motion.start import Start, start_of
from featuresplat.modes._motion.trained import TrainedNodes
from featuresplat.modes._motion.whole import ENDING, write_whole
from featuresplat.modes.static import Mode as StaticMode
from featuresplat.modes.static import first_rates
from featuresplat.points import gaussians_from_points
from featuresplat.types import Gaussians, PointCloud, RenderOutput

ENDINGS = {ENDING: write_whole}
__all__ = [
    "EDITS",
    "ENDINGS",
    "KINDS",
    "Mode",
    "at",
    "bodies",
    "joined",
    "moved",
    "panel",
    "picture",
    "report",
    "understands",
]

REFRESH = 250
"""Steps between two choices of the nodes that each moving Gaussian follows."""
GROW_NODES = (0.45, 0.7)
"""Shares of the steps at which nodes are added where the gradients are largest."""
FIXED = ("follows", "weights")
"""Per-Gaussian parameters that are chosen, not learned; floats, so that densification copies them along."""
SPLATTED = ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")


class Mode(StaticMode):
    """Gaussians in the nodes' rest frame, and the nodes."""

    def __init__(self, inputs: modes.ModeInputs):
        modes.Mode.__init__(self, inputs)
        self.device = inputs.device
        start = _placeholder() if inputs.config.resume else start_of(inputs, _reporter())
        self.motion = TrainedNodes(start.nodes, self.device)
        self.extra_params = self.motion.params
        self.masks = start.masks
        self._masks_at: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._now: Nodes | None = None
        self._make_gaussians(start)

    def _make_gaussians(self, start: Start) -> None:
        model, count = self.config.model, self.config.dynamic.follow
        clouds = [c for c in (start.still, start.moving) if c is not None and len(c)]
        cloud = PointCloud(torch.cat([c.xyz for c in clouds]), torch.cat([c.rgb for c in clouds]))
        gaussians = gaussians_from_points(cloud, model.sh_degree, model.init_opacity, scale=model.init_scale)
        still = len(cloud) - len(start.moving)
        ids, weights = _padded(start.ids.float(), count), _padded(start.weights, count)
        params = gaussians.tensors() | {
            "follows": torch.cat([torch.full((still, count), -1.0), ids]),
            "weights": torch.cat([torch.zeros(still, count), weights]),
        }
        self.gaussian_params = {
            k: Parameter(v.to(self.device), requires_grad=k not in FIXED) for k, v in params.items()
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        d = self.config.dynamic
        rates = first_rates(self.config.optim) | {
            "nodes.positions": d.nodes_lr,
            "nodes.quats": d.turns_lr,
            "bodies.shifts": d.nodes_lr,
            "bodies.turns": d.turns_lr,
        }
        params = {**self.gaussian_params, **self.extra_params}
        return [{"name": k, "params": [params[k]], "lr": rate} for k, rate in rates.items()]

    def rates(self, progress: float) -> dict[str, float]:
        d, fall = self.config.dynamic, 0.05**progress
        return {
            "nodes.positions": d.nodes_lr * fall,
            "bodies.shifts": d.nodes_lr * fall,
            "nodes.quats": d.turns_lr * fall,
            "bodies.turns": d.turns_lr * fall,
        }

    def at(self, time: float | None = None) -> Gaussians:
        p = self.gaussian_params
        moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
        # One view a time: what depends on the view cannot be told from what depends on the time.
        still = (p["follows"][:, 0] < 0).to(p["shN"].dtype)
        g = Gaussians(**{k: p[k] for k in SPLATTED})
        g = replace(g, shN=g.shN * still[:, None, None])
        if time is None or not len(moving):
            return g
        nodes = self._now if self._now is not None else self.motion.now()
        ids, weights = p["follows"][moving].detach().long(), p["weights"][moving].detach()
        means, quats = skinning.move(g.means[moving], g.quats[moving], skinning.motions(nodes.at(time), ids, weights))
        return replace(g, means=g.means.index_put((moving,), means), quats=g.quats.index_put((moving,), quats))

    def render(self, view: modes.View) -> RenderOutput:
        """As every mode, and with it how much of each pixel moves (one feature channel)."""
        self._now = self.motion.now()
        g = self.at(view.time)
        moving = None
        if self.masks is not None and self.config.dynamic.mask > 0:
            moving = (self.gaussian_params["follows"].detach()[:, :1] >= 0).to(g.means.dtype)
        return self.splat(g, view, moving)

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        nodes, self._now = self._now, None
        d, terms = self.config.dynamic, super().losses(out, batch)
        if out.features is not None and self.masks is not None:
            moves, holds = self._certain(batch.view.index, (batch.view.height, batch.view.width))
            share = out.features[0, ..., 0]
            terms["mask"] = d.mask * (torch.where(moves, 1 - share, 0) + torch.where(holds, share, 0)).mean()
        if nodes is None or len(nodes) < 2 or nodes.positions.shape[1] < 2 or batch.view.time is None:
            return terms
        frames, others = self._pairs(batch.view.time, batch.view.step)
        size = self.motion.log_radii.detach().exp().median()
        ids, weights = self.motion.edges()
        terms["arap"] = d.rigidity * losses.arap(nodes, ids, weights, frames, others) / size**2
        terms["turns"] = d.rigidity * losses.turn_smoothness(nodes, ids, weights, frames, others)
        place, turn = losses.acceleration(nodes)
        terms["acceleration"] = d.smoothness * (place / size**2 + turn)
        return terms

    def _certain(self, index: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """`_certain` of a training image, kept: it is asked for in every epoch."""
        assert self.masks is not None  # losses has looked
        key = (index, *size)
        if key not in self._masks_at:
            moves, holds = _certain(self.masks[index], size)
            self._masks_at[key] = moves.to(self.device), holds.to(self.device)
        return self._masks_at[key]

    def _pairs(self, time: float, step: int) -> tuple[Tensor, Tensor]:
        """The view's frame and others that it is held to: its neighbours, the rest frame and three at random."""
        count = len(self.motion.times)
        now = int((self.motion.times - time).abs().argmin())
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        drawn = torch.randint(count, (3,), generator=generator).tolist()
        others = sorted({max(now - 1, 0), min(now + 1, count - 1), self.motion.rest, *drawn} - {now})
        return torch.full((len(others),), now), torch.tensor(others)

    @torch.no_grad()
    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Note where the gradients pull; now and then choose anew who follows whom, and add nodes."""
        super().after_step(step, optimizer, generator)
        p = self.gaussian_params
        grad = p["means"].grad
        if grad is not None and len(grad) == len(p["follows"]):
            moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
            pull = grad[moving].norm(dim=1).nan_to_num(0, 0, 0)
            self.motion.pull.index_add_(0, p["follows"][moving, 0].long(), pull)
        if step in [round(share * self.config.steps) for share in GROW_NODES]:
            self.grow_nodes(optimizer)
        if (step + 1) % REFRESH == 0:
            self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Let every moving Gaussian follow the nodes whose paths are nearest to its own."""
        p, nodes = self.gaussian_params, self.motion.now()
        moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
        self.motion.forget_edges()
        if not len(moving):
            return
        some = sample_times(len(self.motion.times))
        motions, means = nodes.frames(), p["means"].detach()[moving]
        ids, weights = p["follows"][moving].long(), p["weights"][moving]
        there = torch.stack(
            [dualquat.apply(skinning.motions(motions[:, s], ids, weights), means) for s in some.tolist()], dim=1
        )
        near = neighbours(nodes.positions[:, some], there, ids.shape[1])
        d2 = ((there[:, None] - nodes.positions[near][:, :, some]) ** 2).sum(-1).mean(-1)
        w = torch.softmax(-0.5 * d2 * (-2 * nodes.log_radii)[near].exp(), dim=1)
        p["follows"].data[moving] = _padded(near.float(), ids.shape[1])
        p["weights"].data[moving] = _padded(w, ids.shape[1])

    @torch.no_grad()
    def grow_nodes(self, optimizer: torch.optim.Optimizer) -> int:
        """Add nodes among the Gaussians of those that are pulled most; returns how many."""
        p, nodes = self.gaussian_params, self.motion.now()
        room = min(self.config.dynamic.most_nodes - len(nodes), len(nodes) // 4)
        owner, pull, new = p["follows"].detach()[:, 0].long(), self.motion.pull, []
        for m in pull.argsort(descending=True)[: max(room, 0)].tolist():
            own = ((owner == m) & (p["logit_opacities"] > -1)).nonzero()[:, 0]
            if len(own) < 8 or float(pull[m]) <= 0:
                continue
            far = (p["means"].detach()[own] - nodes.rest_positions[m]).norm(dim=1)
            # The far end of what follows the node, but no stray.
            new.append(int(own[far.argsort()[int(0.8 * (len(own) - 1))]]))
        self.motion.pull = torch.zeros_like(pull)
        if not new:
            return 0
        rows = torch.tensor(new)
        ids, weights = p["follows"].detach()[rows].long(), p["weights"].detach()[rows]
        spread_out = weights[:, None].expand(-1, len(self.motion.times), -1)
        motions = dualquat.blend(nodes.frames()[ids].transpose(1, 2), spread_out)
        self.motion.add(
            dualquat.apply(motions, p["means"].detach()[rows, None]), motions[..., :4], owner[rows], optimizer
        )
        return len(new)

    def buffers(self) -> dict[str, Tensor]:
        out = self.motion.buffers()
        if self.masks is not None:
            out["masks"] = self.masks.to(torch.uint8)
        return out

    def load_buffers(self, buffers: dict[str, Tensor]) -> None:
        self.motion.load_buffers(buffers, self.device)
        self.motion.params = self.extra_params
        self.masks = buffers["masks"].bool() if "masks" in buffers else None
        for name in FIXED:
            self.gaussian_params[name].requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        p, frame = self.gaussian_params, self.inputs.frame
        with torch.no_grad():
            nodes = self.motion.now()
        nodes.positions = (nodes.positions.double() / frame.scale + frame.center.to(self.device)).float()
        nodes.log_radii = nodes.log_radii - math.log(frame.scale)
        return state_of(nodes) | {
            "gaussian.nodes": (p["follows"].detach() + 1).to(torch.int32),
            "gaussian.weights": p["weights"].detach().clone(),
        }


def _certain(mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bool [H, W] twice: pixels that move for certain, and that hold still for certain; at edges neither is."""
    want = mask.float()[None, None]
    if tuple(want.shape[-2:]) != size:
        want = torch.nn.functional.interpolate(want, size=size, mode="area")
    holds = torch.nn.functional.max_pool2d(want, 5, 1, 2)[0, 0] < 0.01
    return torch.nn.functional.max_pool2d(1 - want, 5, 1, 2)[0, 0] < 0.01, holds


def _padded(rows: Tensor, count: int) -> Tensor:
    """[N, count] with zeros for nodes that there are not."""
    return torch.nn.functional.pad(rows, (0, count - rows.shape[1]))


def _placeholder() -> Start:
    """Something of the right kinds: a resumed run's checkpoint replaces it all."""
    xyz = torch.eye(3)
    nodes = Nodes(torch.tensor([0.0, 1.0]), xyz[:, None].repeat(1, 2, 1), torch.ones(3, 2, 4), torch.zeros(3))
    ids = torch.zeros(3, 1, dtype=torch.long)
    return Start(None, PointCloud(xyz, torch.full((3, 3), 0.5)), nodes, None, ids, torch.ones(3, 1))


def _reporter():
    """Lines on what takes its time before the first step."""
    import sys

    said: set[str] = set()

    def report(word: str, done: int, total: int) -> None:
        if word not in said and sys.stderr.isatty():
            print(f"{word} ...", file=sys.stderr)
        said.add(word)

    return report
