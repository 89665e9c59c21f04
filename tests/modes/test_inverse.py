"""Inverse rendering on a few small views, from end to end: it trains, renders its kinds, and can be relit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_training import everything, interrupt_at, same, tiny_inverse, trained, write_scene

from featuresplat.errors import FeaturesplatError
from featuresplat.modes import _inverse_scene as finished
from featuresplat.modes.inverse import Mode
from featuresplat.render import render_run
from featuresplat.scene import Scene
from featuresplat.trainer import Interrupted, Trainer, train

pytestmark = pytest.mark.xdist_group("inverse")  # its trainings, once
KINDS = ["rgb", "albedo", "normal", "roughness", "metallic"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inverse") / "run"
    train(tiny, tiny_inverse(folder, 60), progress=False)
    return folder


def test_materials_and_light_are_kept(run):
    scene = Scene.load(run)
    assert scene.mode == "inverse"
    n = len(scene.gaussians)
    for name, channels in (("base_color", 3), ("roughness", 1), ("metallic", 1), ("normal", 3)):
        values = scene.mode_state[f"gaussian.{name}"]
        assert values.shape == (n, channels)
        assert torch.isfinite(values).all()
    assert scene.mode_state["light"].shape == (6, 32, 32, 3)
    assert (scene.mode_state["light"] >= 0).all()


def test_kinds_are_rendered_to_files(run, tmp_path):
    render_run(run, "test", KINDS, tmp_path)
    names = {kind: sorted(p.stem for p in (tmp_path / kind).glob("*.png")) for kind in KINDS}
    assert names["rgb"]
    assert all(found == names["rgb"] for found in names.values())


def test_another_light_gives_another_picture(run):
    scene = Scene.load(run)
    camera = scene.part("test")[0]
    dark = np.zeros((16, 32, 3), np.float32)
    bright = np.full((16, 32, 3), 4.0, np.float32)
    shown = {name: scene.render(camera, light=light).rgb for name, light in (("dark", dark), ("bright", bright))}
    assert shown["dark"] is not None
    assert shown["bright"] is not None
    assert float(shown["bright"].mean()) > float(shown["dark"].mean()) + 0.05


def test_the_same_array_is_one_light_until_it_is_changed(run, monkeypatch):
    scene, prepared, original = Scene.load(run), [], finished._stage
    monkeypatch.setattr(finished, "_stage", lambda *a: prepared.append(1) or original(*a))
    camera, light = scene.part("test")[0], np.full((16, 32, 3), 0.5, np.float32)
    first, second = (scene.render(camera, light=light).rgb for _ in range(2))
    assert torch.equal(first, second)
    assert len(prepared) == 1
    light *= 4
    assert float(scene.render(camera, light=light).rgb.mean()) > float(first.mean())
    assert len(prepared) == 2


def test_a_light_that_cannot_be_is_refused(run):
    scene = Scene.load(run)
    light = np.full((16, 32, 3), -1.0, np.float32)
    with pytest.raises(FeaturesplatError):
        scene.render(scene.part("test")[0], light=light)


def test_densification_ends_with_the_radiance_stage(tiny, tmp_path):
    """Also where the configuration has it go on: the light that reaches each Gaussian is found once."""
    config = tiny_inverse(tmp_path / "run", 12)
    config.inverse.stages = (0.25, 0.5, 0.9)
    config.model.budget = 4000
    config.densify = replace(config.densify, start=0.0, stop=1.0, every=1)
    counts = []

    def look(trainer: Trainer) -> None:
        assert isinstance(trainer.mode, Mode)
        counts.append((trainer.mode.stage, len(trainer.mode.gaussian_params["means"])))

    train(tiny, config, progress=False, watch=look)
    during = [n for stage, n in counts if stage == 0]
    after = {n for stage, n in counts if stage > 0}
    assert len(set(during)) > 1, "nothing was densified: the test says nothing"
    assert len(after) == 1


def test_gaussians_come_to_rest_by_the_end_of_the_radiance_stage(tiny, tmp_path):
    config = tiny_inverse(tmp_path / "run", 100)
    mode = Trainer(tiny, config, progress=False).mode
    end, o = config.inverse.stages[0], config.optim
    assert mode.rates(0.0)["means"] == pytest.approx(o.means_lr)
    assert mode.rates(end * (1 - 1e-9))["means"] == pytest.approx(o.means_lr_final, rel=1e-3)
    assert mode.rates(end)["means"] == 0
    assert config.densify.stop < 0.5 * end, "and after densification they have the time"


def test_two_steps_pass_through_all_stages(tiny, tmp_path):
    scene = train(tiny, tiny_inverse(tmp_path / "run", 2), progress=False)
    assert float(scene.mode_state["gaussian.progress"].max()) > 0


def test_geometry_holds_still_while_materials_are_found(tiny, tmp_path):
    """What light reaches whom was found for it; only normals still turn."""
    config = tiny_inverse(tmp_path / "run", 16)
    config.inverse.stages = (0.25, 0.5, 0.75)
    seen = {}

    def look(trainer: Trainer) -> None:
        assert isinstance(trainer.mode, Mode)
        params = {k: v.detach().clone() for k, v in trainer.mode.gaussian_params.items()}
        seen.setdefault(trainer.mode.stage, params)
        seen["last"] = params

    train(tiny, config, progress=False, watch=look)
    assert {0, 1, 2, 3} <= set(seen)
    for name in ("means", "logit_opacities"):
        assert not torch.equal(seen[0][name], seen[1][name]), "nothing moved before: the test says nothing"
        assert torch.equal(seen[1][name], seen["last"][name])
    assert not torch.equal(seen[1]["base_color"], seen["last"]["base_color"])
    assert not torch.equal(seen[1]["sh0"], seen["last"]["sh0"])


@pytest.fixture(scope="module")
def straight(tiny, tmp_path_factory) -> Trainer:
    """A training that nothing interrupts."""
    config = tiny_inverse(tmp_path_factory.mktemp("straight") / "run", 40)
    config.inverse.stages = (0.25, 0.5, 0.9)
    return trained(tiny, config)


@pytest.mark.parametrize("at", [26, 39])
def test_resumed_training_equals_an_uninterrupted_one_to_the_bit(tiny, straight, tmp_path, monkeypatch, at):
    """Stopped in the diffuse stage, between two steps of the light; and after the last look for materials."""
    stopped = replace(straight.config, out=tmp_path / "stopped")
    with monkeypatch.context() as patched:
        interrupt_at(patched, at)
        with pytest.raises(Interrupted):
            train(tiny, stopped, progress=False)
    resumed = Trainer(tiny, replace(stopped, resume=True), progress=False)
    assert resumed.step_index == at
    resumed.run()
    assert same(everything(straight), everything(resumed)) == []
    lights = [dict[str, torch.Tensor](t.mode.extra_params) for t in (straight, resumed)]
    assert same(*lights) == []
    assert same(straight.mode.state(), resumed.mode.state()) == []
