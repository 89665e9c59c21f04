"""Dual quaternions against matrices, skinning, nodes and their losses."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.geometry import quat_to_rotmat
from featuresplat.modes._motion import dualquat, losses, skinning
from featuresplat.modes._motion.nodes import Nodes, bracket, neighbours, rbf_weights


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rigid(count, seed=0):
    q, t = randn(count, 4, seed=seed), randn(count, 3, seed=seed + 1)
    return q / q.norm(dim=1, keepdim=True), t


def matrices(dq):
    q, t = dualquat.to_rigid(dq)
    out = torch.eye(4, dtype=dq.dtype).repeat(len(dq), 1, 1)
    out[:, :3, :3], out[:, :3, 3] = quat_to_rotmat(q), t
    return out


def test_a_quarter_turn_about_z_and_a_step_along_x():
    half = math.sqrt(0.5)
    dq = dualquat.from_rigid(torch.tensor([half, 0, 0, half]), torch.tensor([1.0, 0, 0]))
    # (1, 0, 0) turns to (0, 1, 0), then steps to (1, 1, 0).
    assert torch.allclose(dualquat.apply(dq, torch.tensor([1.0, 0, 0])), torch.tensor([1.0, 1, 0]), atol=1e-6)


def test_the_group_is_that_of_matrices():
    a, b = dualquat.from_rigid(*rigid(20)), dualquat.from_rigid(*rigid(20, 7))
    assert torch.allclose(matrices(dualquat.mul(a, b)), matrices(a) @ matrices(b), atol=1e-12)
    assert torch.allclose(matrices(dualquat.inverse(a)), torch.linalg.inv(matrices(a)), atol=1e-12)
    x = randn(20, 3, seed=3)
    by_matrix = (matrices(a)[:, :3, :3] @ x[..., None])[..., 0] + matrices(a)[:, :3, 3]
    assert torch.allclose(dualquat.apply(a, x), by_matrix, atol=1e-12)


def test_blending_one_motion_with_itself_is_that_motion_whatever_the_signs():
    a = dualquat.from_rigid(*rigid(5))
    pair = torch.stack([a, -a], dim=1)
    out = dualquat.blend(pair, torch.tensor([0.3, 0.7], dtype=torch.float64).expand(5, 2))
    assert torch.allclose(matrices(out), matrices(a), atol=1e-12)


def test_half_of_a_turn_about_an_axis_is_half_the_angle_about_the_same_axis():
    """A screw: matrices would blend to a shrunken rotation, dual quaternions stay on the screw."""
    axis_point = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)

    def about(angle):
        q = torch.tensor([math.cos(angle / 2), 0, 0, math.sin(angle / 2)], dtype=torch.float64)
        return dualquat.from_rigid(q, axis_point - dualquat.rotate(q, axis_point))

    half = dualquat.blend(torch.stack([about(0.0), about(1.0)]), torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert torch.allclose(half, about(0.5), atol=1e-12)
    x = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    assert float((dualquat.apply(half, x) - axis_point).norm()) == pytest.approx(1.0, abs=1e-12)


def test_skinning_by_one_node_is_the_rigid_motion_of_means_and_covariances():
    dq = dualquat.from_rigid(*rigid(1))
    means, quats = randn(6, 3, seed=4), torch.nn.functional.normalize(randn(6, 4, seed=5), dim=1)
    ids, weights = torch.zeros(6, 3, dtype=torch.long), torch.full((6, 3), 1 / 3, dtype=torch.float64)
    moved, turned = skinning.move(means, quats, skinning.motions(dq, ids, weights))
    m = matrices(dq)[0]
    assert torch.allclose(moved, means @ m[:3, :3].T + m[:3, 3], atol=1e-12)
    assert torch.allclose(quat_to_rotmat(turned), m[:3, :3] @ quat_to_rotmat(quats), atol=1e-12)


def make_nodes(count=5, frames=4, seed=0):
    p, q = randn(count, frames, 3, seed=seed), randn(count, frames, 4, seed=seed + 1)
    return Nodes(torch.linspace(0, 1, frames, dtype=torch.float64), p, q, randn(count, seed=seed + 2))


def test_gradients_through_the_skinning_are_those_of_finite_differences():
    nodes, ids = make_nodes(), torch.tensor([[0, 1, 2], [3, 4, 0], [2, 1, 4]])
    means, quats = randn(3, 3, seed=8), randn(3, 4, seed=9)

    def skinned(means, quats, positions, rotations, radii):
        n = Nodes(nodes.times, positions, rotations, radii)
        weights = rbf_weights(means, n.rest_positions, radii, ids)
        return skinning.move(means, quats, skinning.motions(n.at(0.45), ids, weights))

    inputs = [t.clone().requires_grad_() for t in (means, quats, nodes.positions, nodes.quats, nodes.log_radii)]
    assert torch.autograd.gradcheck(skinned, inputs)


def test_nodes_are_at_rest_in_the_rest_frame_and_at_their_places_in_the_others():
    nodes = make_nodes()
    for t in range(4):
        motion = nodes.at(float(nodes.times[t]))
        assert torch.allclose(dualquat.apply(motion, nodes.rest_positions), nodes.positions[:, t], atol=1e-9)
        assert torch.allclose(matrices(motion), matrices(nodes.frames()[:, t]), atol=1e-9)


def test_times_between_and_outside():
    times = torch.tensor([0.0, 0.25, 1.0])
    assert bracket(times, 0.25) == (1, 1, 0.0)
    i, j, u = bracket(times, 0.625)
    assert (i, j) == (1, 2)
    assert u == pytest.approx(0.5)
    assert bracket(times, -3.0) == (0, 0, 0.0)
    assert bracket(times, 7.0) == (2, 2, 0.0)


def test_rbf_weights_by_hand():
    centres = torch.tensor([[0.0, 0, 0], [2.0, 0, 0]])
    ids = torch.tensor([[0, 1]])
    # At distance 1 from both: equal. At the first with radius 1: exp(0) against exp(-2).
    assert torch.allclose(
        rbf_weights(torch.tensor([[1.0, 0, 0]]), centres, torch.zeros(2), ids), torch.tensor([[0.5, 0.5]])
    )
    out = rbf_weights(torch.zeros(1, 3), centres, torch.zeros(2), ids)
    assert out[0, 0] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-6)


def test_paths_tell_the_cover_from_the_page_it_lay_on():
    page = torch.zeros(3, 2, 3)
    cover = torch.tensor([[[0.0, 0, 0], [0.0, 0, 1]]])
    query = torch.tensor([[[0.05, 0, 0], [0.05, 0, 1.0]]])  # nearest in place to both, in path to the cover
    assert neighbours(torch.cat([page, cover]), query, 1).tolist() == [[3]]


def turning(frames=5, count=12):
    """Nodes of one rigid body that turns and slides."""
    rest = randn(count, 3, seed=3)
    angles = torch.linspace(0, 1.2, frames, dtype=torch.float64)
    q = torch.stack([(angles / 2).cos(), 0 * angles, (angles / 2).sin(), 0 * angles], dim=1)
    shift = torch.linspace(0, 1, frames, dtype=torch.float64)[:, None] * randn(3, seed=4)
    positions = dualquat.rotate(q[None], rest[:, None]) + shift
    return Nodes(
        torch.linspace(0, 1, frames, dtype=torch.float64), positions, q.expand(count, -1, -1), torch.zeros(count)
    )


def test_a_rigid_motion_costs_nothing_and_a_bent_one_does():
    nodes = turning()
    ids, weights = losses.edges_of(nodes, 4)
    frames, others = torch.tensor([1, 2, 4]), torch.tensor([0, 1, 2])
    assert float(losses.arap(nodes, ids, weights, frames, others)) < 1e-20
    assert float(losses.turn_smoothness(nodes, ids, weights, frames, others)) < 1e-12
    bent = Nodes(nodes.times, nodes.positions * torch.linspace(1, 2, 5)[None, :, None], nodes.quats, nodes.log_radii)
    assert float(losses.arap(bent, ids, weights, frames, others)) > 1e-3


def test_steady_motion_has_no_acceleration():
    place, turn = losses.acceleration(turning())
    # The turn is steady, the path is a circle plus a line: a small centripetal part remains.
    assert float(turn) < 1e-20
    line = turning()
    line.positions = torch.linspace(0, 1, 5, dtype=torch.float64)[None, :, None] * randn(12, 1, 3, seed=5)
    assert float(losses.acceleration(line)[0]) < 1e-20
    assert float(place) > 1e-6


def test_kabsch_finds_the_motion_and_ignores_points_without_weight():
    dq = dualquat.from_rigid(*rigid(3))
    source = randn(3, 6, 3, seed=2)
    target = dualquat.apply(dq[:, None], source)
    target[:, 0] += 5
    weights = torch.ones(3, 6, dtype=torch.float64)
    weights[:, 0] = 0
    R, t = dualquat.kabsch(source, target, weights)
    q, shift = dualquat.to_rigid(dq)
    assert torch.allclose(R, quat_to_rotmat(q), atol=1e-3)
    assert torch.allclose(t, shift, atol=3e-3)
