"""Environment maps: where texels look, and that nothing is lost between the two layouts."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat.geometry import sh_bases
from featuresplat.shading import cubemap


def smooth(dirs):
    """A smooth function of direction, [..., 3]."""
    g = torch.Generator().manual_seed(0)
    return sh_bases(dirs, 3) @ torch.randn(16, 3, generator=g)


def test_texels_look_where_lookups_find_them():
    dirs = cubemap.directions(8)
    face, s, t = cubemap.locate(dirs.reshape(-1, 3))
    at = (torch.arange(8) + 0.5) / 8
    assert torch.equal(face.reshape(6, 8, 8), torch.arange(6)[:, None, None].expand(6, 8, 8))
    torch.testing.assert_close(s.reshape(6, 8, 8), at[None, None, :].expand(6, 8, 8))
    torch.testing.assert_close(t.reshape(6, 8, 8), at[None, :, None].expand(6, 8, 8))


def test_faces_are_laid_out_as_opengl_does():
    # The table of the OpenGL specification: (major axis, sc, tc) of the six faces, at the direction s = 1, t = 0.
    corner = cubemap.directions(1024)[:, 0, -1]
    want = [(1, 1, -1), (-1, 1, 1), (1, 1, -1), (1, -1, 1), (1, 1, 1), (-1, 1, -1)]
    torch.testing.assert_close(torch.sign(corner), torch.tensor(want, dtype=torch.float32))


def test_solid_angles_fill_the_sphere():
    for size in (1, 2, 16):
        assert float(cubemap.solid_angles(size).double().sum()) * 6 == pytest.approx(4 * math.pi, rel=1e-6)
    # A face of one texel is a sixth of the sphere; the middle texel of many is 4 / S^2.
    assert float(cubemap.solid_angles(101)[50, 50]) == pytest.approx(4 / 101**2, rel=1e-3)


def test_lookups_show_no_seam():
    cube = smooth(cubemap.directions(32))
    g = torch.Generator().manual_seed(1)
    dirs = torch.nn.functional.normalize(torch.randn(4000, 3, generator=g), dim=1)
    # Directions at edges and corners of the cube, too.
    edges = torch.nn.functional.normalize(torch.sign(dirs) * torch.tensor([1.0, 1.0, 0.3]) + 1e-4 * dirs, dim=1)
    for d in (dirs, edges):
        assert float((cubemap.sample(cube, d) - smooth(d)).abs().max()) < 0.03


def test_round_trip_between_the_layouts():
    equirect = smooth(cubemap.equirect_directions(64, 128))
    cube = cubemap.from_equirect(equirect, 64)
    assert float((cube - smooth(cubemap.directions(64))).abs().max()) < 0.02
    back = cubemap.to_equirect(cube, 64, 128)
    assert float((back - equirect).abs().max()) < 0.03


def test_blender_directions():
    # Row 0 is the zenith, the middle column looks to +x, a quarter to the left of it to +y.
    image = torch.zeros(64, 128, 1)
    image[0] = 1
    image[31:33, 63:65] = 2
    image[31:33, 31:33] = 3
    looks = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, -1]])
    assert cubemap.sample_equirect(image, looks)[:, 0].tolist() == pytest.approx([1, 2, 3, 0], abs=1e-5)


def test_a_small_lamp_keeps_its_energy():
    image = torch.full((128, 256, 3), 0.1)
    image[40, 100] = 1000.0
    theta = math.pi * (torch.arange(128) + 0.5) / 128
    area = (theta.sin() * 2 * math.pi / 256 * math.pi / 128)[:, None, None]
    given = float((image * area).sum())
    for size in (16, 32, 64):
        cube = cubemap.from_equirect(image, size)
        kept = float((cube * cubemap.solid_angles(size)[None, ..., None]).sum())
        assert kept == pytest.approx(given, rel=0.03)


def test_shrinking_keeps_energy():
    cube = torch.rand(6, 32, 32, 3, generator=torch.Generator().manual_seed(3))
    area = cubemap.solid_angles(32)[None, ..., None]
    small = cubemap.shrink(cube, 4)
    assert small.shape == (6, 8, 8, 3)
    torch.testing.assert_close(
        (small * cubemap.solid_angles(8)[None, ..., None]).sum((0, 1, 2)), (cube * area).sum((0, 1, 2))
    )


def test_turning_the_light():
    cube = smooth(cubemap.directions(64))
    angle = math.radians(40)
    R = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turned = cubemap.turned(cube, R)
    d = torch.nn.functional.normalize(torch.randn(500, 3, generator=torch.Generator().manual_seed(4)), dim=1)
    assert float((cubemap.sample(turned, d @ R.T) - smooth(d)).abs().max()) < 0.03


def test_gradients_of_lookups():
    cube = torch.rand(6, 4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5), requires_grad=True)
    dirs = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6), requires_grad=True)
    assert torch.autograd.gradcheck(cubemap.sample, (cube, dirs), eps=1e-7, atol=1e-5)
