"""What the tests of the trainer share: a few small views of the demo scene, and settings to match."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuresplat.config import TrainConfig, load_config
from featuresplat.io.ply import read_point_cloud
from featuresplat.trainer import Trainer

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


def interrupt_at(monkeypatch, step: int, folder: str | None = None) -> None:
    """Send this process what Ctrl-C sends, in the middle of the training's ``step``, if its folder has that name."""
    original = Trainer.step

    def stepped(self):
        original(self)
        if self.step_index == step and folder in (None, self.folder.name):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "step", stepped)


def tiny_inverse(out: Path, steps: int) -> TrainConfig:
    """A training of materials, from the points alone."""
    config = load_config("inverse")
    config.steps = config.eval_every = steps
    config.out, config.report, config.device = out, False, "cpu"
    config.model.budget, config.data.downscale, config.inverse.light_size = POINTS, 1, 32
    config.inverse.radiance_run = 0
    return config


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
