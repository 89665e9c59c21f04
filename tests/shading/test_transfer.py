"""What Gaussians hide from each other and lend each other, against scenes whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.shading import occlusion, transfer

SIDE = 25


def sheet(axis: int, offset: float = 0.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A unit square of flat Gaussians, normal +axis: means, normals, scales."""
    at = (torch.arange(SIDE) + 0.5) / SIDE
    u, v = (t.reshape(-1) for t in torch.meshgrid(at, at, indexing="ij"))
    means = torch.zeros(SIDE * SIDE, 3)
    means[:, axis] = offset
    means[:, (axis + 1) % 3], means[:, (axis + 2) % 3] = u, v
    normals, scales = torch.zeros_like(means), torch.full_like(means, 0.7 / SIDE)
    normals[:, axis] = 1.0
    scales[:, axis] = 0.001
    return means, normals, scales


def scene(*sheets, sided=False):
    means, normals, scales = (torch.cat(parts) for parts in zip(*sheets, strict=True))
    n = len(means)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(n, 4)
    occluders = occlusion.build(
        means, quats, scales, torch.full((n,), 0.95), torch.ones(n), 96, normals if sided else None
    )
    return means, normals, occluders


@pytest.fixture(scope="module")
def corner():
    """A floor (+z) and a wall (+x) that meet along y."""
    means, normals, occluders = scene(sheet(2), sheet(0))
    return means, normals, occluders, transfer.bake(means, normals, occluders)


def test_nothing_hides_from_an_open_floor():
    means, normals, occluders = scene(sheet(2))
    baked = transfer.bake(means, normals, occluders)
    torch.testing.assert_close(baked.sky.sum(1), torch.ones(len(means)), atol=1e-5, rtol=0)


def wall_factor(x: float, y: float) -> float:
    """Form factor from a floor point to the wall of the corner, by quadrature over the wall."""
    k = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
    w, z = torch.meshgrid(k, k, indexing="ij")
    square = x * x + (w - y) ** 2 + z * z
    return float((z * x / (math.pi * square.square())).mean())


def test_a_wall_hides_its_form_factor(corner):
    means, _, _, baked = corner
    found = baked.sky.sum(1)
    for x in (0.3, 0.5, 0.7):
        here = (means[:, 2] == 0) & ((means[:, 0] - x).abs() < 0.06) & ((means[:, 1] - 0.5).abs() < 0.2)
        want = 1 - sum(wall_factor(float(px), float(py)) for px, py in means[here, :2]) / int(here.sum())
        assert float(found[here].mean()) == pytest.approx(want, abs=0.025)


def test_what_is_hidden_is_lent(corner):
    """Every direction ends in the sky or in a cell: under one radiance all receive the same."""
    means, _, occluders, baked = corner
    even = baked.sky.sum(1, keepdim=True) + baked.reflected(torch.ones(len(occluders), 1))
    torch.testing.assert_close(even, torch.ones(len(means), 1), atol=1e-5, rtol=0)


def test_rays_meet_the_wall_that_stands_there(corner):
    means, normals, occluders, _ = corner
    middle = (means - torch.tensor([0.5, 0.5, 0.0])).norm(dim=1).argmin()
    start, up = means[middle][None], normals[middle][None]
    slanted = torch.tensor([[-0.8, 0.0, 0.6]])
    hit = occluders.trace(start, up, slanted)
    assert int(hit[0]) >= 0
    place = occluders.means_of(means)[hit[0]]
    # The ray leaves from a few cells above the floor.
    want = torch.tensor([0.0, 0.5, 0.375 + occlusion.OFFSET * occluders.cell])
    torch.testing.assert_close(place, want, atol=2 * occluders.cell, rtol=0)
    assert int(occluders.trace(start, up, -slanted * torch.tensor([1.0, 1.0, -1.0]))[0]) == -1
    assert int(occluders.trace(start, up, slanted, torch.tensor([0.3]))[0]) == -1


def test_walls_stop_light_from_either_side():
    """A thin wall's cells hold the normals of both its faces; only its own surface lets a ray out from behind."""
    means, normals, occluders = scene(sheet(2), sheet(0, 0.5), sided=True)
    middle = (means - torch.tensor([0.5, 0.5, 0.5])).norm(dim=1).argmin()
    assert float(normals[middle, 0]) == 1
    behind, away = torch.tensor([[0.1, 0.5, 0.0]]), torch.tensor([[0.8, 0.0, 0.6]])  # on the floor, at the wall's back
    hit = occluders.trace(behind, torch.tensor([[0.0, 0.0, 1.0]]), away)
    assert int(hit[0]) >= 0
    assert float(occluders.means_of(means)[hit[0], 0]) == pytest.approx(0.5, abs=0.02)
    slanted = torch.nn.functional.normalize(torch.tensor([[0.1, 0.0, 1.0]]), dim=1)
    assert int(occluders.trace(means[middle][None], normals[middle][None], slanted)[0]) == -1


def test_what_stands_close_behind_a_thin_wall_is_in_its_shadow():
    """Within the cells that a slanted ray may need to leave its own surface, too."""
    floor, wall = sheet(2), sheet(0, 0.5)
    _, _, occluders = scene(floor, wall, sided=True)  # the wall faces +x
    behind = torch.tensor([[0.5 - 1.7 * occluders.cell, 0.5, 0.0]])
    up, through = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.8, 0.0, 0.6]])
    hit = occluders.trace(behind, up, through)
    assert int(hit[0]) >= 0
    before = torch.tensor([[0.5 + 2 * occluders.cell, 0.5, 0.0]])
    assert int(occluders.trace(before, up, through)[0]) == -1


def test_neighbours_take_the_grain_away(corner):
    means, normals, occluders, grainy = corner
    nearest = torch.cdist(means, means).topk(9, largest=False).indices
    alike = (normals[:, None] * normals[nearest]).sum(-1) > 0.5
    near = torch.zeros(len(means), len(means)).scatter_(1, nearest, alike.float())
    baked = transfer.bake(means, normals, occluders, near.to_sparse_csr())
    floor = (means[:, 2] == 0) & (means[:, 0] > 0.2) & ((means[:, 1] - 0.5).abs() < 0.3)
    lines = int((floor & (means[:, 0] == means[floor][0, 0])).sum())  # along the wall nothing changes but the grain
    even, uneven = (t.sky.sum(1)[floor].reshape(-1, lines) for t in (baked, grainy))
    assert float(even.mean()) == pytest.approx(float(uneven.mean()), abs=0.01)
    assert float(even.std(1).mean()) < 0.6 * float(uneven.std(1).mean())


def test_light_is_reflected_on(corner):
    means, _, occluders, baked = corner
    sky = torch.ones(6, transfer.SIZE, transfer.SIZE, 3)
    albedo = torch.full((len(means), 3), 0.5)
    total, cells = baked.total(sky, albedo, occluders, bounces=1)
    direct = baked.direct(sky)
    assert bool((total >= direct - 1e-6).all())
    first = occluders.means_of(0.5 * direct)
    torch.testing.assert_close(total, direct + baked.reflected(first), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cells, occluders.means_of(0.5 * total), atol=1e-5, rtol=1e-4)


def test_nothing_solid_says_so():
    means, _, scales = sheet(2)
    n = len(means)
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).expand(n, 4)
    with pytest.raises(FeaturesplatError, match="fewer than 8"):
        occlusion.build(means, quats, scales, torch.full((n,), 0.01), torch.ones(n))
