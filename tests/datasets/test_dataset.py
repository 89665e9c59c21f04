"""What all layouts share: detection, split, sizes, masks, depths, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import colmap_scene, picture, save, transforms_scene

from featuresplat import datasets
from featuresplat.config import DataConfig
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError


def test_no_such_folder(tmp_path):
    with pytest.raises(FeaturesplatError, match="there is no such file or folder"):
        load_dataset(tmp_path / "gone")


def test_not_a_dataset(tmp_path):
    with pytest.raises(FeaturesplatError, match="is an empty folder"):
        load_dataset(tmp_path)
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(FeaturesplatError, match="is no dataset that we can read") as error:
        load_dataset(tmp_path)
    for word in ("COLMAP", "transforms.json", "Blender"):
        assert word in error.value.hint
    with pytest.raises(FeaturesplatError, match="is no dataset"):
        load_dataset(tmp_path / "notes.md")


def test_kind_is_honoured(tmp_path):
    colmap_scene(tmp_path)
    transforms_scene(tmp_path)
    assert load_dataset(tmp_path).kind == "colmap"
    assert load_dataset(tmp_path, DataConfig(kind="transforms")).kind == "transforms"
    with pytest.raises(FeaturesplatError, match="there is none called 'colmop'") as error:
        load_dataset(tmp_path, DataConfig(kind="colmop"))
    assert "colmap" in error.value.hint
    with pytest.raises(FeaturesplatError, match=r"there is no transforms_train\.json"):
        load_dataset(tmp_path, DataConfig(kind="blender"))


def test_every_nth(tmp_path):
    colmap_scene(tmp_path, 20)
    data = load_dataset(tmp_path)
    names = sorted(f"img_{k}.png" for k in range(20))
    assert list(data.cameras.names) == names
    assert data.test == [0, 8, 16]
    assert sorted(data.train + data.test) == list(range(20))
    assert load_dataset(tmp_path, DataConfig(test_every=5)).test == [0, 5, 10, 15]
    assert load_dataset(tmp_path, DataConfig(split="all")).test == []
    with pytest.raises(FeaturesplatError, match="test_every: expected at least 1, got 0"):
        load_dataset(tmp_path, DataConfig(test_every=0))
    with pytest.raises(FeaturesplatError, match="no image is left to train on: all 20 are held out"):
        load_dataset(tmp_path, DataConfig(test_every=1))


@pytest.mark.parametrize("where", ["", "images"])
def test_list_of_names(tmp_path, where):
    colmap_scene(tmp_path)
    (tmp_path / where / "test.txt").write_text("# held out\nimg_3.png\r\n\nimg_5\n")
    assert load_dataset(tmp_path).test == [3, 5]
    assert load_dataset(tmp_path, DataConfig(split="every")).test == [0, 8]


def test_list_with_unknown_names(tmp_path):
    colmap_scene(tmp_path)
    (tmp_path / "test.txt").write_text("img_3.png\nIMG_77.png\n")
    with pytest.warns(UserWarning, match=r"1 names belong to no image \(first: 'IMG_77\.png'\)"):
        assert load_dataset(tmp_path).test == [3]
    (tmp_path / "test.txt").write_text("IMG_77.png\n")
    with pytest.raises(FeaturesplatError, match="names none of the 9 images"):
        load_dataset(tmp_path)
    (tmp_path / "test.txt").write_text("\n".join(f"img_{k}" for k in range(9)))
    with pytest.raises(FeaturesplatError, match="no image is left to train on"):
        load_dataset(tmp_path)


def test_downscale_is_an_exact_mean(tmp_path):
    """24x16 by 4: every new pixel is the mean of 16; by 5: 5x3, each axis of K by its own ratio."""
    colmap_scene(tmp_path)
    data = load_dataset(tmp_path, DataConfig(downscale=4))
    mean = picture(seed=2).astype(float).reshape(4, 4, 6, 4, 3).mean((1, 3))
    np.testing.assert_allclose(data.image(2), mean, atol=0.51)
    np.testing.assert_allclose(data.cameras.Ks[0], [[5, 0, 3], [0, 5.25, 2], [0, 0, 1]])
    data = load_dataset(tmp_path, DataConfig(downscale=5))
    assert (data.cameras.width, data.cameras.height) == (5, 3)
    assert tuple(data.image(0).shape) == (3, 5, 3)
    np.testing.assert_allclose(data.cameras.Ks[0], [[20 * 5 / 24, 0, 2.5], [0, 21 * 3 / 16, 1.5], [0, 0, 1]])
    with pytest.raises(FeaturesplatError, match="downscale: expected a positive number, got -2"):
        load_dataset(tmp_path, DataConfig(downscale=-2))


def test_automatic_downscale_is_the_smallest_factor(tmp_path):
    colmap_scene(tmp_path)
    for most, size in ((384, (24, 16)), (383, (12, 8)), (96, (12, 8)), (95, (8, 5)), (1, (1, 1))):
        data = load_dataset(tmp_path, DataConfig(max_pixels=most))
        assert (data.cameras.width, data.cameras.height) == size


def test_at_size(tmp_path):
    """The reduced data is like the data loaded reduced, and holds nothing of the other that can change."""
    mask = np.full((16, 24), 255, np.uint8)
    mask[5, 7] = 0
    save(colmap_scene(tmp_path) / "masks" / "img_0.png", mask)
    data, direct = load_dataset(tmp_path), load_dataset(tmp_path, DataConfig(downscale=2))
    half = data.at_size(2)
    assert (half.image(3).int() - direct.image(3).int()).abs().max() == 0
    assert torch.equal(half.cameras.Ks, direct.cameras.Ks)
    reduced = half.mask(0)
    assert reduced is not None
    assert (~reduced).nonzero().tolist() == [[2, 3]]  # what covers an excluded pixel is excluded
    assert torch.equal(reduced, direct.mask(0))  # pyright: ignore[reportArgumentType]
    half.train.clear()
    half.cameras.viewmats.zero_()
    assert data.train
    assert data.cameras.viewmats.abs().sum() > 0
    assert half.at_size(2).cameras.width == 6
    with pytest.raises(FeaturesplatError, match="downscale: expected at least 1, got 0"):
        data.at_size(0)


@pytest.mark.parametrize("name", ["img_2.png", "img_2.png.png"])
def test_masks_beside_the_images(tmp_path, name):
    """Only 0 is left out, whatever the other values are; a smaller mask is enlarged."""
    mask = np.ones((8, 12), np.uint8)
    mask[2:4, 3:5] = 0
    save(colmap_scene(tmp_path) / "masks" / name, mask)
    data = load_dataset(tmp_path)
    expected = np.ones((16, 24), bool)
    expected[4:8, 6:10] = False
    assert np.array_equal(data.mask(2), expected)  # pyright: ignore[reportArgumentType]
    assert data.mask(1) is None
    assert load_dataset(tmp_path, DataConfig(masks="none")).mask(2) is None


def test_folders_of_label_masks_are_not_training_masks(tmp_path):
    save(colmap_scene(tmp_path) / "masks" / "img_2" / "cup.png", np.zeros((16, 24), np.uint8))
    assert load_dataset(tmp_path).mask(2) is None


def test_mask_of_other_proportions(tmp_path):
    save(colmap_scene(tmp_path) / "masks" / "img_2.png", np.zeros((16, 16), np.uint8))
    with pytest.raises(FeaturesplatError, match=r"img_2\.png: expected the proportions of its image, 24x16, got 16x16"):
        load_dataset(tmp_path)


def test_folder_of_depths(tmp_path):
    """NAME.npy in scene units before NAME.png in thousandths; NaN is unknown."""
    colmap_scene(tmp_path / "scene")
    depths = tmp_path / "depths"
    depths.mkdir()
    values = np.full((16, 24), 2.5, np.float32)
    values[3, 4], values[3, 5] = np.nan, -1
    np.save(depths / "img_1.npy", values)
    save(depths / "img_2.png", np.full((8, 12), 1234, np.uint16))
    data = load_dataset(tmp_path / "scene", DataConfig(depths=depths))
    one, two = data.depth(1), data.depth(2)
    assert one is not None
    assert two is not None
    assert (one[3, 4], one[3, 5], one[0, 0]) == (0, 0, 2.5)
    assert tuple(two.shape) == (16, 24)
    np.testing.assert_allclose(two, 1.234, rtol=1e-6)
    assert data.depth(0) is None
    half = data.at_size(2).depth(1)
    assert half is not None
    assert tuple(half.shape) == (8, 12)
    np.save(depths / "img_1.npy", np.zeros((16, 16), np.float32))
    with pytest.raises(FeaturesplatError, match=r"img_1\.npy: expected the proportions of its image, 24x16"):
        data.depth(1)
    np.save(depths / "img_1.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(FeaturesplatError, match=r"img_1\.npy: is missing, truncated or no depth map"):
        data.depth(1)
    save(depths / "img_2.png", np.zeros((16, 24), np.uint8))
    with pytest.raises(FeaturesplatError, match="expected one plane of 16-bit or floating numbers"):
        data.depth(2)


def test_wrong_folder_of_depths(tmp_path):
    colmap_scene(tmp_path)
    with pytest.raises(FeaturesplatError, match="there is no such folder of depth maps"):
        load_dataset(tmp_path, DataConfig(depths=tmp_path / "gone"))
    with pytest.raises(FeaturesplatError, match="holds a depth map for none of the 9 images"):
        load_dataset(tmp_path, DataConfig(depths=tmp_path))


def test_truncated_image_is_named_before_training(tmp_path):
    path = colmap_scene(tmp_path, size=(200, 150)) / "images" / "img_4.png"
    save(path.with_suffix(".jpg"), picture(200, 150)).replace(path)  # its header survives the cut
    for rest, message in ((5000, "is truncated or damaged"), (0, "is not an image of a known format")):
        path.write_bytes(path.read_bytes()[:rest])
        with pytest.raises(FeaturesplatError, match=rf"img_4\.png: {message}"):
            load_dataset(tmp_path)


def test_exif_orientation(tmp_path):
    """Intrinsics of the upright photograph: it is turned as EXIF says."""
    transforms_scene(tmp_path, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side
    upright = picture(seed=9)
    save(tmp_path / "images" / "img_1.png", np.rot90(upright).copy(), exif=exif)
    assert np.array_equal(load_dataset(tmp_path).image(1), upright)


def test_image_listed_twice(tmp_path):
    path = colmap_scene(tmp_path, 3, binary=False) / "sparse" / "0" / "images.txt"
    path.write_text(path.read_text().replace("img_2.png", "img_1.png"))
    with pytest.raises(FeaturesplatError, match=r"img_1\.png is listed more than once"):
        load_dataset(tmp_path)


def test_decoded_images_stay_within_the_bound(tmp_path, monkeypatch):
    """All are kept when they fit; else what was decoded last, never more than the bound, and the same pixels."""
    colmap_scene(tmp_path)
    assert len(load_dataset(tmp_path)._cache) == 9
    monkeypatch.setattr(datasets, "CACHE_BYTES", 3 * 24 * 16 * 3)
    data = load_dataset(tmp_path)
    assert len(data._cache) == 0
    for k in [*range(9), 2, 7]:
        assert np.array_equal(data.image(k), picture(seed=k))
        assert sum(v.bytes for v in data._cache.values()) <= datasets.CACHE_BYTES
    assert len(data._cache) == 3


def test_progress(tmp_path):
    calls = []
    load_dataset(colmap_scene(tmp_path), progress=lambda *call: calls.append(call))
    assert calls == [("images", k, 9) for k in range(1, 10)]
