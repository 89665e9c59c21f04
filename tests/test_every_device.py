"""Photographs to scene, fields, prompts, edits, films and materials through the verbs, on every device there is."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny_training import DEMO, interrupt_at, with_everything, write_scene

from featuresplat.cli import main
from featuresplat.raster import cuda
from featuresplat.scene import Scene

NO_GPU = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda.unavailable() is not None, reason="needs an NVIDIA GPU"
)
STEPS = 24


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def root(tmp_path_factory, device) -> Path:
    """A scene, maps of features for its photographs, and a run with everything that a training can learn."""
    folder = tmp_path_factory.mktemp(f"on-{device}")
    write_scene(folder / "scene", range(0, 40, 5))
    shutil.copy(DEMO / "points3d.ply", folder / "scene" / "start.ply")  # as many as a surface can be found by
    maps = folder / "maps"
    maps.mkdir()
    np.save(maps / "text.npy", np.eye(20, dtype=np.float32)[:2])
    told = {"name": "halves", "dim": 20, "phrases": {"left": 0, "right": 1}}
    (maps / "teacher.json").write_text(json.dumps(told))
    values = np.zeros((6, 8, 20), np.float32)
    values[:, :4, 0], values[:, 4:, 1] = 1, 1
    for view in range(0, 40, 5):
        np.save(maps / f"view_{view:03d}.npy", values)
    preset(folder / "static.yaml", with_everything(folder / "x", "mcmc"), steps=STEPS)
    run(folder, device, "train", folder / "scene", "--config", folder / "static.yaml", "--out", folder / "run")
    return folder


def preset(file: Path, config, **changes) -> None:
    """The fields that these tests set, as a preset."""
    values = {
        "steps": config.steps, "report": True, "eval_views": 2, "data": {"downscale": 1},
        "model": {"budget": config.model.budget, "sh_degree": 1, "sh_interval": 0.25},
        "densify": {"strategy": config.densify.strategy, "every": 5, "start": 0.1, "stop": 0.9},
        "exposure": {"enabled": True}, "pose": {"enabled": True},
    } | changes  # fmt: skip
    file.write_text(yaml.safe_dump(values))


def maps(root: Path) -> list:
    return ["--teacher.name", "precomputed", "--teacher.path", root / "maps"]


def run(root: Path, device: str, *command, code: int = 0) -> None:
    quiet = [] if command[0] == "edit" else ["--quiet"]
    assert main([*map(str, command), "--device", device, *quiet]) == code


def tensors_of(scene: Scene) -> dict[str, torch.Tensor]:
    return scene.gaussians.tensors() | {k: v for k, v in scene.mode_state.items() if isinstance(v, torch.Tensor)}


def test_a_run_is_measured_drawn_and_exported(root, device, tmp_path):
    told = json.loads((root / "run" / "metrics.json").read_text())
    assert told["backend"] == device
    assert told["test"]["psnr"] > 12
    run(root, device, "eval", root / "run")
    what = ["--path", "test", "--what", "rgb,depth,alpha"]
    run(root, device, "render", root / "run", *what, "--out", tmp_path / "views")
    assert len(list((tmp_path / "views" / "rgb").glob("*.png"))) == 2
    assert all(v.device.type == "cpu" for v in tensors_of(Scene.load(root / "run")).values())


def test_an_interrupted_run_goes_on(root, device, tmp_path, monkeypatch):
    command = ["train", root / "scene", "--config", root / "static.yaml", "--out", tmp_path / "run"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, STEPS // 2)
        run(root, device, *command, code=130)
    run(root, device, *command, "--resume")
    whole, resumed = Scene.load(root / "run"), Scene.load(tmp_path / "run")
    assert len(whole.gaussians) == len(resumed.gaussians)
    for name, value in whole.gaussians.tensors().items():  # a GPU's sums arrive in any order
        assert torch.equal(value, resumed.gaussians.tensors()[name]) or device == "cuda", name


@pytest.mark.parametrize("method", ["mean", "robust", "trained"])
def test_fields_answer_text_points_and_boxes(root, device, tmp_path, method):
    how = ["--field.steps", 20, "--field.dim", 3] if method == "trained" else ["--lift", method]
    run(root, device, "distill", root / "run", *maps(root), *how, "--field.name", method)
    masks = ["--masks", tmp_path, "--field", method]
    run(root, device, "query", root / "run", "left", "right", "--scores", "--gaussians", *masks)
    picked = np.asarray(Image.open(next((tmp_path / "left").glob("*.png")))) > 127
    assert picked[:, :30].mean() > picked[:, 50:].mean()
    run(root, device, "query", root / "run", "--point", 20, 30, "--view", "view_000", *masks)
    run(root, device, "query", root / "run", "--box", 10, 10, 40, 40, "--view", "view_000", "--objects", *masks)


def test_the_viewers_pictures(root, device):
    pytest.importorskip("featuresplat.viewer", reason="a bare checkout has no viewer: it comes with an installation")
    from featuresplat.viewer.look import KINDS, Look
    from featuresplat.viewer.pictures import Mark, Overlay, picture
    from featuresplat.viewer.splats import splats

    scene = Scene.load(root / "run").to(device)
    count = len(scene.gaussians)
    some = torch.arange(count, device=device) < count // 2
    values = torch.rand(count, 3, generator=torch.Generator().manual_seed(0)).to(device)
    colors = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    for kind, prompt, line in itertools.product(KINDS, (0, -1), (True, False)):
        overlay = Overlay([Mark(some, (1.0, 0.5, 0.0), line)], values, colors)
        look = Look(kind=kind, prompt=prompt)
        image, depth = picture(scene, scene.cameras[0], look, overlay)
        assert (image.dtype, tuple(image.shape)) == (torch.uint8, (60, 80, 3))
        assert image.device == depth.device == torch.device("cpu")
        drawn = splats(scene, scene.cameras[0], look, overlay)
        assert 0 < len(drawn) <= count


def test_edits_make_another_run(root, device, tmp_path):
    run(root, device, "distill", root / "run", *maps(root), "--field.name", "edits")
    words = "make the left red and remove the right"
    run(root, device, "edit", root / "run", words, "--out", tmp_path / "edited")
    assert 0 < len(Scene.load(tmp_path / "edited").gaussians) < len(Scene.load(root / "run").gaussians)


def test_joint_training(root, device, tmp_path):
    values = yaml.safe_load((root / "static.yaml").read_text())
    (tmp_path / "joint.yaml").write_text(yaml.safe_dump(values | {"mode": "joint", "field": {"dim": 3}}))
    joint = ["--config", tmp_path / "joint.yaml", "--out", tmp_path / "run"]
    run(root, device, "train", root / "scene", *joint, *maps(root))
    assert Scene.load(tmp_path / "run").fields


def test_materials_and_light(root, device, tmp_path):
    inverse = {"light_size": 32, "pixels": 1000, "stages": [0.3, 0.4, 0.8]}
    values = {"mode": "inverse", "steps": STEPS, "eval_every": STEPS, "report": True, "inverse": inverse}
    (tmp_path / "inverse.yaml").write_text(yaml.safe_dump(values))
    out = tmp_path / "materials"
    run(root, device, "inverse", root / "run", "--config", tmp_path / "inverse.yaml", "--out", out)
    scene = Scene.load(out)
    assert scene.mode == "inverse"
    assert all(v.device.type == "cpu" for v in tensors_of(scene).values())
    np.save(tmp_path / "sky.npy", np.full((8, 16, 3), 0.7, np.float32))
    kinds = "rgb,albedo,normal,roughness,metallic,diffuse,specular,progress"
    where = ["--light", tmp_path / "sky.npy", "--out", tmp_path / "relit"]
    run(root, device, "render", out, "--path", "test", "--what", kinds, *where)
    assert sorted(p.name for p in (tmp_path / "relit").iterdir() if p.is_dir()) == sorted(kinds.split(","))
    run(root, device, "eval", out)


@pytest.mark.parametrize("mode", ["dynamic", "hexplane"])
def test_a_film(root, device, tmp_path, mode):
    pytest.importorskip("cv2")
    meta = json.loads((root / "scene" / "transforms.json").read_text())
    for k, frame in enumerate(meta["frames"]):
        frame["time"] = k / (len(meta["frames"]) - 1)
    film = write_scene(tmp_path / "film", range(0, 40, 5))
    (film / "transforms.json").write_text(json.dumps(meta))
    values = {
        "mode": mode, "steps": STEPS, "report": True, "data": {"downscale": 1},
        "model": {"budget": 1500, "sh_degree": 0}, "dynamic": {"nodes": 12, "fit_steps": 10},
        "densify": {"every": 8},
    }  # fmt: skip
    (tmp_path / "film.yaml").write_text(yaml.safe_dump(values))
    run(root, device, "train", film, "--config", tmp_path / "film.yaml", "--out", tmp_path / "run")
    assert Scene.load(tmp_path / "run").mode == mode
    run(root, device, "render", tmp_path / "run", "--path", "test", "--what", "rgb", "--out", tmp_path / "views")
