"""Labels spread over the graph of Gaussians."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featuresplat.prompts import walk
from featuresplat.prompts.graph import build, graph_of


@pytest.fixture(scope="module")
def sheet():
    """Points of a sheet, red on the left and blue on the right; seeds of both, a few of them wrong."""
    generator = torch.Generator().manual_seed(0)
    places = torch.cat([2 * torch.rand(600, 2, generator=generator) - 1, torch.zeros(600, 1)], dim=1)
    side = (places[:, 0] > 0).long()
    colors = torch.tensor([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])[side]
    seeds = np.where(np.arange(600) % 4 == 0, side.numpy(), -1)
    wrong = np.flatnonzero(seeds >= 0)[:3]
    seeds[wrong] = 1 - seeds[wrong]
    return build(places), colors, seeds, side


def test_a_walk_is_what_a_direct_solve_says(sheet):
    graph, colors, seeds, _ = sheet
    joined = graph.matrix(walk.edge_weights(graph, colors)).toarray()
    held = (seeds >= 0).astype(float)
    system = np.diag(joined.sum(1) + held + 1e-6) - joined
    exact = np.linalg.solve(system, (seeds[:, None] == np.arange(2)) * 1.0)
    exact /= exact.sum(1, keepdims=True)
    found = walk.walk(graph, colors, seeds, 3).numpy()
    known = ~walk.certain(graph, seeds)
    assert np.abs(found[known, :2] - exact[known]).max() < 0.05
    assert (found[:, :2].argmax(1) == exact.argmax(1)).mean() > 0.99
    assert not found[:, 2].any()  # no seed has the third label


def test_a_walk_stops_at_a_change_of_colour_and_overrules_odd_seeds(sheet):
    graph, colors, seeds, side = sheet
    found = walk.walk(graph, colors, seeds, 2).argmax(1)
    assert float((found == side).float().mean()) > 0.99


def test_certain_are_seeds_among_their_like(sheet):
    graph, colors, _, side = sheet
    sure = walk.certain(graph, side.numpy())
    assert 0.5 < sure.mean() < 1
    apart = side.numpy()[graph.rows] != side.numpy()[graph.cols]
    assert not sure[graph.rows[apart]].any()
    assert not walk.certain(graph, np.full(600, -1)).any()
    found = walk.walk(graph, colors, side.numpy(), 2)
    assert torch.equal(found[torch.from_numpy(sure)].argmax(1), side[torch.from_numpy(sure)])


def test_what_no_seed_reaches_is_the_last_label(sheet):
    places = torch.cat([torch.rand(40, 3), torch.rand(40, 3) + 100])
    seeds = np.full(80, -1)
    seeds[0] = 0
    found = walk.walk(build(places), torch.full((80, 3), 0.5), seeds, 3)
    assert bool((found[40:].argmax(1) == 2).all())
    assert bool((found[:40].argmax(1) == 0).all())


def test_conjugate_gradients_solve_all_columns():
    generator = np.random.default_rng(0)
    graph = graph_of(torch.from_numpy(generator.random((50, 3))))
    joined = graph.matrix(np.full(len(graph.rows), 0.3))
    diagonal = np.asarray(joined.sum(1))[:, 0] + 0.1
    target = generator.random((50, 3))
    target[:, 2] = 0
    found = walk.conjugate_gradients(joined, diagonal, target, 1e-10, 500, np.float64)
    assert np.abs((np.diag(diagonal) - joined.toarray()) @ found - target).max() < 1e-8
    assert not found[:, 2].any()
