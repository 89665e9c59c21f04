"""Layouts of data sets of materials: each as a tiny folder, its photographs and its truth."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_scenes import blender_scene, picture, pose, save

from featuresplat.config import DataConfig
from featuresplat.datasets import load_dataset, stanford_orb
from featuresplat.datasets._truths import truths_of
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import write_environment
from featuresplat.shading import cubemap

SIZE = 20
ANGLE = 0.8
FOCAL = 0.5 * SIZE / math.tan(0.5 * ANGLE)


def gl_pose(k: int) -> np.ndarray:
    """Camera-to-world [4, 4], OpenGL axes, of the camera whose world-to-camera matrix is ``pose(k)``."""
    return np.linalg.inv(pose(k)) @ np.diag([1.0, -1.0, -1.0, 1.0])


def half(pixels: np.ndarray) -> np.ndarray:
    """With alpha: the right half is there."""
    alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
    alpha[:, SIZE // 2 :] = 255
    return np.concatenate([pixels, alpha], -1)


def flat(rgb: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(rgb, np.uint8), (SIZE, SIZE, 3)).copy()


def normal_picture(n: tuple[float, float, float]) -> np.ndarray:
    r, g, b = (round((v + 1) * 127.5) for v in n)
    return flat((r, g, b))


def tensoir(root: Path) -> Path:
    scene = root / "lego"
    for part, count in (("train", 2), ("test", 1), ("val", 1)):
        for k in range(count):
            folder = scene / f"{part}_{k:03d}"
            numbers = ",".join(repr(v) for v in gl_pose(k).ravel().tolist())
            meta = {"cam_transform_mat": numbers, "cam_angle_x": ANGLE, "imw": SIZE, "imh": SIZE}
            save(folder / "rgba.png", half(picture(SIZE, SIZE, seed=k)))
            save(folder / "rgba_city.png", half(flat((188, 188, 188))))
            save(folder / "rgba_nowhere.png", half(flat((1, 2, 3))))
            save(folder / "albedo.png", half(flat((51, 102, 255))))
            save(folder / "normal.png", half(normal_picture((0, 0, 1))))
            (folder / "metadata.json").write_text(json.dumps(meta))
    (root / "Environment_Maps").mkdir()
    write_environment(root / "Environment_Maps" / "city.hdr", np.full((8, 16, 3), 0.5))
    return scene


def test_tensoir(tmp_path):
    data = load_dataset(tensoir(tmp_path))
    assert data.kind == "tensoir"
    assert list(data.cameras.names) == ["test_000/rgba.png", "train_000/rgba.png", "train_001/rgba.png"]
    assert (data.train, data.test) == ([1, 2], [0])
    np.testing.assert_allclose(data.cameras.viewmats[2], pose(1), atol=1e-12)
    np.testing.assert_allclose(data.cameras.Ks[0], [[FOCAL, 0, 10], [0, FOCAL, 10], [0, 0, 1]])
    alpha = data.alpha(0)
    assert alpha is not None
    assert (alpha[:, 10:] == 255).all()
    truths = truths_of(data)
    assert truths is not None
    view = truths.view("test_000/rgba.png")
    assert view is not None
    assert view.objects().nonzero()[:, 1].min() == 11  # not at the edge of the mask
    assert view.albedo is not None
    torch.testing.assert_close(view.albedo()[0, 0], torch.tensor([0.2, 0.4, 1.0]))  # stored as it is
    assert view.normal is not None
    torch.testing.assert_close(view.normal()[0, 0], torch.tensor([0.0, 0.0, 1.0]), atol=0.01, rtol=0)
    assert list(truths.relit) == ["city"]  # the other light has no map
    relit = truths.relit["city"][0]
    assert float(relit.image()[0, 15, 0]) == pytest.approx(0.503, abs=0.003)
    assert relit.environment().shape == (8, 16, 3)


def test_tensoir_that_is_damaged(tmp_path):
    scene = tensoir(tmp_path)
    (scene / "train_000" / "metadata.json").write_text('{"cam_transform_mat": "1,2"}')
    with pytest.raises(FeaturesplatError, match="damaged or no metadata"):
        load_dataset(scene)
    (scene / "train_000" / "rgba.png").unlink()
    with pytest.raises(FeaturesplatError):
        load_dataset(scene)


def test_shiny_blender_has_normals_beside_its_views(tmp_path):
    blender_scene(tmp_path)
    assert truths_of(load_dataset(tmp_path)) is None
    save(tmp_path / "test" / "r_1_normal.png", normal_picture((0, -1, 0)))
    data = load_dataset(tmp_path)
    assert data.kind == "blender"
    assert len(data.cameras) == 6
    truths = truths_of(data)
    assert truths is not None
    assert truths.view("test/r_0.png") is None
    view = truths.view("test/r_1.png")
    assert view is not None
    assert view.normal is not None
    torch.testing.assert_close(view.normal()[3, 3], torch.tensor([0.0, -1.0, 0.0]), atol=0.01, rtol=0)
    assert view.objects().any()


def glossy_views(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        K = np.array([[FOCAL, 0, 10], [0, FOCAL, 10], [0, 0, 1]])
        (folder / f"{k}-camera.pkl").write_bytes(pickle.dumps([pose(k)[:3], K]))
        save(folder / f"{k}.png", picture(SIZE, SIZE, seed=k))
        depth = np.full((SIZE, SIZE), 65535, np.uint16)
        depth[:, SIZE // 2 :] = 65535 // 5
        Image.fromarray(depth).save(folder / f"{k}-depth.png")
    return folder


def test_glossy_synthetic(tmp_path):
    scene = glossy_views(tmp_path / "GlossySynthetic" / "bell", 9)
    glossy_views(tmp_path / "relight_gt" / "bell_corridor", 2)
    glossy_views(tmp_path / "relight_gt" / "bell_golf", 2)  # has no map
    (tmp_path / "hdr2k").mkdir()
    write_environment(tmp_path / "hdr2k" / "corridor.hdr", np.full((8, 16, 3), 0.5))
    data = load_dataset(scene)
    assert data.kind == "glossy_synthetic"
    assert [data.cameras.names[i] for i in data.test] == ["0.png", "8.png"]
    np.testing.assert_allclose(data.cameras.viewmats[3], pose(3), atol=1e-12)
    alpha = data.alpha(3)
    assert alpha is not None
    assert (alpha[:, :10] == 0).all()
    assert (alpha[:, 10:] == 255).all()
    truths = truths_of(data)
    assert truths is not None
    assert list(truths.relit) == ["corridor"]
    view = truths.relit["corridor"][1]
    assert view.camera is not None
    np.testing.assert_allclose(view.camera.viewmats[0], pose(1), atol=1e-12)
    assert view.objects().nonzero()[:, 1].min() == 11
    assert view.image().shape == (SIZE, SIZE, 3)
    assert view.environment().max() == pytest.approx(0.5, rel=0.01)


class Bomb:
    """What a hostile pickle would call."""

    def __reduce__(self):
        return (Path("/nowhere").write_text, ("oops",))


@pytest.mark.parametrize("content", [b"", b"nonsense", pickle.dumps(Bomb()), pickle.dumps([np.eye(4)[:3], np.eye(2)])])
def test_pickles_that_are_no_cameras(tmp_path, content):
    scene = glossy_views(tmp_path / "bell", 3)
    (scene / "1-camera.pkl").write_bytes(content)
    with pytest.raises(FeaturesplatError, match=r"1-camera\.pkl: is no pickled camera"):
        load_dataset(scene)


def lamp_ahead(height: int = 32) -> np.ndarray:
    """A map in the axes of a camera with a lamp where the camera looks."""
    out = np.full((height, 2 * height, 3), 0.1, np.float32)
    out[height // 2 - 1 : height // 2 + 1, height - 1 : height + 1] = 50
    return out


def orb(root: Path) -> Path:
    """The object in scene001, and one view of it in scene002."""
    scene, other = root / "blender_LDR" / "cup_scene001", root / "blender_LDR" / "cup_scene002"
    truth = root / "ground_truth"
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[:, SIZE // 2 :] = 255
    for part, count in (("train", 2), ("test", 2)):
        frames = [{"file_path": f"./{part}/{k:04d}", "transform_matrix": gl_pose(k).tolist()} for k in range(count)]
        for k in range(count):
            save(scene / part / f"{k:04d}.png", picture(SIZE, SIZE, seed=k))
            save(scene / f"{part}_mask" / f"{k:04d}.png", mask)
        (scene / f"transforms_{part}.json").write_text(json.dumps({"camera_angle_x": ANGLE, "frames": frames}))
    save(other / "test" / "0007.png", flat((188, 188, 188)))
    save(other / "test_mask" / "0007.png", mask)
    novel = [{"file_path": "./test/0007", "scene_name": "cup_scene002", "camera_angle_x": 0.6,
              "transform_matrix": gl_pose(1).tolist()}]  # fmt: skip
    (scene / "transforms_novel.json").write_text(json.dumps({"frames": novel}))
    for folder in (truth / scene.name / "surface_normal", truth / scene.name / "pseudo_gt_albedo"):
        folder.mkdir(parents=True)
    np.save(truth / scene.name / "surface_normal" / "0001.npy", np.broadcast_to([0.0, 0.0, 1.0], (SIZE, SIZE, 3)))
    np.save(truth / scene.name / "pseudo_gt_albedo" / "0001.npy", np.full((SIZE, SIZE, 3), 0.25))
    (truth / other.name / "env_map").mkdir(parents=True)
    write_environment(truth / other.name / "env_map" / "0007.hdr", lamp_ahead())
    return scene


def test_stanford_orb(tmp_path):
    data = load_dataset(orb(tmp_path), DataConfig(background="black"))
    assert data.kind == "stanford_orb"
    assert list(data.cameras.names) == ["test/0000.png", "test/0001.png", "train/0000.png", "train/0001.png"]
    assert (data.train, data.test) == ([2, 3], [0, 1])
    alpha, image = data.alpha(3), data.image(3)
    assert alpha is not None
    assert (alpha[:, 10:] == 255).all()
    assert (image[:, :10] == 0).all()  # masks are opacity here: nothing is where the object is not
    assert data.mask(3) is None
    truths = truths_of(data)
    assert truths is not None
    view = truths.view("test/0001.png")
    assert view is not None
    assert view.normal is not None
    # (0, 0, 1) in the camera's axes is towards the camera: the world's direction of its +z.
    want = torch.from_numpy(gl_pose(1)[:3, 2]).float()
    torch.testing.assert_close(view.normal()[5, 5], want, atol=1e-5, rtol=0)
    assert view.albedo is not None
    assert float(view.albedo()[0, 0, 0]) == pytest.approx(0.25)
    relit = truths.relit["cup_scene002"][0]
    assert relit.camera is not None
    assert float(relit.camera.Ks[0, 0, 0]) == pytest.approx(0.5 * SIZE / math.tan(0.3))
    sky = torch.from_numpy(relit.environment())
    ahead = torch.from_numpy(-gl_pose(1)[:3, 2]).float()
    brightest = cubemap.equirect_directions(32, 64).reshape(-1, 3)[sky.sum(-1).reshape(-1).argmax()]
    assert float(brightest @ ahead) > 0.99


def test_world_normals_of_stanford_orb_are_left_alone(tmp_path):
    scene = orb(tmp_path)
    towards = gl_pose(1)[:3, 2]
    stored = np.broadcast_to(towards, (SIZE, SIZE, 3))
    np.save(tmp_path / "ground_truth" / scene.name / "surface_normal" / "0001.npy", stored)
    view = stanford_orb.truths(scene).view("test/0001.png")
    assert view is not None
    assert view.normal is not None
    facing = float(view.normal()[5, 5] @ torch.from_numpy(towards).float())
    turned = gl_pose(1)[:3, :3] @ towards  # what the other reading would make of it
    assert facing == pytest.approx(max(1.0, float(turned @ towards)), abs=1e-4)


def test_mirrors_of_maps_are_turned_with_the_camera():
    up = np.zeros((16, 32, 3), np.float32)
    up[0] = 1.0  # light from the camera's up
    R = gl_pose(2)[:3, :3]
    sky = torch.from_numpy(stanford_orb.in_world(up, R))
    brightest = cubemap.equirect_directions(16, 32).reshape(-1, 3)[sky.sum(-1).reshape(-1).argmax()]
    assert float(brightest @ torch.from_numpy(R[:, 1]).float()) > 0.95


def test_hdr_photographs_of_stanford_orb_are_pointed_elsewhere(tmp_path):
    scene = orb(tmp_path)
    (scene / "train" / "0000.exr").write_bytes(b"x")
    with pytest.raises(FeaturesplatError) as caught:
        load_dataset(scene)
    assert "blender_LDR" in str(caught.value.hint)


def test_a_mask_of_another_size(tmp_path):
    scene = orb(tmp_path)
    save(scene / "train_mask" / "0001.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(FeaturesplatError, match="expected a mask of its size"):
        load_dataset(scene)
