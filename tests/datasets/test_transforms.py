"""transforms.json: intrinsics in all their places, paths, pairs, points, and what can be wrong."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import SHARED, frame, opengl_c2w, picture, pose, save, transforms_scene

from featuresplat.config import DataConfig
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError

PLY = (
    "ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty float y\nproperty float z\n"
    "property uchar red\nproperty uchar green\nproperty uchar blue\nend_header\n1 2 3 255 0 0\n4 5 6 0 255 0\n"
)


def test_poses_and_intrinsics(tmp_path):
    data = load_dataset(transforms_scene(tmp_path))
    assert data.kind == "transforms"
    for k in range(9):
        np.testing.assert_allclose(data.cameras.viewmats[k], pose(k), atol=1e-12)
        assert np.array_equal(data.image(k), picture(seed=k))
    assert data.cameras.Ks[0].tolist() == [[20.0, 0.0, 12.0], [0.0, 21.0, 8.0], [0.0, 0.0, 1.0]]
    assert data.cameras.names[8] == "img_8.png"
    assert data.test == [0, 8]


def test_a_camera_that_looks_at_the_origin(tmp_path):
    """OpenGL: at (0, 0, 5) without rotation the camera looks down -z; (1, 2, 0) is then right, above and 5 in front."""
    c2w = np.eye(4)
    c2w[2, 3] = 5.0
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture())
    frames = [{"file_path": n, "transform_matrix": c2w.tolist()} for n in ("a.png", "b.png")]
    data = load_dataset(transforms_scene(tmp_path, frames=frames))
    point = data.cameras.viewmats[0] @ torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    assert point.tolist() == [1.0, -2.0, 5.0, 1.0]


def test_intrinsics_of_each_frame(tmp_path):
    save(tmp_path / "images" / "a.png", picture(24, 16))
    save(tmp_path / "images" / "b.png", picture(30, 20))
    frames = [frame("images/a.png", 0), frame("images/b.png", 1, fl_x=50.0, fl_y=51.0, cx=14.0, cy=11.0, w=30, h=20)]
    data = load_dataset(transforms_scene(tmp_path, frames=frames))
    assert data.cameras.widths == (24, 30)
    assert data.cameras.Ks[1].tolist() == [[50.0, 0.0, 14.0], [0.0, 51.0, 11.0], [0.0, 0.0, 1.0]]


def test_field_of_view_and_no_size(tmp_path):
    """Only camera_angle_x: focal length from the file's width, centre in the middle."""
    transforms_scene(tmp_path, fl_x=None, fl_y=None, cx=None, cy=None, w=None, h=None, camera_angle_x=0.9)
    K = load_dataset(tmp_path).cameras.Ks[0]
    f = 12 / math.tan(0.45)
    np.testing.assert_allclose(K, [[f, 0, 12], [0, f, 8], [0, 0, 1]])


@pytest.mark.parametrize("stored", ["images/x", "./images/x", "images\\x.png", "images/../images/x.png"])
def test_paths(tmp_path, stored):
    """Endings left out, backslashes."""
    save(tmp_path / "images" / "x.png", picture(seed=3))
    save(tmp_path / "images" / "y.png", picture(seed=4))
    data = load_dataset(transforms_scene(tmp_path, frames=[frame(stored, 0), frame("images/y.png", 1)]))
    assert np.array_equal(data.image(0), picture(seed=3))


@pytest.mark.parametrize("stored", ["../x.png", "/etc/x.png", "images/../../x.png", "C:\\x.png"])
def test_paths_that_leave_the_folder(tmp_path, stored):
    transforms_scene(tmp_path, frames=[frame(stored, 0)])
    with pytest.raises(FeaturesplatError, match="points outside of the folder"):
        load_dataset(tmp_path)


def test_a_pair_is_the_split(tmp_path):
    """Also where a transforms.json lists all of them; the json file itself can be given, too."""
    transforms_scene(tmp_path, 4)
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    transforms_scene(tmp_path, name="transforms_train.json", frames=[frames[0], frames[3]])
    transforms_scene(tmp_path, name="transforms_test.json", frames=[frames[2], frames[1]])
    data = load_dataset(tmp_path)
    assert (data.kind, data.train, data.test) == ("transforms", [0, 3], [1, 2])
    assert load_dataset(tmp_path / "transforms.json").test == [0]
    assert load_dataset(tmp_path, DataConfig(split="every", test_every=2)).test == [0, 2]
    assert load_dataset(tmp_path, DataConfig(split="all")).train == [0, 1, 2, 3]


def test_lists_of_names(tmp_path):
    """nerfstudio's train_filenames and test_filenames; what is in neither is left out."""
    lists = {"train_filenames": ["images/img_1.png", "./images/img_2.png"], "test_filenames": ["images/img_0.png"]}
    transforms_scene(tmp_path, 4, **lists)
    data = load_dataset(tmp_path)
    assert list(data.cameras.names) == ["img_0.png", "img_1.png", "img_2.png"]
    assert (data.train, data.test) == ([1, 2], [0])


def test_points(tmp_path):
    """Named, or points3d.ply beside the file; applied_transform does not move them: poses have it already."""
    transforms_scene(tmp_path, 3, ply_file_path="sparse_pc.ply", applied_transform=[[0, 1, 0, 9.0], [1, 0, 0, 0]])
    (tmp_path / "sparse_pc.ply").write_text(PLY)
    points = load_dataset(tmp_path).points
    assert points is not None
    assert points.xyz.tolist() == [[1, 2, 3], [4, 5, 6]]
    transforms_scene(tmp_path, 3)
    assert load_dataset(tmp_path).points is None
    (tmp_path / "sparse_pc.ply").rename(tmp_path / "points3d.ply")
    assert load_dataset(tmp_path).points is not None
    transforms_scene(tmp_path, 3, ply_file_path="sparse_pc.ply")
    with pytest.raises(FeaturesplatError, match=r"the point cloud sparse_pc\.ply does not exist"):
        load_dataset(tmp_path)


def test_depth_mask_and_time(tmp_path):
    depth = np.arange(24 * 16, dtype=np.uint16).reshape(16, 24) + 1000
    depth[0, 0] = 0
    save(tmp_path / "d.png", depth)
    mask = np.full((16, 24), 255, np.uint8)
    mask[4:8, 6:12] = 0
    save(tmp_path / "m.png", mask)
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture())
    frames = [frame("a.png", 0, depth_file_path="d.png", mask_path="m.png", time=0.25), frame("b.png", 1, time=1)]
    transforms_scene(tmp_path, frames=frames)
    data = load_dataset(tmp_path)
    got, used = data.depth(0), data.mask(0)
    assert got is not None
    assert used is not None
    assert data.depth(1) is None
    np.testing.assert_allclose(got, depth / 1000, rtol=1e-6)
    assert np.array_equal(used, mask > 0)
    assert data.cameras.times is not None
    assert data.cameras.times.tolist() == [0.25, 1.0]
    assert load_dataset(tmp_path, DataConfig(masks="none")).mask(0) is None
    del frames[1]["time"]
    transforms_scene(tmp_path, frames=frames)
    with pytest.raises(FeaturesplatError, match="1 of 2 frames have no `time`"):
        load_dataset(tmp_path)


def test_depth_is_undistorted_like_the_image(tmp_path):
    """A plane of depth 1 with a step: the step moves to the same column in both."""
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 70:] = 255
    save(tmp_path / "a.png", pixels)
    save(tmp_path / "b.png", pixels)
    save(tmp_path / "d.png", np.where(pixels[..., 0] > 0, 2000, 1000).astype(np.uint16))
    frames = [frame("a.png", 0, depth_file_path="d.png"), frame("b.png", 1)]
    transforms_scene(tmp_path, frames=frames, fl_x=60.0, fl_y=60.0, cx=40.0, cy=30.0, w=80, h=60, k1=0.2)
    data = load_dataset(tmp_path)
    depth = data.depth(0)
    assert depth is not None
    # x' = 0.5 at the step; x (1 + 0.2 x^2) = 0.5 at x = 0.4783, 28.7 px right of the centre: between 68.5 and 69.5.
    assert (depth[30] == 2).nonzero()[0, 0] == 69
    assert ((data.image(0)[30, :, 0] > 127) == (depth[30] == 2))[:-6].all()


def bad_frame(**more):
    return {**frame("images/img_0.png", 0), **more}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (bad_frame(transform_matrix=(np.eye(4) * np.nan).tolist()), "the pose holds NaN"),
        (bad_frame(transform_matrix=(2 * np.eye(4)).tolist()), "the pose is not rigid"),
        (bad_frame(transform_matrix=np.diag([1.0, 1, -1, 1]).tolist()), "the pose is mirrored"),
        (bad_frame(transform_matrix=[[1, 2], [3, 4]]), "expected a pose of 4x4 numbers"),
        (bad_frame(transform_matrix="none"), "expected a pose of 4x4 numbers"),
        (bad_frame(fl_x="wide"), "`fl_x` is 'wide', expected a finite number"),
        (bad_frame(fl_x=-3.0), "focal lengths above 0"),
        (bad_frame(camera_model="EQUIRECTANGULAR"), "camera model EQUIRECTANGULAR cannot be read"),
        (bad_frame(mask_path="no.png"), r"the mask no\.png does not exist"),
        (bad_frame(depth_file_path="no.png"), r"the depth map no\.png does not exist"),
        ({"transform_matrix": np.eye(4).tolist()}, "frame 0 has no `file_path`"),
        (bad_frame(file_path="images/gone.png"), r"1 of 1 images are missing, the first is .*gone\.png"),
    ],
)
def test_bad_frames(tmp_path, entry, message):
    save(tmp_path / "images" / "img_0.png", picture())
    transforms_scene(tmp_path, frames=[entry])
    with pytest.raises(FeaturesplatError, match=message):
        load_dataset(tmp_path)


@pytest.mark.parametrize("name", ["transforms.json", "transforms_train.json"])
@pytest.mark.parametrize("text", ['{"frames": [', "[1, 2]", '{"frames": 3}', "", '{"fl_x": 1}'])
def test_broken_json(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(FeaturesplatError, match=f"{name}: (is not valid JSON|expected an object)"):
        load_dataset(tmp_path)


def test_no_frames(tmp_path):
    transforms_scene(tmp_path, frames=[])
    with pytest.raises(FeaturesplatError, match="no image is registered"):
        load_dataset(tmp_path)


def test_no_intrinsics(tmp_path):
    transforms_scene(tmp_path, 2, fl_x=None)
    with pytest.raises(FeaturesplatError, match="neither a focal length"):
        load_dataset(tmp_path)


def test_slightly_rounded_rotations_become_exact(tmp_path):
    c2w = np.round(opengl_c2w(pose(2)), 3)
    save(tmp_path / "a.png", picture())
    save(tmp_path / "b.png", picture())
    frames = [{"file_path": n, "transform_matrix": c2w.tolist()} for n in ("a.png", "b.png")]
    R = load_dataset(transforms_scene(tmp_path, frames=frames)).cameras.viewmats[0, :3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(R, pose(2)[:3, :3], atol=1e-3)


@pytest.mark.skipif(not (SHARED / "fox").is_dir(), reason="needs ../shared/scenes/fox")
def test_fox_is_undistorted():
    data = load_dataset(SHARED / "fox")
    assert (len(data), len(data.train), len(data.test)) == (50, 43, 7)
    with Image.open(SHARED / "fox" / "images" / data.cameras.names[0]) as image:
        stored = np.asarray(image).astype(float)
    change = np.abs(data.image(0).numpy() - stored).mean(-1)
    assert change[300:340, 165:205].mean() < 1.0  # the middle stays
    assert change.mean() > 1.0  # the rest moves


@pytest.mark.skipif(not (SHARED / "tabletop").is_dir(), reason="needs ../shared/scenes/tabletop")
def test_tabletop_depth_reprojects():
    """True depth of one view, carried into another, agrees with that view's own depth."""
    data = load_dataset(SHARED / "tabletop", DataConfig(depths=SHARED / "tabletop" / "depth"))
    assert (data.kind, len(data.train), len(data.test)) == ("transforms", 60, 12)
    assert data.points is not None
    a, b = data.train[0], data.train[1]
    K, views = data.cameras.Ks[a], data.cameras.viewmats
    da, db = data.depth(a), data.depth(b)
    assert da is not None
    assert db is not None
    v, u = torch.meshgrid(torch.arange(300) + 0.5, torch.arange(400) + 0.5, indexing="ij")
    rays = torch.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], torch.ones_like(u)], -1).double()
    known = da > 0
    world = (
        torch.linalg.inv(views[a]) @ torch.cat([rays[known].T * da[known], torch.ones(1, int(known.sum()))]).double()
    )
    cam = (views[b] @ world)[:3]
    uv = (K @ cam)[:2] / cam[2]
    col, row = uv.floor().long()
    inside = (col >= 0) & (col < 400) & (row >= 0) & (row < 300)
    seen = db[row[inside], col[inside]].double()
    error = (seen - cam[2][inside]).abs()[seen > 0]
    assert len(error) > 20_000
    assert error.median() < 0.005  # metres; neighbouring pixels of the slanted table differ by as much
    assert (error < 0.05).double().mean() > 0.8  # the rest is hidden in the other view
