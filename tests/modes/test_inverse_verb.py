"""From a finished run to its materials and light, by one command; what it refuses, and going on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import material_toy
import numpy as np
import pytest
import torch
import yaml
from tiny_training import interrupt_at, tiny_config, write_scene

from featuresplat import cli
from featuresplat.config import DataConfig, load_config
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.modes._inverse_input import check_photographs
from featuresplat.scene import Scene
from featuresplat.trainer import train

pytestmark = pytest.mark.xdist_group("inverse verb")  # its trainings, once
ON_CPU = ("--device", "cpu")  # where sums have an order
STEPS = 24


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> Path:
    """A finished static run."""
    folder = tmp_path_factory.mktemp("static")
    train(write_scene(folder / "scene"), tiny_config(folder / "run", steps=10), progress=False)
    return folder / "run"


@pytest.fixture(scope="module")
def preset(tmp_path_factory) -> Path:
    """Short, and with a small light."""
    file = tmp_path_factory.mktemp("preset") / "tiny.yaml"
    inverse = {"light_size": 32, "pixels": 1000, "stages": [0.3, 0.4, 0.8]}
    values = {"mode": "inverse", "steps": STEPS, "eval_every": STEPS, "report": False, "inverse": inverse}
    file.write_text(yaml.safe_dump(values))
    return file


@pytest.fixture(scope="module")
def run(static, preset) -> Path:
    """Its materials, in the default folder."""
    assert cli.main(["inverse", str(static), "--config", str(preset), "--quiet", *ON_CPU]) == 0
    return static.with_name("run-inverse")


def test_it_starts_from_the_run_and_ends_in_another(static, run):
    before, after = Scene.load(static), Scene.load(run)
    assert after.mode == "inverse"
    assert after.gaussians.sh_degree == before.gaussians.sh_degree
    assert 0 < len(after.gaussians) <= len(before.gaussians)
    assert after.info["split"] == before.info["split"]
    assert (after.mode_state["gaussian.progress"] > 0).any()
    assert after.mode_state["light"].std() > 0
    assert Scene.load(static).mode == "static"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["test"]["psnr"] > 10
    for name, value in before.gaussians.tensors().items():  # its radiance field
        assert torch.equal(after.mode_state[f"radiance.{name}"], value), name


def test_it_goes_on_where_it_was_stopped(static, preset, run, tmp_path, monkeypatch, capsys):
    out = ["--config", str(preset), "--out", str(tmp_path / "run"), "--quiet", *ON_CPU]
    with monkeypatch.context() as patch:
        interrupt_at(patch, STEPS // 2)
        assert cli.main(["inverse", str(static), *out]) == 130
    assert "--resume" in capsys.readouterr().err
    assert cli.main(["inverse", str(static), *out, "--resume"]) == 0
    whole, resumed = Scene.load(run), Scene.load(tmp_path / "run")
    for name, value in whole.mode_state.items():
        assert torch.equal(value, resumed.mode_state[name]), name
    assert torch.equal(whole.gaussians.means, resumed.gaussians.means)


def said(capsys, *command: str) -> str:
    assert cli.main(list(command)) == 2
    return capsys.readouterr().err


def test_it_does_not_write_over_a_run(static, preset, run, capsys):
    assert "holds a run" in said(capsys, "inverse", str(static), "--config", str(preset))
    itself = ["--out", str(static), "--overwrite"]
    assert "is the run itself" in said(capsys, "inverse", str(static), "--config", str(preset), *itself)
    assert "no checkpoint" in said(
        capsys, "inverse", str(static), "--config", str(preset), "--out", str(run.with_name("none")), "--resume"
    )


def test_runs_that_it_cannot_start_from(static, preset, run, tmp_path, capsys):
    assert "expected a run of mode static, got one of mode inverse" in said(capsys, "inverse", str(run))
    assert "of mode static" in said(capsys, "inverse", str(static), "--config", "fast")
    assert "steps: expected at least 1, got 0" in said(capsys, "inverse", str(static), "--steps", "0")
    assert "expected the folder of a finished run" in said(capsys, "inverse")
    assert said(capsys, "inverse", str(tmp_path / "nowhere"))
    scene = Scene.load(static)
    replace(scene, info={**scene.info, "source": str(tmp_path / "gone")}).save(tmp_path / "orphan")
    assert "are not there" in said(capsys, "inverse", str(tmp_path / "orphan"))
    material_toy.scene().save(tmp_path / "toy")
    assert "got one of mode inverse" in said(capsys, "inverse", str(tmp_path / "toy"))


def photographs(folder: Path, paint, count: int = 6) -> Path:
    """Tiny views of one colour or another."""
    return write_scene(folder, views=range(0, count * 2, 2), paint=lambda pixels, k: paint(pixels))


@pytest.mark.parametrize(
    ("paint", "says"),
    [
        (lambda p: p * 0, "nearly black"),
        (lambda p: np.full_like(p, 255), "cut at white"),
    ],
)
def test_scenes_that_are_too_dark_or_too_bright(tmp_path, paint, says):
    data = load_dataset(photographs(tmp_path, paint), DataConfig(downscale=1))
    with pytest.raises(FeaturesplatError, match=says):
        check_photographs(data)


@pytest.mark.parametrize(
    ("paint", "says"),
    [
        (lambda p: np.full_like(p, 20), "are dark"),
        (lambda p: np.where(np.arange(80)[None, :, None] < 24, 255, p).astype(np.uint8), "are cut at white"),
    ],
)
def test_scenes_that_are_nearly_so_are_warned_of(tmp_path, paint, says):
    data = load_dataset(photographs(tmp_path, paint), DataConfig(downscale=1))
    with pytest.warns(UserWarning, match=says):
        check_photographs(data)


def test_what_is_transparent_is_not_dark(tmp_path):
    def paint(pixels):
        alpha = np.zeros((*pixels.shape[:2], 1), np.uint8)
        alpha[20:40, 20:60] = 255
        return np.concatenate([np.full_like(pixels, 128), alpha], -1)

    data = load_dataset(photographs(tmp_path, paint), DataConfig(downscale=1, background="black"))
    check_photographs(data)  # neither raises nor warns: warnings are errors here


def test_the_demo_is_well_exposed(tmp_path, recwarn):
    check_photographs(load_dataset(write_scene(tmp_path), DataConfig(downscale=1)))
    assert not recwarn.list


def test_a_single_view(tmp_path):
    scene = write_scene(tmp_path / "scene", views=range(0, 8, 2))
    meta = json.loads((scene / "transforms.json").read_text())
    held = (scene / "test.txt").read_text().split()
    train_frames = [f for f in meta["frames"] if Path(f["file_path"]).name not in held]
    meta["frames"] = [f for f in meta["frames"] if Path(f["file_path"]).name in held] + train_frames[:1]
    (scene / "transforms.json").write_text(json.dumps(meta))
    config = load_config("inverse")
    config.steps, config.out, config.report, config.data.downscale = 10, tmp_path / "run", False, 1
    with pytest.raises(FeaturesplatError, match="1 training view cannot tell materials from light"):
        train(scene, config, progress=False)
    assert not (tmp_path / "run" / "radiance").exists(), "it is said before anything is trained"
