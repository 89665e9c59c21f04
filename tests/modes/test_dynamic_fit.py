"""Nodes from point tracks: known rigid motions are recovered, from perfect tracks, noisy ones and tracks with holes."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.modes._motion import dualquat, losses
from featuresplat.modes._motion.depths import standing
from featuresplat.modes._motion.fit import affinity, complete, fit_motion, stiffen
from featuresplat.modes._motion.nodes import Nodes, rbf_weights
from featuresplat.modes._motion.sightings import Paths

FRAMES, POINTS = 12, 120
TIMES = torch.linspace(0, 1, FRAMES)


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def about(axis, angle):
    """Unit quaternions of turns [T] about an axis."""
    axis = torch.tensor(axis) / torch.tensor(axis).norm()
    return torch.cat([(angle / 2).cos()[:, None], (angle / 2).sin()[:, None] * axis], dim=1)


def box(count, seed, size=(0.3, 0.3, 0.3), centre=(0.0, 0.0, 4.0)):
    rand = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed)) - 0.5
    return rand * torch.tensor(size) + torch.tensor(centre)


def translating(points):
    return points[:, None] + TIMES[:, None] * torch.tensor([0.6, 0.1, -0.2])


def rotating(points):
    centre = torch.tensor([0.0, 0.0, 4.0])
    q = about((0.0, 1.0, 0.2), TIMES * 1.4)
    return dualquat.rotate(q[None], (points - centre)[:, None]) + centre


def hinged(points):
    """Those right of the hinge (x > 0) turn about the y axis through it, the others hold still."""
    q = about((0.0, 1.0, 0.0), TIMES * -1.5)
    hinge = torch.tensor([0.0, 0.0, 4.0])
    turned = dualquat.rotate(q[None], (points - hinge)[:, None]) + hinge
    return torch.where((points[:, 0] > 0)[:, None, None], turned, points[:, None].expand(-1, FRAMES, -1))


MOTIONS = {"translating": translating, "rotating": rotating, "hinged": hinged}


def points_of(kind, seed, count=POINTS):
    if kind != "hinged":
        return box(count, seed)
    left = box(count // 2, seed, (0.4, 0.4, 0.02), (-0.25, 0.0, 4.0))
    return torch.cat([left, box(count - count // 2, seed + 1, (0.4, 0.4, 0.02), (0.25, 0.0, 4.0))])


def seen_by_camera(xyz, seen=None):
    """Tracks as a camera at the origin sees them."""
    rays, depth = xyz[..., :2] / xyz[..., 2:], xyz[..., 2]
    seen = torch.ones(xyz.shape[:2], dtype=torch.bool) if seen is None else seen
    return Paths(rays, seen, torch.where(seen, depth, 0), torch.eye(4).repeat(FRAMES, 1, 1))


def carried(nodes: Nodes, points):
    """Points of the first frame at all times, by the four nodes that are nearest there and move alike."""
    centres = nodes.positions[:, 0]
    ids = torch.cdist(points, centres).topk(min(4, len(nodes)), largest=False).indices
    weights = rbf_weights(points, centres, nodes.log_radii, ids)
    frames = nodes.frames()
    home = dualquat.apply(dualquat.inverse(dualquat.blend(frames[ids, 0], weights)), points)
    there = [dualquat.apply(dualquat.blend(frames[ids, t], weights), home) for t in range(FRAMES)]
    return torch.stack(there, dim=1)


@pytest.mark.parametrize(
    ("kind", "noise", "bound"),
    [
        ("translating", 0.0, 0.001),
        ("translating", 0.01, 0.006),
        ("rotating", 0.0, 0.001),
        ("rotating", 0.01, 0.006),
        ("hinged", 0.0, 0.005),
        ("hinged", 0.01, 0.01),
    ],
)
def test_a_known_motion_is_recovered(kind, noise, bound):
    """Errors in units of the scene, where the things are 0.3 to 0.8 large and move by 0.3 to 0.6; noise averages out.

    Tracks and the points they are tested on are different points of the same thing.
    """
    xyz = MOTIONS[kind](points_of(kind, 1))
    noisy = xyz + noise * randn(*xyz.shape, seed=2)
    nodes = fit_motion(seen_by_camera(noisy), TIMES, 24, steps=60)
    assert nodes is not None
    fresh = points_of(kind, 7, 60)
    error = (carried(nodes, fresh) - MOTIONS[kind](fresh)).norm(dim=-1)
    if kind == "hinged":  # at the hinge itself both halves pull
        error = error[fresh[:, 0].abs() > 0.12]
    assert float(error.median()) < bound
    assert float(error.quantile(0.95)) < 3 * bound


def test_the_turn_of_the_nodes_is_that_of_the_body():
    xyz = rotating(points_of("rotating", 1))
    nodes = fit_motion(seen_by_camera(xyz), TIMES, 24, steps=60)
    assert nodes is not None
    last = nodes.frame(FRAMES - 1)
    first = nodes.frame(0)
    turn = dualquat.quat_mul(last[:, :4], dualquat.quat_conj(first[:, :4]))
    angle = 2 * turn[:, 0].abs().clamp_max(1).acos()
    assert float((angle - 1.4).abs().median()) < 0.03


def test_holes_are_filled_by_the_motion_of_the_neighbours():
    xyz = rotating(points_of("rotating", 1))
    known = torch.ones(POINTS, FRAMES, dtype=torch.bool)
    known[:40, 4:9] = False  # in the middle
    known[40:60, 8:] = False  # to the end
    known[60:70, :3] = False  # from the beginning
    full = complete(torch.where(known[..., None], xyz, torch.nan), known)
    assert torch.equal(full[known], xyz[known])
    assert float((full - xyz).norm(dim=-1)[~known].max()) < 0.02


def test_one_bad_track_in_ten_does_not_matter():
    xyz = rotating(points_of("rotating", 1))
    bad = xyz.clone()
    bad[:12] += torch.linspace(0, 0.5, FRAMES)[:, None] * randn(12, 1, 3, seed=3)
    nodes = fit_motion(seen_by_camera(bad), TIMES, 24, steps=60)
    assert nodes is not None
    fresh = points_of("rotating", 7, 60)
    assert float((carried(nodes, fresh) - rotating(fresh)).norm(dim=-1).median()) < 0.02


def test_without_depth_a_rigid_body_is_placed_by_its_rigidity():
    """Only directions are known, and a first guess of the depth that is wrong by a tenth for the single points."""
    xyz = rotating(points_of("rotating", 1))
    paths = seen_by_camera(xyz)
    paths.depth = torch.zeros_like(paths.depth)
    paths.guess = xyz[:, 0, 2] * (1 + 0.1 * (torch.rand(POINTS, generator=torch.Generator().manual_seed(5)) - 0.5))
    nodes = fit_motion(paths, TIMES, 24, steps=100)
    assert nodes is not None
    local = nodes.positions
    # What the camera sees is explained ...
    fresh = points_of("rotating", 1)
    moved = carried(nodes, fresh)
    truth = rotating(fresh)
    off = (moved[..., :2] / moved[..., 2:] - truth[..., :2] / truth[..., 2:]).norm(dim=-1)
    assert float(off.median()) < 0.01
    # ... at about the right distance.
    assert float((local[..., 2] - 4).abs().median()) < 0.4


def test_two_bodies_taken_for_one_do_not_share_a_motion(monkeypatch):
    """Most trusted tracks are on the one that turns; the other one holds still and must be left to."""
    turns, holds = rotating(box(70, 1)), box(50, 2, centre=(0.5, 0.0, 4.0))[:, None].expand(-1, FRAMES, -1)
    full, trust = torch.cat([turns, holds]), torch.cat([torch.full((70,), 0.9), torch.full((50,), 0.1)])
    quats = torch.zeros(120, FRAMES, 4)
    quats[..., 0] = 1
    nodes = Nodes(TIMES, full, quats, torch.zeros(120))
    monkeypatch.setattr(losses, "bodies_of", lambda ids, weights: torch.zeros(len(ids), dtype=torch.long))
    known = torch.ones(120, FRAMES, dtype=torch.bool)
    same, rigid = stiffen(nodes, full, known, trust)
    assert not bool(rigid.any())
    assert torch.equal(same, full)
    # One body alone, with some sliding of its weak tracks, is made one again.
    slid = turns + 0.004 * randn(70, FRAMES, 3, seed=4) * (torch.arange(70) >= 40)[:, None, None]
    one = Nodes(TIMES, slid, quats[:70], torch.zeros(70))
    better, rigid = stiffen(one, slid, known[:70], torch.where(torch.arange(70) < 40, 0.9, 0.1))
    assert bool(rigid.all())
    assert float((better - turns).norm(dim=-1).median()) < 0.003


def sliding_on_a_floor():
    """A box on a floor under a camera that looks along z, one unit above it; it comes nearer by a tenth."""
    xyz = box(40, 1) + torch.tensor([0.0, 0.85, 0.0])
    xyz = xyz[:, None] + TIMES[:, None] * torch.tensor([0.3, 0.0, -0.4])
    paths = seen_by_camera(xyz)
    paths.depth = torch.zeros_like(paths.depth)
    paths.guess = xyz[:, 0, 2]
    foot = 3.85 - TIMES * 0.4  # its near edge
    paths.floor = foot.expand(40, -1)
    return xyz, paths


def test_what_stands_on_the_floor_goes_where_the_floor_is():
    xyz, paths = sliding_on_a_floor()
    close = affinity(xyz, paths.seen, 12)
    with_floor = standing(paths, *close)
    assert torch.allclose(with_floor[:, 0], xyz[:, 0], atol=1e-5)
    assert float((with_floor - xyz).norm(dim=-1).max()) < 0.2
    paths.floor = None
    without = standing(paths, *close)
    assert float((without - xyz)[:, -1].norm(dim=-1).min()) > 0.35


def test_what_does_not_stand_on_the_floor_is_not_taken_there():
    """Nonsense from a floor far away: the thing stays where it was."""
    xyz, paths = sliding_on_a_floor()
    still = xyz[:, :1].expand(-1, FRAMES, -1)
    there = seen_by_camera(still)
    there.depth, there.guess = torch.zeros_like(there.depth), paths.guess
    there.floor = torch.where(torch.arange(FRAMES) < 3, 3.85, 9.0).expand(40, -1)
    found = standing(there, *affinity(still, there.seen, 12))
    assert float((found - still).norm(dim=-1).max()) < 0.2


def test_new_tracks_take_the_depth_of_those_around():
    xyz, paths = sliding_on_a_floor()
    paths.seen = paths.seen.clone()
    paths.seen[30:, :6] = False
    paths.guess = torch.where(torch.arange(40) < 30, xyz[:, 0, 2], 50.0)
    found = standing(paths, *affinity(xyz, torch.ones_like(paths.seen), 12))
    assert float((found - xyz)[30:, 6:].norm(dim=-1).median()) < 0.25


def test_too_little_to_say_anything():
    xyz = translating(points_of("translating", 1)[:3])
    assert fit_motion(seen_by_camera(xyz), TIMES, 24) is None
    unseen = seen_by_camera(translating(points_of("translating", 1)), torch.zeros(POINTS, FRAMES, dtype=torch.bool))
    assert fit_motion(unseen, TIMES, 24) is None


def test_the_fit_is_the_same_every_time():
    paths = [seen_by_camera(rotating(points_of("rotating", 1))) for _ in range(2)]
    first, second = (fit_motion(p, TIMES, 12, steps=5) for p in paths)
    assert first is not None
    assert second is not None
    assert torch.equal(first.positions, second.positions)
    assert math.isfinite(float(first.quats.sum()))
