"""Blender's scenes: field of view, transparent images, three files."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny_scenes import blender_scene, picture, pose

from featuresplat.config import DataConfig
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError


def test_three_files(tmp_path):
    data = load_dataset(blender_scene(tmp_path))
    assert data.kind == "blender"
    assert list(data.cameras.names) == [f"{part}/r_{k}.png" for part in ("test", "train") for k in range(3)]
    assert (data.train, data.test) == ([3, 4, 5], [0, 1, 2])
    f = 10 / math.tan(0.4)
    np.testing.assert_allclose(data.cameras.Ks[0], [[f, 0, 10], [0, f, 10], [0, 0, 1]])
    np.testing.assert_allclose(data.cameras.viewmats[3], pose(0), atol=1e-12)
    assert data.points is None


@pytest.mark.parametrize(("background", "value"), [("white", 255.0), ("black", 0.0), ("gray", 127.5)])
def test_background(tmp_path, background, value):
    data = load_dataset(blender_scene(tmp_path), DataConfig(background=background))
    image, alpha, truth = data.image(3), data.alpha(3), picture(20, 20, seed=0).astype(float)
    assert np.array_equal(image[:, 11:], truth[:, 11:])
    assert (image[:, :10] == int(np.rint(value))).all()
    np.testing.assert_allclose(image[:, 10], truth[:, 10] * 0.4 + value * 0.6, atol=0.51)
    assert alpha is not None
    assert alpha[0].tolist() == [0] * 10 + [102] + [255] * 9


def test_transparent_pixels_do_not_bleed(tmp_path):
    """Reduced by 2, a pixel that is half covered mixes its colour with the background, not with hidden colours."""
    data = load_dataset(blender_scene(tmp_path), DataConfig(background="black", downscale=2))
    truth = picture(20, 20, seed=0).astype(float)
    block = (truth[0:2, 10] * 0.4 + truth[0:2, 11]).sum(0) / 4
    np.testing.assert_allclose(data.image(3)[0, 5], block, atol=0.51)
    assert (data.image(3)[:, :5] == 0).all()


def test_val_is_test_where_there_is_no_test(tmp_path):
    data = load_dataset(blender_scene(tmp_path, parts=("train", "val")))
    assert [data.cameras.names[i] for i in data.test] == [f"val/r_{k}.png" for k in range(3)]


def test_train_alone_holds_out_every_nth(tmp_path):
    data = load_dataset(blender_scene(tmp_path, parts=("train",)))
    assert (data.kind, data.train, data.test) == ("blender", [1, 2], [0])


def test_missing_image(tmp_path):
    blender_scene(tmp_path)
    (tmp_path / "test" / "r_1.png").unlink()
    with pytest.raises(FeaturesplatError, match=r"1 of 6 images are missing, the first is .*test/r_1"):
        load_dataset(tmp_path)


def test_bad_field_of_view(tmp_path):
    with pytest.raises(FeaturesplatError, match="neither a focal length"):
        load_dataset(blender_scene(tmp_path, angle=4.0))
