"""Nodes as parameters: each node's own motion, and on top of it that of the body that it belongs to.

Adam moves every parameter by about its rate, whatever the size of its gradient. The sum of the gradients over a body
is far more certain than each node's own; with parameters of its own a body moves as one before its parts do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import normalize

from featuresplat.densify._edit import append
from featuresplat.modes._motion import dualquat, losses
from featuresplat.modes._motion.nodes import Nodes

EDGES = 8
"""Neighbours of a node in the rigidity term."""


class TrainedNodes:
    """M nodes of B bodies over T frames, on one device.

    Attributes:
        params: ``nodes.positions`` [M, T, 3], ``nodes.quats`` [M, T, 4], ``bodies.shifts`` and ``bodies.turns``
            (rotation vectors about the body's middle) [B, T, 3]. The mode's own dict: others may replace its entries.
        times [T], log_radii [M], rest: as in `Nodes`. bodies: [M].
        pull: [M] sums of the gradients of the Gaussians that follow each node first.
    """

    def __init__(self, nodes: Nodes, device: torch.device):
        self.times, self.rest = nodes.times, nodes.rest
        self.log_radii = nodes.log_radii.to(device)
        self._edges: tuple[Tensor, Tensor] | None = None
        count = nodes.positions.shape[1]
        self.bodies = losses.bodies_of(*losses.edges_of(nodes, EDGES)).to(device)
        bodies = int(self.bodies.max()) + 1
        self.pull = torch.zeros(len(nodes), device=device)
        self.params = {
            "nodes.positions": Parameter(nodes.positions.clone().to(device)),
            "nodes.quats": Parameter(normalize(nodes.quats, dim=-1).to(device)),
            "bodies.shifts": Parameter(torch.zeros(bodies, count, 3, device=device)),
            "bodies.turns": Parameter(torch.zeros(bodies, count, 3, device=device)),
        }

    def __len__(self) -> int:
        return len(self.log_radii)

    def now(self) -> Nodes:
        """The nodes with the motion of their bodies, differentiable."""
        p = self.params
        places, quats = p["nodes.positions"], p["nodes.quats"]
        middle = self._middles(places.detach())[self.bodies]
        turn = small_turn(p["bodies.turns"])[self.bodies]
        places = dualquat.rotate(turn, places - middle) + middle + p["bodies.shifts"][self.bodies]
        return Nodes(self.times, places, dualquat.quat_mul(turn, quats), self.log_radii, self.rest)

    def _middles(self, places: Tensor) -> Tensor:
        """[B, T, 3] the mean place of each body's nodes."""
        bodies = len(self.params["bodies.shifts"])
        sums = places.new_zeros(bodies, *places.shape[1:]).index_add_(0, self.bodies, places)
        members = places.new_zeros(bodies).index_add_(0, self.bodies, torch.ones_like(places[:, 0, 0]))
        return sums / members.clamp_min(1)[:, None, None]

    def edges(self) -> tuple[Tensor, Tensor]:
        """Neighbours [M, J] of the nodes and weights, kept until `forget_edges`."""
        if self._edges is None:
            with torch.no_grad():
                self._edges = losses.edges_of(self.now(), min(EDGES, len(self) - 1))
        return self._edges

    def forget_edges(self) -> None:
        self._edges = None

    @torch.no_grad()
    def add(self, places: Tensor, quats: Tensor, like: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """More nodes: places [R, T, 3], quats [R, T, 4]; ``like`` [R] are nodes whose body and reach they take."""
        # Stored is a node's own motion, without its body's.
        p = self.params
        body = self.bodies[like]
        middle = self._middles(p["nodes.positions"].detach())[body]
        back = dualquat.quat_conj(small_turn(p["bodies.turns"].detach())[body])
        own = dualquat.rotate(back, places - middle - p["bodies.shifts"].detach()[body]) + middle
        for name, rows in (("nodes.positions", own), ("nodes.quats", dualquat.quat_mul(back, quats))):
            one = {name: p[name]}
            append(one, optimizer, {name: rows.contiguous()})
            p[name] = one[name]
        self.bodies = torch.cat([self.bodies, body])
        self.log_radii = torch.cat([self.log_radii, self.log_radii[like] - 0.2])
        self.pull = torch.zeros(len(self.log_radii), device=self.log_radii.device)
        self.forget_edges()

    def buffers(self) -> dict[str, Tensor]:
        out = {"times": self.times, "rest": torch.tensor([self.rest]), "log_radii": self.log_radii}
        out |= {"pull": self.pull, "bodies": self.bodies}
        return out if self._edges is None else out | {"edge_ids": self._edges[0], "edge_weights": self._edges[1]}

    def load_buffers(self, buffers: dict[str, Tensor], device: torch.device) -> None:
        self.times, self.rest = buffers["times"], int(buffers["rest"])
        self.log_radii, self.pull = buffers["log_radii"].to(device), buffers["pull"].to(device)
        self.bodies = buffers["bodies"].to(device)
        edges = [buffers[name].to(device) for name in ("edge_ids", "edge_weights") if name in buffers]
        self._edges = (edges[0], edges[1]) if edges else None


def small_turn(vector: Tensor) -> Tensor:
    """Unit quaternions [..., 4] of rotation vectors [..., 3]; exact to third order."""
    return normalize(torch.cat([torch.ones_like(vector[..., :1]), 0.5 * vector], -1), dim=-1)
