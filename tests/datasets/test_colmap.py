"""COLMAP models: both encodings, every camera model, and what can be wrong with them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import POINTS, SHARED, colmap_scene, picture, pose, project, save

from featuresplat.config import DataConfig
from featuresplat.datasets import colmap, load_dataset
from featuresplat.errors import FeaturesplatError

# Parameters for an image of 200x150, strong enough to move the corners by ten pixels.
LENSES = {
    "SIMPLE_PINHOLE": (160.0, 101.0, 74.0),
    "PINHOLE": (160.0, 163.0, 101.0, 74.0),
    "SIMPLE_RADIAL": (160.0, 101.0, 74.0, -0.12),
    "RADIAL": (160.0, 101.0, 74.0, -0.12, 0.03),
    "OPENCV": (160.0, 163.0, 101.0, 74.0, -0.15, 0.05, 0.004, -0.003),
    "FULL_OPENCV": (160.0, 163.0, 101.0, 74.0, -0.1, 0.04, 0.004, -0.003, 0.01, 0.05, 0.02, 0.005),
    "OPENCV_FISHEYE": (160.0, 163.0, 101.0, 74.0, -0.05, 0.02, -0.01, 0.002),
    "SIMPLE_RADIAL_FISHEYE": (160.0, 101.0, 74.0, -0.05),
    "RADIAL_FISHEYE": (160.0, 101.0, 74.0, -0.05, 0.02),
}


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "text"])
@pytest.mark.parametrize("folder", ["sparse/0", "sparse", "colmap/sparse/0", "model"])
def test_layouts(tmp_path, binary, folder):
    colmap_scene(tmp_path, binary=binary, folder=folder)
    data = load_dataset(tmp_path / "model" if folder == "model" else tmp_path)
    assert data.kind == "colmap"
    assert list(data.cameras.names) == [f"img_{k}.png" for k in range(9)]
    for k in range(9):
        np.testing.assert_allclose(data.cameras.viewmats[k], pose(k), atol=1e-12)
        assert np.array_equal(data.image(k), picture(seed=k))
    assert data.cameras.Ks[3].tolist() == [[20.0, 0.0, 12.0], [0.0, 21.0, 8.0], [0.0, 0.0, 1.0]]
    assert data.cameras.viewmats.dtype == data.cameras.Ks.dtype == torch.float64
    assert data.points is not None
    assert data.points.xyz.tolist() == [list(xyz) for xyz, *_ in POINTS]
    np.testing.assert_allclose(data.points.rgb, [np.array(rgb) / 255 for _, rgb, _ in POINTS], atol=1e-7)


@pytest.mark.parametrize("model", LENSES)
def test_undistortion_agrees_with_projection(tmp_path, model):
    """Blobs drawn where the distorted model projects 3D points must come out where the pinhole projects them."""
    params, size = LENSES[model], (200, 150)
    rng = np.random.default_rng(1)
    points = rng.uniform([-0.5, -0.36, 1.0], [0.5, 0.36, 1.0], (400, 3)) * rng.uniform(1, 4, (400, 1))
    distorted = project(model, params, points)
    chosen: list[int] = []
    for i, uv in enumerate(distorted):
        apart = all(np.hypot(*(uv - distorted[j])) > 25 for j in chosen)
        if apart and (uv > 12).all() and (uv < np.array(size) - 12).all():
            chosen.append(i)
    colmap_scene(tmp_path, 1, model, params, size)
    # Pixel centres at +0.5: pixel (j, i) covers the point (j + 0.5, i + 0.5).
    x, y = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5)
    field = sum(np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 2.0**2)) for u, v in distorted[chosen])
    save(tmp_path / "images" / "img_0.png", np.rint(np.repeat(field[..., None], 3, -1) * 250).astype(np.uint8))
    data = load_dataset(tmp_path, DataConfig(split="all"))
    image = data.image(0)[..., 0].numpy().astype(float)
    fx, _, cx, _, fy, cy = data.cameras.Ks[0].flatten()[:6].tolist()
    tested = 0
    for X, Y, Z in points[chosen]:
        u, v = fx * X / Z + cx, fy * Y / Z + cy
        if not (10 < u < size[0] - 10 and 10 < v < size[1] - 10):
            continue
        near = np.where(np.hypot(x - u, y - v) < 7, image, 0)
        found = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
        assert np.hypot(*(found - [u, v])) < 0.12
        tested += 1
    assert tested >= 12


def test_undistortion_matters(tmp_path):
    """The lenses of the test above move points by several pixels, so that it cannot pass by doing nothing."""
    corner = np.array([[0.55, 0.4, 1.0]])
    plain = project("PINHOLE", (160.0, 163.0, 101.0, 74.0), corner)
    for model, params in LENSES.items():
        moved = np.hypot(*(project(model, params, corner) - plain)[0])
        assert moved > 1.0 or model in ("PINHOLE", "SIMPLE_PINHOLE"), model


def test_border_without_a_source_is_masked(tmp_path):
    """A pincushion lens leaves the corners of the pinhole without pixels."""
    colmap_scene(tmp_path, 2, "SIMPLE_RADIAL", (160.0, 100.0, 75.0, 0.3), (200, 150))
    data = load_dataset(tmp_path, DataConfig(split="all"))
    mask = data.mask(0)
    assert mask is not None
    assert mask.dtype == torch.bool
    assert mask[75, 100]
    assert not mask[0, 0]
    assert not mask[-1, -1]
    # The file ends at x' = -0.625; x (1 + 0.3 x^2) = -0.625 at x = -0.5695, which is 8.9 px from the border.
    assert not mask[75, 8]
    assert mask[75, 9]


def test_folded_polynomial_is_masked(tmp_path):
    """Where x (1 + k x^2) turns back, the file's pixels are shown already: not twice."""
    colmap_scene(tmp_path, 2, "SIMPLE_RADIAL", (100.0, 100.0, 75.0, -0.5), (200, 150))
    mask = load_dataset(tmp_path, DataConfig(split="all")).mask(0)
    # d/dr (r - 0.5 r^3) = 0 at r = 0.8165: 81.65 px from the centre.
    assert mask is not None
    assert mask[75, 180]
    assert not mask[75, 183]


@pytest.mark.parametrize("model", ["FOV", "THIN_PRISM_FISHEYE"])
def test_unreadable_model_is_named(tmp_path, model):
    colmap_scene(tmp_path, 2, model, (1.0,) * (5 if model == "FOV" else 12))
    with pytest.raises(FeaturesplatError, match=f"camera model {model} cannot be read") as error:
        load_dataset(tmp_path)
    assert "image_undistorter" in error.value.hint


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("cut", [1, 12, 20])
def test_truncated(tmp_path, file, cut):
    path = colmap_scene(tmp_path) / "sparse" / "0" / file
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(FeaturesplatError, match=f"{file}: is truncated or damaged"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("file", ["cameras.bin", "images.bin", "points3D.bin"])
def test_lying_count(tmp_path, file):
    path = colmap_scene(tmp_path) / "sparse" / "0" / file
    path.write_bytes(struct.pack("<Q", 2**60) + path.read_bytes()[8:])
    with pytest.raises(FeaturesplatError, match=f"{file}: is truncated or damaged"):
        load_dataset(tmp_path)


@pytest.mark.parametrize("file", ["cameras.txt", "images.txt", "points3D.txt"])
def test_broken_text(tmp_path, file):
    path = colmap_scene(tmp_path, binary=False) / "sparse" / "0" / file
    path.write_text("1 what is this\n")
    with pytest.raises(FeaturesplatError, match=f"{file}: is truncated or damaged"):
        load_dataset(tmp_path)


def test_no_registered_images(tmp_path):
    colmap_scene(tmp_path, 0)
    with pytest.raises(FeaturesplatError, match="no image is registered"):
        load_dataset(tmp_path)


def test_missing_images_are_counted(tmp_path):
    colmap_scene(tmp_path)
    for k in (4, 2):
        (tmp_path / "images" / f"img_{k}.png").unlink()
    with pytest.raises(FeaturesplatError, match=r"2 of 9 images are missing, the first is .*img_[24]\.png"):
        load_dataset(tmp_path)


def test_nan_pose(tmp_path):
    broken = pose(1)
    broken[0, 3] = np.nan
    colmap_scene(tmp_path, 3, poses=[pose(0), broken, pose(2)])
    with pytest.raises(FeaturesplatError, match=r"img_1\.png: the pose holds NaN"):
        load_dataset(tmp_path)


def test_name_that_leaves_the_folder(tmp_path):
    path = colmap_scene(tmp_path, 3, binary=False) / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("img_1.png", "../../img_1.png"))
    with pytest.raises(FeaturesplatError, match="leaves the folder of images"):
        load_dataset(tmp_path)


def test_intrinsics_of_another_size(tmp_path):
    """Scaled copies are fine, with a warning; other proportions are an error that names both sizes."""
    colmap_scene(tmp_path / "half", image_size=(12, 8))
    with pytest.warns(UserWarning, match="9 of 9 images have another size"):
        data = load_dataset(tmp_path / "half")
    assert (data.cameras.width, data.cameras.height) == (12, 8)
    np.testing.assert_allclose(data.cameras.Ks[0], [[10.0, 0, 6.0], [0, 10.5, 4.0], [0, 0, 1]])
    colmap_scene(tmp_path / "cropped", image_size=(20, 16))
    with pytest.raises(FeaturesplatError, match=r"img_0\.png: the image has 20x16 pixels .* are for 24x16"):
        load_dataset(tmp_path / "cropped")


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_poses_made_from_stored_pixels(tmp_path, orientation):
    """Intrinsics that fit the file only without its EXIF rotation: the stored pixels are taken."""
    colmap_scene(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "images" / "img_1.png", picture(seed=5), exif=exif)
    assert np.array_equal(load_dataset(tmp_path).image(1), picture(seed=5))


def test_read_model_with_a_folder_elsewhere(tmp_path):
    """Structure from motion keeps its model away from the photographs."""
    colmap_scene(tmp_path / "work", 3)
    (tmp_path / "work" / "images").rename(tmp_path / "photos")
    recording = colmap.read_model(tmp_path / "work" / "sparse" / "0", tmp_path / "photos")
    assert sorted(f.image_path for f in recording.frames) == sorted((tmp_path / "photos").iterdir())


@pytest.mark.skipif(not (SHARED / "dino").is_dir(), reason="needs ../shared/scenes/dino")
def test_dino():
    """Real photographs; its folders of label masks are no training masks, its test.txt is the split."""
    data = load_dataset(SHARED / "dino")
    assert (len(data), len(data.train), len(data.test)) == (85, 76, 9)
    assert data.points is not None
    assert len(data.points) == 24_252
    assert (data.cameras.width, data.cameras.height) == (680, 512)
    assert all(data.mask(i) is None for i in range(85))
    assert [data.cameras.names[i] for i in data.test][:2] == ["dino_dog_toy_01.jpg", "dino_dog_toy_11.jpg"]
    # The points lie in front of the cameras that saw them, and most project into most images.
    cam = torch.einsum("cij,nj->cni", data.cameras.viewmats[:, :3, :3], data.points.xyz)
    cam = cam + data.cameras.viewmats[:, None, :3, 3]
    uv = torch.einsum("cij,cnj->cni", data.cameras.Ks, cam)
    uv = uv[..., :2] / uv[..., 2:]
    inside = (cam[..., 2] > 0) & (uv > 0).all(-1) & (uv < torch.tensor([680, 512])).all(-1)
    assert inside.float().mean() > 0.5
