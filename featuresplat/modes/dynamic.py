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

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat import modes, raster
from featuresplat.modes._motion import dualquat, losses, skinning
from featuresplat.modes._motion.nodes import Nodes, neighbours, sample_times
from featuresplat.modes._motion.start import Start, follow, start_of, weights_of
from featuresplat.modes.static import Mode as StaticMode
from featuresplat.points import gaussians_from_points
from featuresplat.types import Gaussians, PointCloud, RenderOutput

if TYPE_CHECKING:
    from featuresplat.scene import Scene

REFRESH = 250
"""Steps between two choices of the nodes that each moving Gaussian follows."""
GROW_NODES = (0.25, 0.6)
"""Shares of the steps at which nodes are added where the gradients are largest."""
EDGES = 8
"""Neighbours of a node in the rigidity term."""
FIXED = ("follows", "weights")
"""Per-Gaussian parameters that are chosen, not learned; floats, so that densification copies them along."""


class Mode(StaticMode):
    """Gaussians in the nodes' rest frame, and the nodes."""

    def __init__(self, inputs: modes.ModeInputs):
        modes.Mode.__init__(self, inputs)
        self.device = inputs.device
        self.masks: Tensor | None = None
        if inputs.config.resume:
            start = _placeholder(inputs)
        else:
            start = start_of(inputs, _reporter())
        self._take(start)

    def _take(self, start: Start) -> None:
        model, device = self.config.model, self.device
        clouds = [c for c in (start.still, start.moving) if c is not None and len(c)]
        cloud = PointCloud(torch.cat([c.xyz for c in clouds]), torch.cat([c.rgb for c in clouds]))
        gaussians = gaussians_from_points(cloud, model.sh_degree, model.init_opacity, scale=model.init_scale)
        count = self.config.dynamic.follow
        moving = torch.arange(len(cloud)) >= (
            len(clouds[0]) if len(clouds) == 2 or start.moving is not clouds[0] else 0
        )
        self.times, self.rest = start.nodes.times, start.nodes.rest
        self.log_radii = start.nodes.log_radii.to(device)
        self.masks = start.masks
        nodes = start.nodes
        follows, weights = torch.full((len(cloud), count), -1.0), torch.zeros(len(cloud), count)
        if bool(moving.any()):
            ids = follow(nodes, cloud.xyz[moving], nodes.rest, count)
            spare = count - ids.shape[1]
            w = weights_of(nodes, cloud.xyz[moving], nodes.rest, ids)
            follows[moving] = torch.nn.functional.pad(ids.float(), (0, spare))
            weights[moving] = torch.nn.functional.pad(w, (0, spare))
        self.gaussian_params = {k: Parameter(v.to(device)) for k, v in gaussians.tensors().items()}
        self.gaussian_params["follows"] = Parameter(follows.to(device), requires_grad=False)
        self.gaussian_params["weights"] = Parameter(weights.to(device), requires_grad=False)
        self.extra_params = {
            "nodes.positions": Parameter(nodes.positions.clone().to(device)),
            "nodes.quats": Parameter(nodes.quats.clone().to(device)),
        }
        self._edges: tuple[Tensor, Tensor] | None = None
        self._pull = torch.zeros(len(nodes), device=device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        o, d = self.config.optim, self.config.dynamic
        rates = {
            "means": o.means_lr,
            "quats": o.quats_lr,
            "log_scales": o.scales_lr,
            "logit_opacities": o.opacities_lr,
            "sh0": o.sh0_lr,
            "shN": o.shN_lr,
            "nodes.positions": d.nodes_lr,
            "nodes.quats": d.turns_lr,
        }
        params = {**self.gaussian_params, **self.extra_params}
        return [{"name": k, "params": [params[k]], "lr": rate} for k, rate in rates.items()]

    def rates(self, progress: float) -> dict[str, float]:
        d = self.config.dynamic
        fall = 0.05**progress
        return {"nodes.positions": d.nodes_lr * fall, "nodes.quats": d.turns_lr * fall}

    @property
    def nodes(self) -> Nodes:
        """The nodes as they are now, differentiable."""
        p = self.extra_params
        return Nodes(self.times, p["nodes.positions"], p["nodes.quats"], self.log_radii, self.rest)

    def at(self, time: float | None = None) -> Gaussians:
        p = self.gaussian_params
        moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
        # One view a time: what depends on the view cannot be told from what depends on the time.
        still = (p["follows"][:, 0] < 0).to(p["shN"].dtype)
        g = Gaussians(**{k: p[k] for k in ("means", "quats", "log_scales", "logit_opacities", "sh0", "shN")})
        g = replace(g, shN=g.shN * still[:, None, None])
        if time is None or not len(moving):
            return g
        motion = skinning.motions(
            self.nodes.at(time), p["follows"][moving].detach().long(), p["weights"][moving].detach()
        )
        means, quats = skinning.move(g.means[moving], g.quats[moving], motion)
        return replace(g, means=g.means.index_put((moving,), means), quats=g.quats.index_put((moving,), quats))

    def render(self, view: modes.View) -> RenderOutput:
        """As every mode, and with it how much of each pixel moves (one feature channel)."""
        g = self.at(view.time)
        moving = None
        if self.masks is not None and self.config.dynamic.mask > 0:
            moving = (self.gaussian_params["follows"].detach()[:, :1] >= 0).to(g.means.dtype)
        return raster.rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.sh,
            view.viewmat[None],
            view.K[None],
            view.width,
            view.height,
            features=moving,
            sh_degree=min(view.sh_degree, g.sh_degree),
            backgrounds=view.background,
            absgrad=view.absgrad,
            settings=self.settings,
            backend=self.config.backend,
        )

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        d, terms = self.config.dynamic, super().losses(out, batch)
        if out.features is not None and self.masks is not None:
            terms["mask"] = d.mask * _mask_loss(out, self.masks[batch.view.index].to(self.device))
        nodes = self.nodes
        if len(nodes) < 2 or nodes.positions.shape[1] < 2 or batch.view.time is None:
            return terms
        frames, others = self._pairs(batch.view.time, batch.view.step)
        size = self.log_radii.detach().exp().median()
        ids, weights = self.edges()
        terms["arap"] = d.rigidity * losses.arap(nodes, ids, weights, frames, others) / size**2
        terms["turns"] = d.rigidity * losses.turn_smoothness(nodes, ids, weights, frames, others)
        place, turn = losses.acceleration(nodes)
        terms["acceleration"] = d.smoothness * (place / size**2 + turn)
        return terms

    def _pairs(self, time: float, step: int) -> tuple[Tensor, Tensor]:
        """The view's frame and others that it is held to: its neighbours and three at random."""
        count = len(self.times)
        now = int((self.times - time).abs().argmin())
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        drawn = torch.randint(count, (3,), generator=generator).tolist()
        others = sorted({max(now - 1, 0), min(now + 1, count - 1), self.rest, *drawn} - {now})
        return torch.full((len(others),), now), torch.tensor(others)

    def edges(self) -> tuple[Tensor, Tensor]:
        """Neighbours of the nodes and weights, chosen anew now and then."""
        if self._edges is None:
            self._edges = losses.edges_of(self.nodes.detach(), min(EDGES, len(self.log_radii) - 1))
        return self._edges

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Note where the gradients pull; now and then choose anew who follows whom, and add nodes."""
        super().after_step(step, optimizer, generator)
        p = self.gaussian_params
        grad = p["means"].grad
        with torch.no_grad():
            if grad is not None and len(grad) == len(p["follows"]):
                moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
                pull = grad[moving].norm(dim=1).nan_to_num(0, 0, 0)
                self._pull.index_add_(0, p["follows"][moving, 0].long(), pull)
            growing = [round(share * self.config.steps) for share in GROW_NODES]
            if step in growing:
                self.grow_nodes(optimizer)
            if (step + 1) % REFRESH == 0:
                self.refresh()

    def refresh(self) -> None:
        """Let every moving Gaussian follow the nodes whose paths are nearest to its own."""
        p, nodes = self.gaussian_params, self.nodes.detach()
        moving = (p["follows"][:, 0] >= 0).nonzero()[:, 0]
        self._edges = None
        if not len(moving):
            return
        some, motions = sample_times(len(self.times)), nodes.frames()
        ids, weights = p["follows"][moving].long(), p["weights"][moving]
        means = p["means"].detach()[moving]
        there = torch.stack(
            [dualquat.apply(skinning.motions(motions[:, s], ids, weights), means) for s in some.tolist()], dim=1
        )
        count = ids.shape[1]
        near = neighbours(nodes.positions[:, some], there, count)
        p["follows"].data[moving, : near.shape[1]] = near.float()
        d2 = ((there[:, None] - nodes.positions[near][:, :, some]) ** 2).sum(-1).mean(-1)
        w = torch.softmax(-0.5 * d2 * (-2 * self.log_radii)[near].exp(), dim=1)
        p["weights"].data[moving, : near.shape[1]] = w
        p["weights"].data[moving, near.shape[1] :] = 0

    def grow_nodes(self, optimizer: torch.optim.Optimizer) -> int:
        """Add nodes in the middle of those whose Gaussians are pulled most; returns how many."""
        p, nodes = self.gaussian_params, self.nodes.detach()
        room = min(self.config.dynamic.most_nodes - len(nodes), len(nodes) // 4)
        owner = p["follows"].detach()[:, 0].long()
        pull, new = self._pull.clone(), []
        self._pull = torch.zeros_like(pull)
        for m in pull.argsort(descending=True)[: max(room, 0)].tolist():
            own = (owner == m).nonzero()[:, 0]
            if len(own) < 8 or float(pull[m]) <= 0:
                continue
            # The Gaussian that is farthest from its node, of those that show.
            far = (p["means"].detach()[own] - nodes.rest_positions[m]).norm(dim=1)
            far = torch.where(p["logit_opacities"].detach()[own] > -1, far, 0)
            far = torch.where(far <= far.quantile(0.8), far, 0)
            new.append(int(own[far.argmax()]))
        if not new:
            return 0
        rows = torch.tensor(new)
        ids, weights = p["follows"].detach()[rows].long(), p["weights"].detach()[rows]
        motions = dualquat.blend(nodes.frames()[ids].transpose(1, 2), weights[:, None].expand(-1, len(self.times), -1))
        places = dualquat.apply(motions, p["means"].detach()[rows, None])  # [R, T, 3]
        self._append(optimizer, "nodes.positions", places)
        self._append(optimizer, "nodes.quats", motions[..., :4].contiguous())
        radii = self.log_radii[owner[rows]] - 0.2
        self.log_radii = torch.cat([self.log_radii, radii])
        self._pull = torch.zeros(len(self.log_radii), device=self.device)
        self.refresh()
        return len(new)

    def _append(self, optimizer: torch.optim.Optimizer, name: str, rows: Tensor) -> None:
        from featuresplat.densify._edit import append

        one = {name: self.extra_params[name]}
        append(one, optimizer, {name: rows})
        self.extra_params[name] = one[name]

    def buffers(self) -> dict[str, Tensor]:
        out = {"times": self.times, "rest": torch.tensor([self.rest]), "log_radii": self.log_radii, "pull": self._pull}
        if self._edges is not None:
            out |= {"edge_ids": self._edges[0], "edge_weights": self._edges[1]}
        return out if self.masks is None else out | {"masks": self.masks.to(torch.uint8)}

    def load_buffers(self, buffers: dict[str, Tensor]) -> None:
        self.times, self.rest = buffers["times"], int(buffers["rest"])
        self.log_radii, self._pull = buffers["log_radii"].to(self.device), buffers["pull"].to(self.device)
        self._edges = (buffers["edge_ids"], buffers["edge_weights"]) if "edge_ids" in buffers else None
        self.masks = buffers["masks"].bool() if "masks" in buffers else None
        for name in FIXED:
            self.gaussian_params[name].requires_grad_(False)

    def state(self) -> dict[str, Tensor]:
        p, frame = self.gaussian_params, self.inputs.frame
        nodes = self.nodes.detach()
        positions = nodes.positions.double() / frame.scale + frame.center.to(self.device)
        return {
            "nodes.times": self.times.clone(),
            "nodes.positions": positions.float(),
            "nodes.quats": nodes.quats.clone(),
            "nodes.log_radii": nodes.log_radii - float(torch.tensor(frame.scale).log()),
            "nodes.rest": torch.tensor([self.rest]),
            "gaussian.nodes": (p["follows"].detach() + 1).to(torch.int32),
            "gaussian.weights": p["weights"].detach().clone(),
        }


def nodes_of(scene: Scene) -> Nodes:
    """The nodes of a finished scene, in the data's own frame."""
    s = scene.mode_state
    names = ("nodes.times", "nodes.positions", "nodes.quats", "nodes.log_radii")
    return Nodes(*(s[n] for n in names), rest=int(s["nodes.rest"]))


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
        size = log_scale.exp()[:, None]
        back = dualquat.quat_conj(turn)
        home = dualquat.rotate(back, means - shift) / size
        means, quats = skinning.move(home, dualquat.quat_mul(back, quats), motion)
        means, quats = dualquat.rotate(turn, means * size) + shift, dualquat.quat_mul(turn, quats)
    return replace(g, means=g.means.index_put((moving,), means), quats=g.quats.index_put((moving,), quats))


def placement(placed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log scale [N], turn [N, 4] and shift [N, 3] of rows of ``gaussian.placed``."""
    turn = placed[:, 1:5] + placed.new_tensor([1.0, 0, 0, 0])
    return placed[:, 0], torch.nn.functional.normalize(turn, dim=1), placed[:, 5:]


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


def _mask_loss(out: RenderOutput, mask: Tensor) -> Tensor:
    """Mean difference between how much of a pixel moves and whether the mask says so, away from the mask's edge."""
    assert out.features is not None  # render adds the channel
    got = out.features[0, ..., 0]
    want = mask.to(got.dtype)[None, None]
    size = got.shape
    if want.shape[-2:] != size:
        want = torch.nn.functional.interpolate(want, size=size, mode="area")
    near = torch.nn.functional.max_pool2d(want, 5, 1, 2)[0, 0]
    sure = torch.nn.functional.max_pool2d(1 - want, 5, 1, 2)[0, 0] < 0.01
    # At the edge neither is certain.
    return (torch.where(sure, 1 - got, 0) + torch.where(near < 0.01, got, 0)).mean()


def _placeholder(inputs: modes.ModeInputs) -> Start:
    """Something of the right kinds: a resumed run's checkpoint replaces it all."""
    xyz = torch.eye(3)
    nodes = Nodes(torch.tensor([0.0, 1.0]), xyz[:, None].repeat(1, 2, 1), torch.ones(3, 2, 4), torch.zeros(3))
    return Start(None, PointCloud(xyz, torch.full((3, 3), 0.5)), nodes, None)


def _reporter():
    """Lines on what takes its time before the first step."""
    import sys

    said: set[str] = set()

    def report(word: str, done: int, total: int) -> None:
        if word not in said and sys.stderr.isatty():
            print(f"{word} ...", file=sys.stderr)
        said.add(word)

    return report
