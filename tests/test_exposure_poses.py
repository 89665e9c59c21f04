"""Colour transforms and pose corrections against hand-made truths."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.exposure import Exposure, predict, transform
from featuresplat.poses import PoseRefiner, rigid
from featuresplat.types import Cameras


def line_of_cameras(positions: list[float]) -> Cameras:
    """Cameras on the x axis that all look along z."""
    viewmats = torch.eye(4, dtype=torch.float64).repeat(len(positions), 1, 1)
    viewmats[:, 0, 3] = -torch.tensor(positions, dtype=torch.float64)
    Ks = torch.tensor([[10.0, 0, 5], [0, 10, 5], [0, 0, 1]]).repeat(len(positions), 1, 1)
    return Cameras(viewmats, Ks, 10, 10, None, [f"{i}.png" for i in range(len(positions))])


def test_transform_is_affine_around_the_identity():
    rgb = torch.rand(4, 5, 3)
    assert torch.equal(transform(rgb, torch.zeros(3, 4)), rgb)
    delta = torch.zeros(3, 4)
    delta[0, 1], delta[2, 2], delta[1, 3] = 0.5, -1.0, 0.25
    r, g, b = torch.tensor([0.2, 0.4, 0.6])
    torch.testing.assert_close(transform(torch.stack([r, g, b]), delta), torch.tensor([0.4, 0.65, 0.0]))


def test_exposure_applies_each_images_own():
    exposure = Exposure(3)
    with torch.no_grad():
        exposure.delta[1, :, 3] = 0.1
    rgb = torch.rand(2, 2, 3)
    assert torch.equal(exposure.apply(rgb, 0), rgb)
    torch.testing.assert_close(exposure.apply(rgb, 1), rgb + 0.1)
    exposure.apply(rgb, 2).sum().backward()
    grad = exposure.delta.grad
    assert grad is not None
    assert float(grad[:2].abs().max()) == 0
    torch.testing.assert_close(grad[2, 0], torch.cat([rgb.sum((0, 1)), torch.tensor([4.0])]))


def test_drift_is_of_the_mean_only():
    exposure = Exposure(2)
    with torch.no_grad():
        exposure.delta[0], exposure.delta[1] = 0.3, -0.3
    assert float(exposure.drift().detach()) == 0
    with torch.no_grad():
        exposure.delta.fill_(0.5)
    assert float(exposure.drift().detach()) == pytest.approx(12 * 0.25)


def test_prediction_is_exact_where_all_agree():
    delta = torch.randn(3, 4).repeat(6, 1, 1)
    train = line_of_cameras([0, 1, 2, 3, 4, 5])
    torch.testing.assert_close(predict(delta, train, line_of_cameras([2.3])), delta[0])


def test_prediction_follows_the_nearest_view():
    delta = torch.arange(6.0)[:, None, None].expand(6, 3, 4).contiguous()
    train = line_of_cameras([0, 1, 2, 3, 4, 5])
    assert float(predict(delta, train, line_of_cameras([3.0]))[0, 0]) == pytest.approx(3.0, abs=0.02)
    between = [float(predict(delta, train, line_of_cameras([x]))[0, 0]) for x in (2.2, 2.5, 2.8)]
    assert between == sorted(between)
    assert between[1] == pytest.approx(2.5, abs=1e-5)


def test_prediction_minds_the_direction_and_few_views():
    train = line_of_cameras([0.0, 0.0])
    turn = torch.eye(4, dtype=torch.float64)
    turn[:3, :3] = torch.tensor([[-1.0, 0, 0], [0, 1, 0], [0, 0, -1]])
    train.viewmats[1] = turn
    delta = torch.stack([torch.zeros(3, 4), torch.ones(3, 4)])
    assert float(predict(delta, train, line_of_cameras([0.0])).max()) < 0.01
    assert predict(delta[:1], train[[0]], line_of_cameras([7.0])).equal(delta[0])


def test_rigid_is_the_identity_at_zero_with_the_right_gradient():
    twist = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    assert torch.equal(rigid(twist), torch.eye(4, dtype=torch.float64))
    jacobian = torch.autograd.functional.jacobian(rigid, twist)
    assert isinstance(jacobian, torch.Tensor)
    assert float(jacobian[2, 1, 0]) == 1  # about x: y turns to z
    assert float(jacobian[0, 2, 1]) == 1
    assert float(jacobian[1, 0, 2]) == 1
    assert torch.equal(jacobian[:3, 3, 3:], torch.eye(3, dtype=torch.float64))


def test_rigid_turns_about_its_axis():
    out = rigid(torch.tensor([0.0, 0.0, math.pi / 2, 1.0, 2.0, 3.0], dtype=torch.float64))
    expected = torch.tensor([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(out, expected)


def test_rigid_stays_a_rotation_and_passes_gradcheck():
    generator = torch.Generator().manual_seed(0)
    twist = torch.randn(6, dtype=torch.float64, generator=generator, requires_grad=True)
    R = rigid(twist)[:3, :3].detach()
    torch.testing.assert_close(R @ R.T, torch.eye(3, dtype=torch.float64))
    assert float(torch.det(R)) == pytest.approx(1)
    assert torch.autograd.gradcheck(rigid, twist)


def test_refiner_moves_one_camera_only():
    refiner = PoseRefiner(3)
    viewmat = rigid(torch.tensor([0.1, 0.2, 0.3, 1.0, 2.0, 3.0]))
    assert torch.equal(refiner.apply(viewmat, 1), viewmat)
    with torch.no_grad():
        refiner.twist[1, 5] = 0.5
    moved = refiner.apply(viewmat, 1).detach()
    assert float((moved - viewmat)[2, 3]) == pytest.approx(0.5)  # along the camera's own axis
    assert torch.equal(refiner.apply(viewmat, 0), viewmat)
