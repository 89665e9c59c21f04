"""Nerfies, HyperNeRF and DyCheck folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_scenes import picture, pose, save

from featuresplat.config import DataConfig
from featuresplat.datasets import load_dataset, nerfies
from featuresplat.errors import FeaturesplatError


def camera(viewmat: np.ndarray, **more) -> dict:
    R = viewmat[:3, :3]
    values = {"orientation": R.tolist(), "position": (-R.T @ viewmat[:3, 3]).tolist(), "focal_length": 20.0}
    values |= {"principal_point": [12.0, 8.0], "skew": 0.0, "pixel_aspect_ratio": 1.05, "image_size": [24, 16]}
    return values | {"radial_distortion": [0.0, 0.0, 0.0], "tangential_distortion": [0.0, 0.0]} | more


def folder(root: Path, count: int = 6, key: str = "warp_id", reduced: int = 1) -> Path:
    """Frames 000000 ..., odd ones held out, times 0, 1, 2 ..."""
    names = [f"{k:06d}" for k in range(count)]
    (root / "camera").mkdir(parents=True)
    for k, name in enumerate(names):
        save(root / f"rgb/{reduced}x/{name}.png", picture(24 // reduced, 16 // reduced, k))
        (root / f"camera/{name}.json").write_text(json.dumps(camera(pose(k))))
    held = names[1::2]
    train = names[::2]
    (root / "dataset.json").write_text(json.dumps({"ids": names, "train_ids": train, "val_ids": held, "count": count}))
    meta = {name: {key: k, "appearance_id": k, "camera_id": k % 2} for k, name in enumerate(names)}
    (root / "metadata.json").write_text(json.dumps(meta))
    np.save(root / "points.npy", np.array([[0.0, 0, 3], [1, 1, 4], [np.nan, 0, 0]]))
    return root


def test_poses_times_split_and_points(tmp_path):
    data = load_dataset(folder(tmp_path / "scene"), DataConfig())
    assert data.kind == "nerfies"
    assert [data.cameras.names[i] for i in data.train] == ["000000.png", "000002.png", "000004.png"]
    assert [data.cameras.names[i] for i in data.test] == ["000001.png", "000003.png", "000005.png"]
    assert data.cameras.times is not None
    assert data.cameras.times.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for k in range(6):
        assert np.allclose(data.cameras.viewmats[k].numpy(), pose(k), atol=1e-9)
    assert np.allclose(data.cameras.Ks[0].numpy(), [[20, 0, 12], [0, 21, 8], [0, 0, 1]])
    assert data.points is not None
    assert len(data.points) == 2


def test_the_largest_pictures_are_taken_and_intrinsics_scaled(tmp_path):
    root = folder(tmp_path / "scene", reduced=2)
    save(root / "rgb/4x/000000.png", picture(6, 4))
    with pytest.warns(UserWarning, match="another size"):
        data = load_dataset(root, DataConfig())
    assert data.cameras.sizes[0] == (12, 8)
    assert float(data.cameras.Ks[0, 0, 0]) == pytest.approx(10.0)


def test_dycheck_has_splits_times_and_depth(tmp_path):
    root = folder(tmp_path / "scene", key="time_id")
    (root / "splits").mkdir()
    for part, names in (("train", ["000000", "000001"]), ("val", ["000004"])):
        (root / f"splits/{part}.json").write_text(json.dumps({"frame_names": names, "time_ids": [0, 1]}))
    (root / "depth/1x").mkdir(parents=True)
    np.save(root / "depth/1x/000001.npy", np.full((16, 24, 1), 2.5, np.float32))
    data = load_dataset(root, DataConfig())
    assert len(data) == 3
    assert len(data.train) == 2
    depth = data.depth(1)
    assert depth is not None
    assert float(depth[3, 4]) == 2.5
    assert data.depth(0) is None


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("metadata.json", "{}", "time_id"),
        ("metadata.json", "[", "not valid JSON"),
        ("dataset.json", '{"ids": []}', "no ids"),
        ("dataset.json", '{"ids": ["../../x"]}', "no id of a frame"),
        ("camera/000000.json", '{"orientation": [1]}', "orientation"),
        ("camera/000000.json", "[]", "expected an object"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, file, text, said):
    root = folder(tmp_path / "scene")
    (root / file).write_text(text)
    with pytest.raises(FeaturesplatError, match=said):
        nerfies.read(root, DataConfig())


def test_missing_pictures(tmp_path):
    root = folder(tmp_path / "scene")
    (root / "rgb/1x/000003.png").unlink()
    with pytest.raises(FeaturesplatError, match="1 of 6 images are missing"):
        load_dataset(root, DataConfig())
