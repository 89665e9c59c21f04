"""The first guess of the mode inverse: materials by search, lamps that were clipped."""

from __future__ import annotations

import math

import pytest
import torch
from directions import spiral
from torch.nn import functional as F

from featuresplat import raster
from featuresplat.geometry import rotmat_to_quat
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes._inverse_curvature import curvature
from featuresplat.modes._inverse_lamps import GAINS, lamps_gain
from featuresplat.modes._inverse_light import FOLLOWED, KNOWN, FittedLight
from featuresplat.modes._inverse_search import Before, searched
from featuresplat.modes._inverse_solve import Views, neighbours
from featuresplat.shading import cubemap, tone, transfer
from featuresplat.shading.deferred import Lighting, Received, shade
from featuresplat.types import Cameras, Gaussians

CPU = torch.device("cpu")


def test_lamps_are_brightened_until_the_mean_has_grown():
    cube = torch.full((6, 16, 16, 3), 0.2)
    cube[4, 4:8, 4:8] = 1.5
    light = FittedLight(32, torch.tensor(1.0), CPU, 0.0, 0.0)
    light.set(cubemap.sample(cube, cubemap.directions(32)).log())
    area = cubemap.solid_angles(32)[None, ..., None]
    before, dim = float((light.cube() * area).sum()), light.cube()[5].clone()
    grown = light.brighten_lamps(1.3)
    assert grown == pytest.approx(1.3, rel=1e-4)
    assert float((light.cube() * area).sum()) == pytest.approx(1.3 * before, rel=1e-3)
    torch.testing.assert_close(light.cube()[5], dim, atol=1e-4, rtol=1e-3)
    assert light.brighten_lamps(0.7) == 1.0


def test_steps_follow_lamps_only_so_far():
    """However many: photographs cut them, and nothing would pull them back."""
    light = FittedLight(32, torch.tensor(0.5), CPU, 0.0, 0.0)
    with torch.no_grad():
        light.params["light2"][2, 3, 3] += 5.0
    dim = light.cube()[0]
    light.filter()
    assert float(light.cube().max()) == pytest.approx(FOLLOWED, rel=1e-3)
    torch.testing.assert_close(light.cube()[0], dim)
    light.set_lamps(4.0)  # now they are as bright as they are
    bright = light.cube()
    assert float(bright.max()) == pytest.approx(4 * FOLLOWED, rel=1e-3)
    with torch.no_grad():
        light.params["light0"][2] += 1.5
    light.filter()
    torch.testing.assert_close(light.cube()[2].amax((0, 1)), bright[2].amax((0, 1)), rtol=1e-3, atol=0)
    assert float(light.cube()[2, 20, 20].max()) == pytest.approx(KNOWN, rel=1e-3), "what is no lamp becomes none"
    with torch.no_grad():
        light.params["light0"][2] -= 1.0
    light.filter()
    assert float(light.cube().max()) < 0.5 * float(bright.max()), "but they may become dimmer"
    other = FittedLight(32, torch.tensor(0.5), CPU, 0.0, 0.0)
    for name, value in light.params.items():
        other.params[name].data.copy_(value.detach())
    other.restore(light.gathered())
    assert torch.equal(other.cube(), light.cube()), "a resumed run has the same light"
    assert torch.equal(other.most, light.most)


def lit_floor(gain: float) -> tuple[torch.Tensor, ...]:
    """A floor of two colours, a third of it in shadow, under lamps that are ``gain`` times what is taken: means,
    diffuse radiance, irradiance of the lamps as taken, and of all else."""
    draw = torch.Generator().manual_seed(0)
    means = torch.cat([torch.rand(3000, 2, generator=draw), torch.zeros(3000, 1)], 1)
    color = torch.where(means[:, 1:2] < 0.5, torch.tensor([[0.6, 0.5, 0.3]]), torch.tensor([[0.2, 0.3, 0.5]]))
    color = color * (1 + 0.05 * torch.randn(3000, 1, generator=draw))
    lamps = 0.3 * torch.sigmoid(20 * (means[:, :1] - 0.33)).expand(-1, 3)
    rest = torch.full_like(lamps, 0.25) + 0.05 * means[:, 1:2]
    return means, color * (rest + gain * lamps), lamps, rest


@pytest.mark.parametrize("gain", [1.0, 1.6, 3.0])
def test_lamps_are_as_bright_as_makes_colours_even(gain):
    means, shown, lamps, rest = lit_floor(gain)
    up = torch.tensor([[0.0, 0.0, 1.0]]).expand_as(means)
    usable = torch.ones(len(means), dtype=torch.bool)
    found = lamps_gain(means, shown, lamps, rest, usable, neighbours(means, up))
    assert found == pytest.approx(gain, rel=0.07)  # half a step between those that are tried
    assert found in GAINS


def test_without_lamps_or_matt_things_lamps_stay():
    means, shown, lamps, rest = lit_floor(1.0)
    near = neighbours(means, torch.tensor([[0.0, 0.0, 1.0]]).expand_as(means))
    some = torch.ones(len(means), dtype=torch.bool)
    assert lamps_gain(means, shown, torch.zeros_like(lamps), rest, some, near) == 1.0
    assert lamps_gain(means, shown, lamps, rest, ~some, near) == 1.0


def two_balls() -> tuple[Gaussians, torch.Tensor]:
    """A metal and a dielectric ball of flat Gaussians, 700 each, and their normals; the first half is metal."""
    normals = spiral(700)
    helper = torch.where(normals[:, :1].abs() < 0.7, *torch.eye(3)[:2])
    first = F.normalize(torch.linalg.cross(normals, helper), dim=1)
    frame = torch.stack([first, torch.linalg.cross(normals, first), normals], -1)
    means = torch.cat([0.5 * normals + torch.tensor([x, 0.0, 0.0]) for x in (-0.6, 0.6)])
    n = len(means)
    g = Gaussians(
        means, rotmat_to_quat(frame).repeat(2, 1), torch.tensor([-3.3, -3.3, -6.0]).repeat(n, 1),
        torch.full((n,), 5.0), torch.zeros(n, 1, 3), torch.zeros(n, 0, 3),
    )  # fmt: skip
    return g, normals.repeat(2, 1)


def test_the_search_tells_metal_from_dielectric_and_finds_their_colours():
    g, normals = two_balls()
    count = len(normals) // 2
    color = torch.tensor([[0.9, 0.6, 0.3], [0.6, 0.15, 0.1]]).repeat_interleave(count, 0)
    metallic = torch.tensor([1.0, 0.0]).repeat_interleave(count)[:, None]
    dirs = cubemap.directions(32)
    cube = (
        0.3 + 0.3 * dirs[..., 2:] + 2.0 * ((dirs @ F.normalize(torch.tensor([1.0, 1.0, 2.0]), dim=0)) > 0.93)[..., None]
    )
    light = FittedLight(32, torch.tensor(1.0), CPU, 0.0, 0.0)
    light.set(cube.expand(-1, -1, -1, 3).clamp_min(0.02).log())
    light.filter()
    assert light.atlas is not None
    assert light.directions is not None
    direct = transfer.open_sky(normals) @ light.directions.detach()
    received = Received(direct, torch.zeros_like(direct), torch.ones(len(direct)))
    rough = torch.full_like(metallic, 0.3)
    features = torch.cat([color, rough, metallic, rough, normals, direct, torch.zeros_like(direct), rough], 1)
    bend = curvature(g.means, normals, g.scales)
    size, viewmats, images = 48, [], []
    for k in range(8):
        eye = 3.0 * F.normalize(torch.tensor([math.cos(0.8 * k), math.sin(0.8 * k), 0.3 + 0.1 * k]), dim=0)
        forward = -F.normalize(eye, dim=0)
        right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
        R = torch.stack([right, torch.linalg.cross(forward, right), forward])
        viewmats.append(torch.cat([torch.cat([R, -(R @ eye)[:, None]], 1), torch.tensor([[0.0, 0.0, 0.0, 1.0]])]))
    K = torch.tensor([[60.0, 0.0, 24.0], [0.0, 60.0, 24.0], [0.0, 0.0, 1.0]])
    for viewmat in viewmats:
        centre, rays = px.view_rays(viewmat, K, size, size)
        out = raster.rasterize(
            g.means, g.quats, g.scales, g.opacities, None, viewmat[None], K[None], size, size,
            features=torch.cat([features, bend, g.means - centre], 1),
        )  # fmt: skip
        assert out.features is not None
        pixels = px.pixels_of(out.features[0], out.alpha[0], out.depth[0], centre, rays)
        parts = shade(pixels.surface, pixels.received, Lighting(light.prefilter, light.atlas.detach()))
        shown = px.spread(tone.display(parts[0] + parts[1]) * pixels.alpha, pixels.rows, size, size)
        images.append((255 * shown).round().byte())
    cameras = Cameras(torch.stack(viewmats).double(), K.double().repeat(8, 1, 1), size, size)
    views = Views(cameras, lambda i: images[i], CPU, settings=raster.RasterSettings(), backend=None)
    near = neighbours(g.means, normals)
    guess = searched(g, normals, received, light, views, None, None, near)
    lit = normals[:, 2] > 0  # below, both are nearly black
    metal, other = lit & (metallic[:, 0] > 0.5), lit & (metallic[:, 0] < 0.5)
    assert float(guess.metallic[metal].mean()) > 0.97
    assert float(guess.metallic[other].mean()) < 0.03
    found = torch.stack([guess.base_color[rows].median(0).values for rows in (metal, other)])
    torch.testing.assert_close(found, color[[0, count]], atol=0.06, rtol=0)
    assert float(guess.roughness[metal].median()) == pytest.approx(0.3, abs=0.01)  # a share of its neighbours is in it
    before = Before(torch.ones(len(normals)), True, guess.base_color, guess.metallic)
    told = searched(g, normals, received, light, views, None, None, near, before)
    assert float(told.metallic.max()) == 0  # whatever it looks like
