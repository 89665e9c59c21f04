"""Training on a few small views of the demo scene: what it writes, that it learns, and that it repeats itself."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from featuresplat import memory
from featuresplat.config import TrainConfig, to_dict
from featuresplat.errors import FeaturesplatError
from featuresplat.io.checkpoint import load_checkpoint
from featuresplat.io.ply import read_ply, read_point_cloud
from featuresplat.poses import rigid
from featuresplat.raster import _native
from featuresplat.scene import Scene
from featuresplat.trainer import Interrupted, Trainer, train

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
POINTS = 1500


def small(out: Path, steps: int = 40, **changes) -> TrainConfig:
    """A training of a second: 80x60 pixels, 1500 Gaussians, and densification within the few steps."""
    config = TrainConfig(out=out, steps=steps, device="cpu", report=False, eval_views=2)
    config.data.downscale = 4
    config.model.budget, config.model.sh_degree, config.model.sh_interval = POINTS, 1, 0.25
    config.densify.every, config.densify.start, config.densify.stop = 5, 0.1, 0.9
    return replace(config, **changes)


def write_scene(
    folder: Path, views=range(0, 40, 4), shift=(0.0, 0.0, 0.0), scale=1.0, paint=None, mask=None, pose=None
):
    """Some demo views at 80x60 as a scene of their own, every 4th held out.

    ``shift`` and ``scale`` move the world; ``paint(image [60, 80, 3] uint8, k)`` changes a training image and may give
    it an alpha channel; ``mask(k)`` makes its mask; ``pose(c2w, k)`` changes its pose.
    """
    (folder / "images").mkdir(parents=True)
    meta = json.loads((DEMO / "transforms.json").read_text())
    frames, test = [], []
    for k, index in enumerate(views):
        entry = meta["frames"][index]
        name = Path(entry["file_path"]).stem
        pixels = np.asarray(Image.open(DEMO / entry["file_path"]).convert("RGB").resize((80, 60), Image.Resampling.BOX))
        c2w = np.array(entry["transform_matrix"])
        held = k % 4 == 1
        if held:
            test.append(f"{name}.png\n")
        if pose is not None and not held:
            c2w = pose(c2w, k)
        c2w[:3, 3] = scale * c2w[:3, 3] + np.array(shift)
        frame = {"file_path": f"images/{name}.png", "transform_matrix": c2w.tolist()}
        if paint is not None and not held:
            pixels = paint(pixels.copy(), index)
        if mask is not None and not held:
            (folder / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask(index)).save(folder / "masks" / f"{name}.png")
        Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
        frames.append(frame)
    camera = {"camera_model": "PINHOLE", "fl_x": 82.5, "fl_y": 82.5, "cx": 40.0, "cy": 30.0, "w": 80, "h": 60}
    (folder / "transforms.json").write_text(json.dumps({**camera, "ply_file_path": "start.ply", "frames": frames}))
    (folder / "test.txt").write_text("".join(test))
    cloud = read_point_cloud(DEMO / "points3d.ply")
    xyz, rgb = cloud.xyz[::7].double().numpy() * scale + np.array(shift), (cloud.rgb[::7] * 255).round().int().numpy()
    header = "".join(f"property float {c}\n" for c in "xyz") + "".join(
        f"property uchar {c}\n" for c in ("red", "green", "blue")
    )
    rows = [f"{x:.9g} {y:.9g} {z:.9g} {r} {g} {b}\n" for (x, y, z), (r, g, b) in zip(xyz, rgb, strict=True)]
    text = f"ply\nformat ascii 1.0\nelement vertex {len(rows)}\n{header}end_header\n" + "".join(rows)
    (folder / "start.ply").write_text(text)
    return folder


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors that a training has learned or goes on from."""
    out = {k: p.detach().clone() for k, p in trainer.mode.gaussian_params.items()}
    for optimizer in filter(None, (trainer.optimizer, trainer.extra_optimizer)):
        for group in optimizer.param_groups:
            out |= {f"{group['name']}.{k}": torch.as_tensor(v) for k, v in optimizer.state[group["params"][0]].items()}
    if trainer.exposure and trainer.poses:
        out |= {"exposure": trainer.exposure.delta.detach(), "poses": trainer.poses.twist.detach()}
    return out | {"generator": trainer.generator.get_state()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that differ in a bit."""
    return sorted(k for k in a.keys() | b.keys() if k not in a or k not in b or not torch.equal(a[k], b[k]))


def trained(source: Path, config: TrainConfig) -> Trainer:
    trainer = Trainer(source, config, progress=False)
    trainer.run()
    return trainer


def interrupt_at(monkeypatch, step: int) -> None:
    """Send this process what Ctrl-C sends, in the middle of the training's ``step``."""
    original = Trainer.step

    def stepped(self):
        original(self)
        if self.step_index == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", stepped)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("tiny") / "scene")


def tiny_config(out: Path, steps: int = 40, **changes) -> TrainConfig:
    config = small(out, steps, **changes)
    config.data.downscale = 1
    return config


def with_everything(out: Path, strategy: str) -> TrainConfig:
    config = tiny_config(out, coarse_to_fine=(2,))
    config.densify.strategy = strategy  # pyright: ignore[reportAttributeAccessIssue]
    config.densify.reset_every = 12
    config.densify.grad_threshold = 1e-5
    config.exposure.enabled = config.pose.enabled = config.loss.random_background = True
    config.loss.opacity = config.loss.scale = 0.01
    return config


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


def objects_only(pixels: np.ndarray, index: int) -> np.ndarray:
    """The image with everything but the objects transparent."""
    with Image.open(DEMO / "instance" / f"view_{index:03d}.png") as image:
        alpha = (np.asarray(image.resize((80, 60), Image.Resampling.NEAREST)) > OBJECTS_ABOVE).astype(np.uint8) * 255
    return np.dstack([pixels, alpha])


OBJECTS_ABOVE = 1  # the demo's instance maps: 0 nothing, 1 the table


def test_random_backgrounds_clear_what_is_transparent(tmp_path):
    source = write_scene(tmp_path / "rgba", paint=objects_only)
    left = {}
    for random in (False, True):
        config = tiny_config(tmp_path / f"run{random}", 200)
        config.loss.random_background = random
        trainer = trained(source, config)
        scene, views = trainer.scene(), trainer.dataset.train
        assert scene.info["background"] == [1.0, 1.0, 1.0]
        outside, inside = [], []
        for i in views:
            solid = trainer.dataset.alpha(i) > 127  # pyright: ignore[reportOptionalOperand]
            alpha = scene.render(trainer.dataset.cameras[i]).alpha[0, ..., 0]
            outside.append(float(alpha[~solid].mean()))
            inside.append(float(alpha[solid].mean()))
        left[random] = sum(outside) / len(views)
        assert sum(inside) / len(views) > 0.8
    assert left[True] < 0.1
    assert left[True] < 0.75 * left[False]


def test_what_a_mask_leaves_out_does_not_matter(tiny, tmp_path):
    def paint(pixels, _):
        pixels[10:50, 20:60] = (255, 0, 255)
        return pixels

    def mask(_):
        kept = np.full((60, 80), 255, np.uint8)
        kept[10:50, 20:60] = 0
        return kept

    spoiled = write_scene(tmp_path / "spoiled", paint=paint, mask=mask)
    found = {}
    for name, source, masks in (("clean", tiny, "auto"), ("masked", spoiled, "auto"), ("spoiled", spoiled, "none")):
        config = tiny_config(tmp_path / name, 150)
        config.data.masks = masks  # pyright: ignore[reportAttributeAccessIssue]
        trainer = trained(source, config)
        found[name] = trainer._look()
    assert found["masked"] > found["clean"] - 1
    assert found["masked"] > found["spoiled"] + 2


def test_depth_maps_make_depths_better(tmp_path):
    errors = {}
    for weight in (0.0, 1.0):
        config = small(tmp_path / str(weight), 150)
        config.loss.depth = weight
        trainer = trained(DEMO, config)
        scene, data = trainer.scene(), trainer.dataset
        found = []
        for i in data.test:
            truth, out = data.depth(i), scene.render(data.cameras[i])
            assert truth is not None
            known = (truth > 0) & (out.alpha[0, ..., 0] > 0.5)
            found.append(float((out.depth[0, ..., 0] - truth)[known].abs().median()))
        errors[weight] = sum(found) / len(found)
    assert errors[1.0] < 0.3 * errors[0.0]


def test_pose_refinement_takes_back_a_wrong_pose(tmp_path):
    angle = 0.04  # radians about the camera's own y axis: 3 pixels

    def pose(c2w, k):
        turn = np.eye(4)
        turn[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
        return c2w @ turn if k == 4 else c2w

    true = load_viewmats(write_scene(tmp_path / "true"), tmp_path)
    config = tiny_config(tmp_path / "run", 300)
    config.pose.enabled, config.pose.lr, config.densify.strategy = True, 1e-3, "none"
    trainer = trained(write_scene(tmp_path / "wrong", pose=pose), config)
    assert trainer.poses is not None
    assert trainer.dataset.points is not None
    level, points = trainer._level(10_000), trainer.frame.points(trainer.dataset.points).xyz
    planted = [pixels_apart(a, b, level.Ks[0], points) for a, b in zip(level.viewmats, true, strict=True)]
    bad = planted.index(max(planted))
    assert planted[bad] > 3
    assert sum(planted) == planted[bad]
    refined = rigid(trainer.poses.twist[bad].detach()) @ level.viewmats[bad]
    assert pixels_apart(refined, true[bad], level.Ks[0], points) < 0.35 * planted[bad]


def load_viewmats(source: Path, tmp_path: Path) -> Tensor:
    return Trainer(source, tiny_config(tmp_path / "unused"), progress=False)._level(10_000).viewmats


def pixels_apart(a: Tensor, b: Tensor, K: Tensor, points: Tensor) -> float:
    """Median distance in pixels between the images of the scene's points under two poses [4, 4]."""

    def seen(viewmat: Tensor) -> tuple[Tensor, Tensor]:
        local = points @ viewmat[:3, :3].T + viewmat[:3, 3]
        return local[:, :2] / local[:, 2:] * K[0, 0], local[:, 2] > 0.1

    (p, p_front), (q, q_front) = seen(a), seen(b)
    return float((p - q)[p_front & q_front].norm(dim=1).median())


def test_exposure_undoes_flicker(tmp_path):
    def flicker(pixels, index):
        return (pixels * (0.6 if index % 8 else 1.0)).astype(np.uint8)

    source = write_scene(tmp_path / "flicker", paint=flicker)
    found = {}
    for enabled in (False, True):
        config = tiny_config(tmp_path / f"run{enabled}", 200)
        config.exposure.enabled, config.exposure.lr = enabled, 1e-2
        found[enabled] = trained(source, config).running["psnr"]
    assert found[True] > found[False] + 1


def test_harmonics_rise_by_schedule_and_images_by_size(tiny, tmp_path):
    config = tiny_config(tmp_path / "run", 100, coarse_to_fine=(4, 2))
    config.model.sh_degree, config.model.sh_interval = 3, 0.1
    trainer = Trainer(tiny, config, progress=False)
    assert [trainer._sh_degree(s) for s in (0, 9, 10, 29, 30, 99)] == [0, 0, 1, 2, 3, 3]
    widths = [trainer._level(s).dataset.image(0).shape[1] for s in (0, 14, 15, 29, 30, 99)]
    assert widths == [20, 20, 40, 40, 80, 80]
    assert trainer._level(0).cameras.widths[0] == 20  # pyright: ignore[reportIndexIssue]


def test_unused_harmonics_stay_zero(tiny, tmp_path):
    config = tiny_config(tmp_path / "run", 20)
    config.model.sh_degree, config.model.sh_interval = 2, 0.6
    shN = trained(tiny, config).mode.gaussian_params["shN"]
    assert float(shN[:, :3].detach().abs().max()) > 0
    assert float(shN[:, 3:].detach().abs().max()) == 0


def test_every_image_is_seen_once_an_epoch(tiny, tmp_path):
    config = tiny_config(tmp_path / "run")
    config.optim.batch = 3
    trainer = Trainer(tiny, config, progress=False)
    drawn = [i for step in range(7) for i in trainer._batch(step, 7)]
    epochs = [drawn[k : k + 7] for k in (0, 7, 14)]
    assert [sorted(e) for e in epochs] == [list(range(7))] * 3
    assert epochs[0] != epochs[1]
    before = trainer.mode.gaussian_params["means"].detach().clone()
    trainer.step()
    assert not torch.equal(before, trainer.mode.gaussian_params["means"])


def test_learning_rate_falls_exponentially(tiny, tmp_path):
    config = tiny_config(tmp_path / "run", 11)
    config.optim.means_lr, config.optim.means_lr_final = 1e-2, 1e-4
    trainer = Trainer(tiny, config, progress=False)
    rates = []
    for step in (0, 5, 10):
        trainer._set_rates(step)
        rates.append(trainer._rate("means"))
    assert rates == pytest.approx([1e-2, 1e-3, 1e-4])


@pytest.mark.parametrize("device", ["tpu9", "gpu!"])
def test_an_unknown_device_is_named(tiny, tmp_path, device):
    with pytest.raises(FeaturesplatError, match=device):
        train(tiny, tiny_config(tmp_path / "run", device=device), progress=False)


def test_an_unknown_mode_is_named(tiny, tmp_path):
    with pytest.raises(FeaturesplatError, match="statik") as caught:
        train(tiny, tiny_config(tmp_path / "run", mode="statik"), progress=False)
    assert "'static'" in caught.value.hint


def test_data_without_points_starts_at_random_when_asked(tmp_path):
    source = write_scene(tmp_path / "bare")
    meta = json.loads((source / "transforms.json").read_text())
    del meta["ply_file_path"]
    (source / "transforms.json").write_text(json.dumps(meta))
    (source / "start.ply").unlink()
    config = tiny_config(tmp_path / "run", 3)
    config.model.init = "random"
    config.model.init_count = 300
    assert len(train(source, config, progress=False).gaussians) >= 300
    config = tiny_config(tmp_path / "other", 3)
    config.model.init = "points"
    with pytest.raises(FeaturesplatError, match="'points' asked for, but the data brings none") as caught:
        train(source, config, progress=False)
    assert "random" in caught.value.hint


def test_peak_memory_stays_within_the_plan(tiny, tmp_path):
    code = """
        import sys
        from pathlib import Path
        from featuresplat import memory
        from featuresplat.config import TrainConfig
        from featuresplat.trainer import Trainer
        config = TrainConfig(out=Path(sys.argv[2]), steps=15, device="cpu", report=False)
        config.model.budget, config.densify.every, config.densify.start = 40_000, 2, 0.0
        config.densify.growth = 1.0
        trainer = Trainer(Path(sys.argv[1]), config, False)
        trainer.run()
        trainer.finish()
        print(memory.peak(), trainer.plan.total, len(trainer.mode.gaussian_params["means"]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tiny), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    peak, planned, count = map(int, done.stdout.split()[-3:])
    assert count == 40_000
    assert 0 < peak <= planned
