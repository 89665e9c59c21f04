"""The training frame, and the way back to the data's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featuresplat.normalization import Normalization
from featuresplat.raster import rasterize
from featuresplat.types import Cameras, Gaussians, PointCloud

SHIFT = torch.tensor([1000.0, -2000.0, 500.0], dtype=torch.float64)


def moved_cameras(scene, shift=SHIFT, scale=50.0) -> Cameras:
    """The scene's cameras in a world where x becomes scale * x + shift."""
    viewmats = scene.viewmats.double().clone()
    U, _, Vh = torch.linalg.svd(viewmats[:, :3, :3])
    viewmats[:, :3, :3] = U @ Vh  # rotations to the precision of float64
    viewmats[:, :3, 3] = viewmats[:, :3, 3] * scale - viewmats[:, :3, :3] @ shift
    return Cameras(viewmats, scene.Ks.double(), scene.width, scene.height, None, list("abcd")[: len(viewmats)])


def cloud(xyz) -> PointCloud:
    xyz = torch.as_tensor(np.asarray(xyz), dtype=torch.float64)
    return PointCloud(xyz, torch.zeros(len(xyz), 3))


def test_extent_is_one_and_the_cameras_are_centred(make_scene):
    scene = make_scene(cameras=4)
    frame = Normalization.of(moved_cameras(scene), None)
    positions = frame.cameras(moved_cameras(scene)).positions
    torch.testing.assert_close(positions.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)
    assert float(positions.norm(dim=1).max()) == pytest.approx(1 / 1.1)


def test_same_frame_whatever_the_world(make_scene):
    scene = make_scene(cameras=4)
    still = moved_cameras(scene, torch.zeros(3, dtype=torch.float64), 1.0)
    a, b = Normalization.of(still, None), Normalization.of(moved_cameras(scene), None)
    torch.testing.assert_close(a.cameras(still).viewmats, b.cameras(moved_cameras(scene)).viewmats, atol=1e-9, rtol=0)
    points = cloud(scene.means.double())
    there = cloud(scene.means.double() * 50 + SHIFT)
    torch.testing.assert_close(a.points(points).xyz, b.points(there).xyz, atol=1e-6, rtol=0)


def test_rotations_stay(make_scene):
    cameras = moved_cameras(make_scene(cameras=4))
    out = Normalization.of(cameras, None).cameras(cameras)
    assert torch.equal(out.viewmats[:, :3, :3], cameras.viewmats[:, :3, :3])
    assert out.names == cameras.names


def test_undo_puts_gaussians_where_they_look_the_same(make_scene):
    """Rendered in the training frame by its cameras, and in the data's frame by the data's: one picture."""
    scene = make_scene(cameras=4, gaussians=30)
    cameras = moved_cameras(scene)
    frame = Normalization.of(cameras, None)
    g = Gaussians(
        scene.means * 0.3,
        scene.quats,
        (scene.scales * 0.3).log(),
        scene.opacities.logit(),
        scene.colors[:, None],
        torch.zeros(30, 0, 3),
    )
    back = frame.undo(g)
    torch.testing.assert_close(
        back.means.double(), g.means.double() / frame.scale + frame.center, atol=2e-4, rtol=0
    )  # float32 of a coordinate near 2000
    torch.testing.assert_close(back.scales, g.scales / frame.scale)
    view = frame.cameras(cameras)
    pictures = [
        rasterize(
            x.means.double(), x.quats.double(), x.scales.double(), x.opacities.double(), scene.colors.double(),
            c.viewmats, c.Ks, c.width, c.height, backend="reference",
        ).rgb
        for x, c in ((g, view), (back, cameras))
    ]  # fmt: skip
    torch.testing.assert_close(pictures[0], pictures[1], atol=1e-3, rtol=0)


def test_standing_cameras_take_the_scale_of_the_points(make_scene):
    scene = make_scene(cameras=1)
    cameras = moved_cameras(scene)
    center = cameras.positions[0]
    far = cloud(center + 7 * torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=1))
    assert Normalization.of(cameras, far).scale == pytest.approx(1 / 7)
    assert Normalization.of(cameras, None).scale == 1.0


def test_points_do_not_matter_where_cameras_move(make_scene):
    cameras = moved_cameras(make_scene(cameras=4))
    assert Normalization.of(cameras, cloud([[0.0, 0, 0]])).scale == Normalization.of(cameras, None).scale


def test_units_are_plain_and_describe_the_map(make_scene):
    cameras = moved_cameras(make_scene(cameras=4))
    frame = Normalization.of(cameras, None)
    units = frame.units()
    assert set(units) == {"center", "scale"}
    assert all(isinstance(v, float) for v in [*units["center"], units["scale"]])
    x = torch.tensor([[1.0, 2, 3]], dtype=torch.float64)
    expected = (x - torch.tensor(units["center"], dtype=torch.float64)) * units["scale"]
    torch.testing.assert_close(frame.points(cloud(x)).xyz.double(), expected, atol=1e-4, rtol=1e-6)
