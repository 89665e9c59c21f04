"""From photographs to materials in one command: a static run comes first, and becomes the radiance field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_training import interrupt_at, tiny_inverse, write_scene

from featuresplat.config import TrainConfig, load_config
from featuresplat.errors import FeaturesplatError
from featuresplat.scene import Scene
from featuresplat.trainer import Interrupted, train

pytestmark = pytest.mark.xdist_group("inverse begin")  # its trainings, once
STEPS, FIRST = 10, 16


def small(out: Path, **changes) -> TrainConfig:
    config = tiny_inverse(out, STEPS)
    config.inverse.pixels, config.inverse.radiance_run = 1000, FIRST / STEPS
    return replace(config, **changes)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inverse") / "run"
    train(tiny, small(folder), progress=False)
    return folder


def test_a_static_run_comes_first_and_becomes_the_radiance_field(run):
    first, scene = Scene.load(run / "radiance"), Scene.load(run)
    assert (first.mode, scene.mode) == ("static", "inverse")
    assert first.info["training"]["steps"] == FIRST
    assert first.info["split"] == scene.info["split"]
    for name, value in first.gaussians.tensors().items():
        assert torch.equal(scene.mode_state[f"radiance.{name}"], value), name


def test_its_configuration_repeats_the_whole(run, tiny, tmp_path):
    config = load_config(run / "config.yaml")
    assert config.inverse.start is None
    again = train(tiny, replace(config, out=tmp_path / "again"), progress=False)
    for name, value in Scene.load(run).mode_state.items():
        assert torch.equal(value, again.mode_state[name]), name


def test_the_finished_run_needs_the_first_one_no_more(run, tmp_path):
    scene = Scene.load(run)
    scene.save(tmp_path / "alone")
    camera = scene.part("test")[0]
    assert torch.equal(Scene.load(tmp_path / "alone").render(camera).rgb, scene.render(camera).rgb)


@pytest.mark.parametrize("part", ["first", "second"])
def test_it_goes_on_where_it_was_stopped(tiny, run, tmp_path, monkeypatch, part):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, *((FIRST - 4, "radiance") if part == "first" else (STEPS // 2, "run")))
        with pytest.raises(Interrupted, match="--resume"):
            train(tiny, small(out), progress=False)
    assert (out / "radiance" / "scene.json").exists() == (part == "second")
    train(tiny, small(out, resume=True), progress=False)
    whole, resumed = Scene.load(run), Scene.load(out)
    assert torch.equal(whole.gaussians.means, resumed.gaussians.means)
    for name, value in whole.mode_state.items():
        assert torch.equal(value, resumed.mode_state[name]), name


def test_what_is_there_is_not_written_over(tiny, run, tmp_path):
    with pytest.raises(FeaturesplatError, match="holds a run already"):
        train(tiny, small(run), progress=False)
    (tmp_path / "run").mkdir()
    Scene.load(run / "radiance").save(tmp_path / "run" / "radiance")
    with pytest.raises(FeaturesplatError, match="radiance: holds a run already"):
        train(tiny, small(tmp_path / "run"), progress=False)
    with pytest.raises(FeaturesplatError, match="holds no checkpoint to resume from"):
        train(tiny, small(tmp_path / "nothing", resume=True), progress=False)


def test_without_it_the_radiance_is_the_surfels_own(tiny, tmp_path):
    config = small(tmp_path / "run")
    config.inverse.radiance_run = 0.0
    scene = train(tiny, config, progress=False)
    assert not (tmp_path / "run" / "radiance").exists()
    assert not any(name.startswith("radiance.") for name in scene.mode_state)


def test_dark_photographs_are_warned_of_once(tmp_path, recwarn):
    dim = write_scene(tmp_path / "dim", paint=lambda pixels, k: pixels // 12)
    train(dim, small(tmp_path / "run", steps=2), progress=False)
    assert len([w for w in recwarn if "photographs are dark" in str(w.message)]) == 1


def test_shares_that_cannot_be(tiny, tmp_path):
    config = small(tmp_path / "run")
    config.inverse.radiance_run = -1.0
    with pytest.raises(FeaturesplatError, match=r"inverse\.radiance_run: expected at least 0"):
        train(tiny, config, progress=False)
