"""metrics.json: its agreed form, and numbers that hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

import featuresplat
from featuresplat.config import TrainConfig
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of, evaluate, measure, rendered_views, versions
from featuresplat.scene import Scene
from featuresplat.trainer import train

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
HELD = (DEMO / "test.txt").read_text().split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("evaluate") / "run"
    config = TrainConfig(out=out, steps=60, device="cpu", report=False, eval_views=0)
    config.data.downscale, config.model.budget, config.model.sh_degree = 4, 1500, 1
    train(DEMO, config, progress=False)
    return out


def test_metrics_have_the_agreed_form(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    top = {"format", "test", "train_seconds", "gaussians", "peak_memory_bytes", "backend", "versions"}
    assert set(metrics) == top
    assert metrics["format"] == 1
    test = metrics["test"]
    assert {"psnr", "ssim", "lpips", "images"} <= set(test)
    assert [i["name"] for i in test["images"]] == HELD
    assert all(set(i) == {"name", "psnr", "ssim"} for i in test["images"])
    assert test["lpips"] is None or 0 <= test["lpips"] <= 2
    assert metrics["train_seconds"] > 0
    assert metrics["gaussians"] == len(Scene.load(folder).gaussians)
    assert isinstance(metrics["peak_memory_bytes"], int)
    assert metrics["backend"] == "cpu"
    assert metrics["versions"]["torch"] == torch.__version__
    assert {"featuresplat", "python", "numpy"} <= set(metrics["versions"])


def test_a_checkout_has_the_version_of_its_sources(monkeypatch):
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert versions()["featuresplat"] == f"{featuresplat.__version__} (not installed)"


def test_the_mean_is_of_the_images_and_they_are_measured_right(folder):
    """PSNR once more by hand, from the renders and the photographs."""
    metrics = json.loads((folder / "metrics.json").read_text())["test"]
    scene, data = Scene.load(folder), load_dataset(DEMO, TrainConfig().data)
    data = data.at_size(4)
    by_hand = []
    for i in data.test:
        render = scene.render(scene.cameras[i]).rgb
        assert render is not None
        error = (render[0].clamp(0, 1) - dataset_of(scene).image(i).float() / 255).square().mean()
        by_hand.append(-10 * math.log10(float(error)))
    assert [i["psnr"] for i in metrics["images"]] == pytest.approx(by_hand, abs=1e-3)
    assert metrics["psnr"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-3)
    assert metrics["ssim"] == pytest.approx(sum(i["ssim"] for i in metrics["images"]) / len(HELD))


def test_evaluating_again_gives_the_same(folder):
    before = (folder / "metrics.json").read_text()
    (folder / "metrics.json").unlink()
    result = evaluate(folder)
    assert (folder / "metrics.json").read_text() == before
    assert result == json.loads(before)


def test_a_worse_scene_measures_worse(folder):
    scene = Scene.load(folder)
    data = dataset_of(scene)
    good = measure(scene, data)["test"]
    scene.gaussians.sh0 += 0.3
    bad = measure(scene, data)["test"]
    assert bad["psnr"] < good["psnr"] - 1


def test_nothing_held_out_is_null_not_a_crash(folder):
    scene = Scene.load(folder)
    data = replace(dataset_of(scene), test=[])
    found = measure(scene, data)["test"]
    assert found["psnr"] is None
    assert found["ssim"] is None
    assert found["images"] == []
    json.dumps(found, allow_nan=False)


def test_photographs_come_at_the_size_of_training(folder):
    scene = Scene.load(folder)
    data = dataset_of(scene)
    assert data.image(0).shape == (60, 80, 3)
    views = list(rendered_views(scene, data, data.test[:2]))
    assert [v[0] for v in views] == HELD[:2]
    for _, render, truth, mask in views:
        assert render.shape == truth.shape == (60, 80, 3)
        assert 0 <= float(render.min()) <= float(render.max()) <= 1
        assert mask is None


def test_photographs_that_are_gone_are_told(folder, tmp_path):
    scene = Scene.load(folder)
    gone = replace(scene, info={**scene.info, "source": str(tmp_path / "gone")})
    gone.save(tmp_path / "run")
    with pytest.raises(FeaturesplatError, match="no longer there"):
        evaluate(tmp_path / "run")
    with pytest.raises(FeaturesplatError, match="does not say which photographs"):
        dataset_of(replace(scene, info={}))
    with pytest.raises(FeaturesplatError, match="no such run folder"):
        evaluate(tmp_path / "nowhere")
