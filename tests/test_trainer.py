"""What a training writes, and that it repeats itself: resume, threads, seeds, run folder."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tiny_training import (
    POINTS,
    everything,
    interrupt_at,
    same,
    tiny_config,
    trained,
    with_everything,
    write_scene,
)
from torch import Tensor

from featuresplat import memory
from featuresplat.config import TrainConfig, to_dict
from featuresplat.errors import FeaturesplatError
from featuresplat.io.checkpoint import load_checkpoint
from featuresplat.io.ply import read_ply
from featuresplat.raster import _native
from featuresplat.scene import Scene
from featuresplat.trainer import Interrupted, Trainer, train


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("tiny") / "scene")


@pytest.mark.parametrize("strategy", ["mcmc", "classic"])
def test_resumed_training_equals_an_uninterrupted_one_to_the_bit(tiny, tmp_path, monkeypatch, strategy):
    straight = trained(tiny, with_everything(tmp_path / "straight", strategy))
    assert not torch.equal(straight.mode.gaussian_params["means"], trained_start(tiny, tmp_path, strategy))
    config = with_everything(tmp_path / "stopped", strategy)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 20)
        with pytest.raises(Interrupted, match=r"step 20 of 40.*--resume"):
            train(tiny, config, progress=False)
    assert [p.name for p in (tmp_path / "stopped/checkpoints").iterdir()] == ["20.safetensors"]
    resumed = Trainer(tiny, replace(config, resume=True), progress=False)
    assert resumed.step_index == 20
    resumed.run()
    assert same(everything(straight), everything(resumed)) == []
    assert straight.running == resumed.running
    steps = [json.loads(line)["step"] for line in (tmp_path / "stopped/log.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


def trained_start(source: Path, tmp_path: Path, strategy: str) -> Tensor:
    trainer = Trainer(source, with_everything(tmp_path / "start", strategy), progress=False)
    return trainer.mode.gaussian_params["means"].detach()


def test_interrupt_handler_is_given_back(tiny, tmp_path, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, tiny_config(tmp_path / "run"), progress=False)
    assert signal.getsignal(signal.SIGINT) is before


def test_resume_without_a_checkpoint_says_so(tiny, tmp_path):
    with pytest.raises(FeaturesplatError, match="no checkpoint to resume from") as caught:
        train(tiny, tiny_config(tmp_path / "nothing", resume=True), progress=False)
    assert "--resume" in caught.value.hint


def test_one_and_two_threads_agree_to_the_bit(tiny, tmp_path):
    before, results = _native.num_threads(), []
    try:
        for threads in (1, 2):
            _native.set_num_threads(threads)
            results.append(everything(trained(tiny, with_everything(tmp_path / str(threads), "mcmc"))))
    finally:
        _native.set_num_threads(before)
    assert same(*results) == []


def test_the_seed_decides(tiny, tmp_path):
    a, b, other = (
        everything(trained(tiny, tiny_config(tmp_path / name, seed=seed)))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert same(a, b) == []
    assert "means" in same(a, other)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> tuple[Path, Scene]:
    """A finished run of 200 steps with a checkpoint and a report."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    config = tiny_config(out, 200, report=True, checkpoint_every=80, eval_every=100)
    return out, train(tiny, config, progress=False)


def test_training_improves_the_held_out_views(tiny, tmp_path, run):
    before = Trainer(tiny, tiny_config(tmp_path / "x"), progress=False)._look()
    after = json.loads((run[0] / "metrics.json").read_text())["test"]["psnr"]
    assert after > before + 3
    assert after > 19


def test_run_folder_holds_what_is_promised(run):
    out, scene = run
    files = {p.name for p in out.iterdir()}
    promised = {"scene.json", "config.yaml", "gaussians.ply", "cameras.json", "metrics.json", "log.jsonl"}
    assert promised | {"report.html", "checkpoints"} <= files
    assert not [f for f in files if ".tmp" in f]
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["160.safetensors", "80.safetensors"]
    assert load_checkpoint(out / "checkpoints/160.safetensors").meta["step"] == 160
    assert len(read_ply(out / "gaussians.ply").gaussians) == len(scene.gaussians) <= POINTS
    assert scene.info["training"]["peak_memory_bytes"] > 0
    assert scene.info["training"]["steps"] == 200


def test_log_has_the_agreed_columns(run):
    rows = [json.loads(line) for line in (run[0] / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [50, 100, 150, 200]
    for row in rows:
        assert row.keys() - {"test_psnr"} == {"step", "loss", "psnr", "gaussians", "seconds", "lr_means"}
    assert ["test_psnr" in r for r in rows] == [False, True, False, True]
    assert rows[-1]["loss"] < rows[0]["loss"]
    final = TrainConfig().optim.means_lr_final
    assert rows[-1]["lr_means"] == pytest.approx(final)
    assert rows[0]["lr_means"] > rows[-1]["lr_means"]


def test_config_of_a_run_given_back_repeats_it(tiny, tmp_path, run):
    out, scene = run
    assert scene.config is not None
    assert yaml.safe_load((out / "config.yaml").read_text()) == to_dict(scene.config)
    loaded = Scene.load(out)
    assert loaded.config is not None
    again = train(tiny, replace(loaded.config, out=tmp_path / "again", report=False), progress=False)
    assert same(again.gaussians.tensors(), loaded.gaussians.tensors()) == []


def test_a_used_run_folder_is_refused_unless_told(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny, tiny_config(out, 5), progress=False)
    with pytest.raises(FeaturesplatError, match="holds a run already") as caught:
        train(tiny, tiny_config(out, 5), progress=False)
    assert "--resume" in caught.value.hint
    assert "--overwrite" in caught.value.hint
    train(tiny, tiny_config(out, 6, overwrite=True), progress=False)
    assert Scene.load(out).info["training"]["steps"] == 6
    (tmp_path / "file").write_text("x")
    with pytest.raises(FeaturesplatError, match="is a file"):
        train(tiny, tiny_config(tmp_path / "file", 5), progress=False)


def test_overwrite_leaves_no_old_checkpoint_to_resume_from(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny, tiny_config(out, 10, checkpoint_every=4), progress=False)
    assert list((out / "checkpoints").glob("*.safetensors"))
    train(tiny, tiny_config(out, 5, overwrite=True), progress=False)
    assert not list((out / "checkpoints").glob("*.safetensors"))


def test_far_and_large_coordinates_train_alike_and_come_back(tiny, tmp_path):
    shift, scale = np.array([1000.0, -2000.0, 500.0]), 50.0
    moved = write_scene(tmp_path / "moved", shift=tuple(shift), scale=scale)
    found, medians = [], []
    for source in (tiny, moved):
        config = tiny_config(tmp_path / f"run{len(found)}", 120)
        config.densify.strategy = "none"
        train(source, config, progress=False)
        found.append(json.loads((config.out / "metrics.json").read_text())["test"]["psnr"])  # pyright: ignore
        medians.append(read_ply(config.out / "gaussians.ply").gaussians.means.median(0).values.numpy())  # pyright: ignore
    assert found[1] == pytest.approx(found[0], abs=0.1)
    np.testing.assert_allclose((medians[1] - shift) / scale, medians[0], atol=0.005)


def test_too_little_memory_is_told_before_the_start(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(FeaturesplatError, match=r"0\.10 GiB are free") as caught:
        train(tiny, tiny_config(tmp_path / "run"), progress=False)
    assert "--model.budget" in caught.value.hint
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_last_good_checkpoint(tiny, tmp_path, monkeypatch):
    straight = everything(trained(tiny, tiny_config(tmp_path / "straight")))
    config = tiny_config(tmp_path / "run", checkpoint_every=15)
    original = Trainer.step

    def fills_up(self):
        original(self)
        if self.step_index == 20:

            def full(_):
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(os, "fsync", full)

    monkeypatch.setattr(Trainer, "step", fills_up)
    with pytest.raises(FeaturesplatError, match="disk is full"):
        train(tiny, config, progress=False)
    monkeypatch.undo()
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["15.safetensors"]
    assert same(everything(trained(tiny, replace(config, resume=True))), straight) == []
