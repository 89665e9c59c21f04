"""Materials and relit pictures against a truth that was made from the very scene, and against spoilt ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import material_toy as toy
import numpy as np
import pytest
import torch
from PIL import Image

from featuresplat import cli
from featuresplat.datasets import load_dataset
from featuresplat.io.images import to_bytes
from featuresplat.modes.inverse import measure, picture
from featuresplat.scene import RenderRequest, Scene
from featuresplat.shading import presets


@pytest.fixture(scope="module")
def scene() -> Scene:
    return toy.scene()


@pytest.fixture(scope="module")
def folder(scene, tmp_path_factory) -> Path:
    """The scene's own pictures as a data set with truth beside them."""
    root = tmp_path_factory.mktemp("truth") / "balls"
    sky = presets.environment("studio", 32)
    frames = {"train": [], "test": []}
    for kind in ("images", "instance", "albedo", "normal", "env", "relit/lamp/images"):
        (root / kind).mkdir(parents=True)
    for i, name in enumerate(scene.cameras.names):
        camera = scene.cameras[i]
        out = scene.render(camera)
        assert out.rgb is not None
        store(root / "images" / name, out.rgb[0])
        c2w = np.linalg.inv(camera.viewmats[0].numpy()) @ np.diag([1.0, -1.0, -1.0, 1.0])
        part = "test" if name in scene.names("test") else "train"
        frames[part].append({"file_path": f"images/{name}", "transform_matrix": c2w.tolist()})
        if part == "train":
            continue
        ids = scene.splat(camera, RenderRequest(features=torch.stack([toy.ball(k) for k in range(3)], 1).float()))
        assert ids.features is not None
        best = torch.where(ids.alpha[0, ..., 0] > 0.99, ids.features[0].argmax(-1) + 1, 0)
        Image.fromarray(best.to(torch.uint8).numpy()).save(root / "instance" / name)
        store(root / "albedo" / name, picture(scene, camera, "albedo", RenderRequest())[0])
        store(root / "normal" / name, picture(scene, camera, "normal", RenderRequest())[0])
        relit = scene.render(camera, light=sky.numpy()).rgb
        assert relit is not None
        store(root / "relit" / "lamp" / "images" / name, relit[0])
    np.save(root / "env" / "lamp.npy", sky.numpy())
    lens = {"fl_x": 90.0, "fl_y": 90.0, "cx": toy.WIDTH / 2, "cy": toy.HEIGHT / 2, "w": toy.WIDTH, "h": toy.HEIGHT}
    for part, found in frames.items():
        (root / f"transforms_{part}.json").write_text(json.dumps({**lens, "frames": found}))
    things = [{"index": k + 1, "roughness": toy.ROUGHNESS[k], "metallic": toy.METALLIC[k]} for k in range(3)]
    (root / "meta.json").write_text(json.dumps({"objects": things}))
    return root


def store(path: Path, image: torch.Tensor) -> None:
    Image.fromarray(to_bytes(image.clamp(0, 1)).numpy()).save(path)


def measured(scene: Scene, folder: Path) -> dict:
    found = measure(scene, load_dataset(folder))
    assert found is not None
    return found


def test_the_scene_itself_is_perfect(scene, folder):
    found = measured(scene, folder)
    assert found["pixels"] > 300
    assert found["albedo_psnr"] > 40
    assert found["albedo_factor"] == pytest.approx([1, 1, 1], abs=0.02)
    assert found["normal_degrees"] < 1
    assert found["roughness_error"] < 0.02
    assert found["metallic_error"] < 0.02
    assert list(found["relit"]) == ["lamp"]
    assert found["relit"]["lamp"]["views"] == 1
    assert found["relit_psnr"] > 35


def test_a_factor_per_channel_is_forgiven_and_nothing_else(scene, folder):
    dim = torch.tensor([0.5, 0.8, 0.7])
    state = {**scene.mode_state, "gaussian.base_color": scene.mode_state["gaussian.base_color"] * dim}
    found = measured(replace(scene, mode_state=state), folder)
    assert found["albedo_psnr"] > 38
    assert found["albedo_factor"] == pytest.approx((1 / dim).tolist(), rel=0.03)
    mixed = {**scene.mode_state, "gaussian.base_color": scene.mode_state["gaussian.base_color"].flip(0)}
    assert measured(replace(scene, mode_state=mixed), folder)["albedo_psnr"] < 20


def test_normals_are_measured_in_degrees(scene, folder):
    angle = torch.tensor(np.deg2rad(10.0))
    n = scene.mode_state["gaussian.normal"]
    c, s = angle.cos().float(), angle.sin().float()
    turned = torch.stack([c * n[:, 0] - s * n[:, 1], s * n[:, 0] + c * n[:, 1], n[:, 2]], 1)
    found = measured(replace(scene, mode_state={**scene.mode_state, "gaussian.normal": turned}), folder)
    assert 6 < found["normal_degrees"] < 10.5  # 10 at the equator, less towards the axis


def test_materials_are_compared_by_their_mean_difference(scene, folder):
    state = {**scene.mode_state, "gaussian.roughness": torch.full_like(scene.mode_state["gaussian.roughness"], 0.5)}
    found = measured(replace(scene, mode_state=state), folder)
    assert 0.2 < found["roughness_error"] < 0.32  # |0.8, 0.2, 0.3 - 0.5|


def test_eval_prints_and_writes_it(scene, folder, tmp_path, capsys):
    run = tmp_path / "run"
    replace(scene, info={**scene.info, "source": str(folder)}).save(run)
    assert cli.main(["eval", str(run), "--quiet"]) == 0
    said = capsys.readouterr().out
    for word in ("albedo:", "normal:", "roughness:", "under lamp:", "least-squares factor per channel"):
        assert word in said
    written = json.loads((run / "metrics.json").read_text())
    assert written["inverse"]["relit"]["lamp"]["psnr"] > 35
    assert written["test"]["psnr"] > 30


def test_data_without_truth_has_no_such_figures(scene, folder, tmp_path):
    (tmp_path / "images").symlink_to(folder / "images")
    for part in ("train", "test"):
        text = (folder / f"transforms_{part}.json").read_text()
        (tmp_path / f"transforms_{part}.json").write_text(text)
    assert measure(scene, load_dataset(tmp_path)) is None
