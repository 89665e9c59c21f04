"""A checkpoint is read on the CPU; all that it holds goes to where the training is. Device meta stands for a GPU."""

from __future__ import annotations

import pytest
import torch

from featuresplat import _checkpoints
from featuresplat.config import DensifyConfig
from featuresplat.densify import Classic
from featuresplat.modes._motion.nodes import Nodes
from featuresplat.modes._motion.trained import TrainedNodes
from featuresplat.types import RasterMeta, RenderOutput

AWAY = torch.device("meta")


@pytest.mark.parametrize("fused", [True, False])
def test_a_fused_optimizer_counts_its_steps_beside_the_parameters(fused):
    p = torch.nn.Parameter(torch.zeros(3, device=AWAY))
    optimizer = torch.optim.Adam([{"name": "means", "params": [p]}])
    optimizer.param_groups[0]["fused"] = fused
    saved = {"step": torch.tensor(7.0), "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}
    _checkpoints._restore_moments(optimizer, {"means": saved})
    state = optimizer.state[p]
    assert state["exp_avg"].device == state["exp_avg_sq"].device == AWAY
    assert state["step"].device.type == ("meta" if fused else "cpu")


def test_nodes_and_their_edges():
    g = torch.Generator().manual_seed(0)
    quats = torch.zeros(12, 4, 4)
    quats[..., 0] = 1
    nodes = Nodes(torch.linspace(0, 1, 4), torch.randn(12, 4, 3, generator=g), quats, torch.zeros(12))
    trained = TrainedNodes(nodes, torch.device("cpu"))
    edges = trained.edges()
    saved = trained.buffers()
    again = TrainedNodes(nodes, torch.device("cpu"))
    again.load_buffers(saved, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(again.edges(), edges, strict=True))
    again.load_buffers(saved, AWAY)
    on_device = (*again.edges(), again.log_radii, again.pull, again.bodies)
    assert {t.device.type for t in on_device} == {"meta"}
    trained.forget_edges()
    again.load_buffers(trained.buffers(), AWAY)
    assert again._edges is None


def test_averages_of_gradients():
    strategy = Classic(DensifyConfig(), 100, 100, 1.0)
    strategy.load_state_dict({"sums": torch.ones(5), "views": torch.ones(5)})
    radii, image = torch.ones(1, 5, 2, dtype=torch.int32, device=AWAY), torch.zeros(1, 4, 4, 1, device=AWAY)
    grads = torch.zeros(1, 5, 2, device=AWAY)
    meta = RasterMeta(grads, radii, radii[..., 0].float(), torch.zeros(1, 5, 3, device=AWAY), grads, grads)
    strategy.observe(RenderOutput(None, None, image, image, meta))
    assert strategy.sums.device == strategy.views.device == AWAY
    assert len(strategy.sums) == 5
