"""Camera paths against known circles and given views."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat import Cameras, FeaturesplatError
from featuresplat.paths import focus_point, look_at, orbit, spline, up_axis

FOCUS = torch.tensor([0.4, -1.2, 2.0], dtype=torch.float64)
UP = torch.nn.functional.normalize(torch.tensor([0.2, 0.3, 0.9], dtype=torch.float64), dim=0)


def ring(count: int = 12, arc: float = 2 * math.pi, radius: float = 3.0, height: float = 1.5) -> Cameras:
    """Cameras around FOCUS, level with respect to UP, each a little nearer or farther than ``radius``."""
    x = torch.nn.functional.normalize(torch.linalg.cross(UP, torch.tensor([1.0, 0, 0], dtype=torch.float64)), dim=0)
    y = torch.linalg.cross(UP, x)
    angles = torch.arange(count, dtype=torch.float64) * arc / count
    wobble = radius + 0.2 * (-1.0) ** torch.arange(count, dtype=torch.float64)
    out = angles.cos()[:, None] * x + angles.sin()[:, None] * y
    viewmats = look_at(FOCUS + wobble[:, None] * out + height * UP, FOCUS, UP)
    Ks = torch.eye(3, dtype=torch.float64).repeat(count, 1, 1)
    Ks[:, 0, 0] = Ks[:, 1, 1] = torch.linspace(90, 110, count, dtype=torch.float64)
    Ks[:, 0, 2], Ks[:, 1, 2] = 40, 30
    return Cameras(viewmats, Ks, 80, 60)


def assert_rigid(cameras: Cameras) -> None:
    R = cameras.viewmats[:, :3, :3]
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=R.dtype).expand_as(R), atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(len(R), dtype=R.dtype))


@pytest.mark.parametrize("arc", [2 * math.pi, 0.6])
def test_up_and_focus_of_level_cameras_are_found_also_from_one_side(arc):
    cameras = ring(arc=arc)
    assert float(up_axis(cameras) @ UP) > 0.9999
    torch.testing.assert_close(focus_point(cameras), FOCUS, atol=1e-4, rtol=0)


def test_up_is_the_cameras_own_up_when_all_look_the_same_way():
    one = ring(1)
    same = one[[0, 0, 0]]
    assert float(up_axis(same) @ -one.viewmats[0, 1, :3]) > 0.9999


def test_one_camera_has_its_focus_a_unit_ahead():
    one = ring(1)
    expected = one.positions[0] + one.viewmats[0, 2, :3]
    torch.testing.assert_close(focus_point(one), expected, atol=1e-6, rtol=0)


def test_orbit_is_a_circle_at_mean_radius_and_height_that_looks_at_the_focus():
    cameras = ring()
    path = orbit(cameras, frames=40, radius_scale=0.5)
    assert len(path) == 40
    assert_rigid(path)
    relative = path.positions - FOCUS
    heights = relative @ UP
    torch.testing.assert_close(heights, torch.full_like(heights, 1.5), atol=1e-3, rtol=0)
    radii = (relative - heights[:, None] * UP).norm(dim=1)
    torch.testing.assert_close(radii, torch.full_like(radii, 1.5), atol=1e-3, rtol=0)
    seen = (path.viewmats @ torch.cat([FOCUS, FOCUS.new_ones(1)]))[:, :3]
    assert float(seen[:, :2].abs().max()) < 1e-3
    assert float(seen[:, 2].min()) > 1.0
    steps = (path.positions - path.positions.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps))  # closed: the last step is as long as all others
    assert float((-path.viewmats[:, 1, :3] @ UP).min()) > 0.5  # the images are upright
    assert (path.width, path.height) == (80, 60)
    assert float(path.Ks[0, 0, 0]) == pytest.approx(float(cameras.Ks[6, 0, 0]))  # the median field of view


def test_orbit_starts_on_the_side_of_the_first_camera():
    cameras = ring()
    path = orbit(cameras, 8)
    assert int((path.positions - cameras.positions[0]).norm(dim=1).argmin()) == 0


def test_spline_passes_through_the_views_and_is_smooth():
    cameras = ring(7, arc=5.0)
    path = spline(cameras, frames=6 * 10 + 1)
    assert_rigid(path)
    torch.testing.assert_close(path.viewmats[::10], cameras.viewmats, atol=1e-9, rtol=0)
    R = path.viewmats[:, :3, :3]
    turns = torch.stack([(a @ b.mT).diagonal().sum() for a, b in zip(R[1:], R[:-1], strict=True)])
    angles = ((turns - 1) / 2).clamp(-1, 1).arccos()
    assert float(angles.max()) < 2.5 * float(angles.mean())
    assert float(angles.diff().abs().max()) < 0.35 * float(angles.mean())  # no jump in turning speed at a view


def test_closed_spline_returns_to_its_first_view():
    cameras = ring(6)
    path = spline(cameras, frames=60, closed=True)
    torch.testing.assert_close(path.viewmats[::10], cameras.viewmats, atol=1e-9, rtol=0)
    steps = (path.positions - path.positions.roll(1, 0)).norm(dim=1)
    assert float(steps[0]) < 2 * float(steps.mean())


def test_spline_between_equal_views_stands_still():
    path = spline(ring(1)[[0, 0, 0]], frames=5)
    torch.testing.assert_close(path.viewmats, path.viewmats[:1].expand_as(path.viewmats))


def test_times_run_along():
    cameras = ring(5)
    cameras.times = torch.linspace(0, 0.8, 5)
    torch.testing.assert_close(spline(cameras, 9).times, torch.linspace(0, 0.8, 9).double())
    assert orbit(cameras, 5).times.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_what_cannot_be_done_says_so():
    with pytest.raises(FeaturesplatError, match="at least 2 views"):
        spline(ring(1), 10)
    with pytest.raises(FeaturesplatError, match="at least 1, got 0"):
        orbit(ring(), 0)
    with pytest.raises(FeaturesplatError, match="no cameras"):
        up_axis(ring()[[]])
    turning = ring(5)
    turning.viewmats[:, :3, 3] = -(turning.viewmats[:, :3, :3] @ FOCUS)  # all at one place, looking around
    with pytest.raises(FeaturesplatError, match="stand at") as caught:
        orbit(turning, 5)
    assert "spline" in caught.value.hint
