"""The training loop: photographs in, a scene out."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat import _checkpoints, memory, modes, raster, registry
from featuresplat._photographs import Level, Photographs, background_of
from featuresplat._training import begun, check_teacher, claim, on_interrupt, with_field
from featuresplat.config import TrainConfig, load_config
from featuresplat.config_ranges import check_ranges
from featuresplat.datasets import Dataset
from featuresplat.densify import make_strategy
from featuresplat.devices import usable_device
from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import METRICS, measure, rendered_views
from featuresplat.exposure import Exposure
from featuresplat.io.atomic import atomic_write_json, make_folder
from featuresplat.losses import depth_loss
from featuresplat.metrics import psnr
from featuresplat.normalization import Normalization
from featuresplat.poses import PoseRefiner
from featuresplat.priors.depth import load_with_priors
from featuresplat.scene import Scene
from featuresplat.sweep import sweep
from featuresplat.trainlog import TrainLog
from featuresplat.types import Cameras, PointCloud

LOOK_EVERY = 10  # steps between looks at loss and PSNR on a GPU
NEAR = 0.01  # of the camera extent
FINAL_CORRECTION_RATE = 0.01  # of exposures and poses, as a share of the first
SWEEP_RAYS, FEWEST_POINTS = 10_000, 500


class Interrupted(KeyboardInterrupt):
    """Ctrl-C: the state is saved; the message says how to go on."""


def train(
    source: str | Path,
    config: TrainConfig | str = "fast",
    *,
    progress: bool = True,
    watch: Callable[[Trainer], None] | None = None,
) -> Scene:
    """Train a scene from photographs and write its run folder.

    Args:
        source: a folder of any layout that is read (see data/README.md), or a video.
        config: a preset's name, a YAML file, or a TrainConfig.
        progress: show a progress bar.
        watch: called after every step with the trainer, between steps: it may look, and wait.

    Returns:
        The trained scene, as `Scene.load` of the run folder gives it.

    Raises:
        FeaturesplatError: bad data or configuration, a run folder in use, too little memory.
        Interrupted: Ctrl-C, after a checkpoint.
    """
    config = load_config(config) if isinstance(config, str) else config
    source = Path(source)
    folder = config.out or Path("runs") / (source.resolve().stem or "scene")
    check_ranges(config)
    check_teacher(config)
    claim(folder, config)
    config = begun(replace(config, out=folder), lambda first, check: _first(source, first, check, progress, watch))
    trainer = Trainer(source, config, progress)
    trainer.run(watch)
    return trainer.finish()


def _first(
    source: Path,
    config: TrainConfig,
    check: Callable[[Dataset], None],
    progress: bool,
    watch: Callable[[Trainer], None] | None,
) -> None:
    """The run that another starts from; a resumed one may have it already."""
    assert config.out is not None
    if config.resume and (config.out / "scene.json").exists():
        return
    claim(config.out, config)
    trainer = Trainer(source, config, progress)
    check(trainer.dataset)
    trainer.run(watch)
    trainer.finish()


class Trainer:
    """One training: data, parameters, optimisers and the step. `run` to the end, or `step` by step."""

    def __init__(self, source: Path, config: TrainConfig, progress: bool = True):
        self.config, self.source, self.progress = config, source, progress
        assert config.out is not None  # train() fills it in
        self.folder: Path = config.out
        self.device = usable_device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)
        torch.manual_seed(config.seed)
        self.dataset = load_with_priors(source, config)
        if not self.dataset.train:
            raise FeaturesplatError(f"{source}: no image is left to train on", "Use --split all or add photographs.")
        self._plan_memory()
        self.frame = Normalization.of(self.dataset.cameras[self.dataset.train], self.dataset.points)
        self.photographs = Photographs(self.dataset, self.frame, config, self.device, self.generator)
        cameras = self.frame.cameras(self.dataset.cameras[self.dataset.train])
        points = self._start_points(cameras)
        inputs = modes.ModeInputs(config, cameras, points, self.device, self.frame, self.dataset)
        self.mode: modes.Mode = registry.load("modes", config.mode).Mode(inputs)
        self.exposure = Exposure(len(cameras), self.device) if config.exposure.enabled else None
        self.poses = PoseRefiner(len(cameras), self.device) if config.pose.enabled else None
        self.strategy = make_strategy(config.densify, config.model, config.steps, 1.0)
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.mode.parameter_groups(), eps=1e-15, fused=fused)
        extra = []
        if self.exposure:
            extra.append({"name": "exposure", "params": [self.exposure.delta], "initial_lr": config.exposure.lr})
        if self.poses:
            extra.append({"name": "poses", "params": [self.poses.twist], "initial_lr": config.pose.lr})
        self.extra_optimizer = torch.optim.Adam(extra, eps=1e-15) if extra else None
        self.mode.settings = raster.RasterSettings(near=NEAR, antialiased=config.model.antialiased)
        self.step_index = 0
        self.seconds = 0.0
        self.running = {"loss": math.nan, "psnr": math.nan}
        self.stop_asked = False
        if config.resume:
            state = _checkpoints.restore(self.folder, self._state(), self.device)
            self.step_index, self.seconds, self.running = state.step, state.seconds, state.running

    def _start_points(self, cameras: Cameras) -> PointCloud | None:
        """The data's points in the training frame; where it has none, points found by plane sweep."""
        data = self.dataset
        if data.points is not None:
            return self.frame.points(data.points)
        if self.config.model.init != "auto" or self.config.resume:
            return None
        found = sweep(lambda i: data.image(data.train[i]), cameras, SWEEP_RAYS, self.generator)
        return found if len(found) >= FEWEST_POINTS else None

    def run(self, watch: Callable[[Trainer], None] | None = None) -> None:
        """All remaining steps, with log, looks at test views, checkpoints; Ctrl-C saves and raises Interrupted."""
        config = self.config
        make_folder(self.folder)
        log = TrainLog(self.folder, config.mode, config.steps, self.step_index, self.progress, config.tensorboard)
        previous = on_interrupt(self._ask_stop)
        began = time.monotonic() - self.seconds
        threads = torch.get_num_threads()
        if self.device.type == "cpu":
            # torch's own threads spin while they wait and take the cores from the engine: a third of the speed.
            torch.set_num_threads(1)
        try:
            while self.step_index < config.steps and not self.stop_asked:
                self.step()
                self.seconds = time.monotonic() - began
                self._after_step(log)
                if watch is not None:
                    watched = time.monotonic()
                    watch(self)
                    began += time.monotonic() - watched
        finally:
            torch.set_num_threads(threads)
            log.close()
            if previous is not None:
                signal.signal(signal.SIGINT, previous)
        if self.stop_asked:
            self.save_checkpoint()
            raise Interrupted(
                f"stopped at step {self.step_index} of {config.steps}; the state is saved. "
                f"Go on with the same command and --resume."
            )

    def step(self) -> None:
        """One optimisation step."""
        config, step = self.config, self.step_index
        self.mode.before_step(step, self.optimizer)
        self._set_rates(step)
        level = self.photographs.level(step)
        loss: Any = 0.0
        out = None
        for index in self.photographs.batch(step):
            out, view_loss = self._view_loss(level, index, step)
            loss = loss + view_loss / config.optim.batch
        assert out is not None
        if self.exposure:
            loss = loss + config.exposure.regularise * self.exposure.drift()
        self.strategy.before_backward(step, out)
        loss.backward()
        self.optimizer.step()
        if self.extra_optimizer:
            self.extra_optimizer.step()
            self.extra_optimizer.zero_grad(set_to_none=True)
        if not self.mode.fixed:
            self.strategy.after_step(step, self.mode.gaussian_params, self.optimizer, out, self.generator)
        self.mode.after_step(step, self.optimizer, self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        if self._looked_at(step):
            self._average("loss", float(loss.detach()))
        self.step_index += 1

    def _view_loss(self, level: Level, index: int, step: int) -> tuple[Any, Tensor]:
        """Render training image ``index`` and compare."""
        config, data = self.config, level.dataset
        viewmat, K = level.viewmats[index], level.Ks[index]
        if self.poses:
            viewmat = self.poses.apply(viewmat, index)
        image_index = data.train[index]
        truth, background = self.photographs.truth(data, image_index)
        times = level.cameras.times
        width, height = level.cameras.sizes[index]
        view = modes.View(
            viewmat,
            K,
            width,
            height,
            index,
            step,
            time=None if times is None else float(times[index]),
            sh_degree=self._sh_degree(step),
            background=background,
            absgrad=self.strategy.absgrad,
        )
        out = self.mode.render(view)
        assert out.rgb is not None  # a mode renders colours
        rgb = out.rgb[0]
        if self.exposure:
            rgb = self.exposure.apply(rgb, index)
        mask, depth = data.mask(image_index), data.depth(image_index)
        mask = None if mask is None else mask.to(self.device)
        depth = None if depth is None else depth.to(self.device) * self.frame.scale
        loss = self.mode.photometric(rgb, truth, mask)
        if self._looked_at(step):
            self._average("psnr", psnr(rgb.detach(), truth, mask))
        if config.loss.depth and depth is not None:
            loss = loss + config.loss.depth * depth_loss(out.depth[0], depth, out.alpha[0])
        for term in self.mode.losses(
            out, modes.Batch(view, data.cameras.names[image_index], truth, mask, depth)
        ).values():
            loss = loss + term
        return out, loss

    def _set_rates(self, step: int) -> None:
        t = step / max(self.config.steps - 1, 1)
        for group in self.optimizer.param_groups:
            if group["name"] == "means":
                group["lr"] = modes.decayed(self.config.optim, t)
        for name, rate in self.mode.rates(t).items():
            next(g for g in self.optimizer.param_groups if g["name"] == name)["lr"] = rate
        for group in self.extra_optimizer.param_groups if self.extra_optimizer else ():
            # Corrections per image settle: each is seen once an epoch only, and a late jump would show.
            group["lr"] = group["initial_lr"] * FINAL_CORRECTION_RATE**t

    def _sh_degree(self, step: int) -> int:
        model = self.config.model
        each = max(1, round(model.sh_interval * self.config.steps))
        return min(model.sh_degree, step // each)

    def _looked_at(self, step: int) -> bool:
        """Whether a step's loss and PSNR enter the running means. A look waits for all that the GPU has queued: there
        one step in ten has to do.
        """
        return self.device.type == "cpu" or step % LOOK_EVERY == 0

    def _average(self, what: str, value: float) -> None:
        old = self.running[what]
        keep = 0.98 if self.device.type == "cpu" else 0.98**LOOK_EVERY
        self.running[what] = value if math.isnan(old) else keep * old + (1 - keep) * value

    def _after_step(self, log: TrainLog) -> None:
        step, config = self.step_index, self.config
        count = len(self.mode.gaussian_params["means"])
        look = step % config.eval_every == 0 or step == config.steps
        if step % 10 == 0 or look:
            speed = step / max(self.seconds, 1e-9)
            text = f"loss {self.running['loss']:.4f}  PSNR {self.running['psnr']:.2f} dB  {count:,} Gaussians"
            log.show(step, f"{text}  {speed:.1f} steps/s")
        if step % 50 == 0 or look:
            row = {"step": step, "loss": self.running["loss"], "psnr": self.running["psnr"], "gaussians": count}
            row |= {"seconds": round(self.seconds, 3), "lr_means": self._rate("means")}
            if look and self.dataset.test and config.eval_views:
                row["test_psnr"] = self._look()
                log.test(row["test_psnr"])
            log.write(row)
        if step % config.checkpoint_every == 0 and step < config.steps:
            self.save_checkpoint()

    def _rate(self, name: str) -> float:
        return next(g["lr"] for g in self.optimizer.param_groups if g["name"] == name)

    def _look(self) -> float:
        """Mean PSNR of a few test views, spread evenly."""
        test = self.dataset.test
        count = min(self.config.eval_views, len(test))
        some = [test[i * len(test) // count] for i in range(count)]
        views = rendered_views(self.scene(), self.dataset, some, self.config.backend)
        return sum(psnr(render, truth, mask) for _, render, truth, mask in views) / count

    def scene(self) -> Scene:
        """The scene as it is now, in the data's own frame."""
        data = self.dataset
        state = dict(self.mode.state())
        if self.exposure:
            state["exposure.delta"] = self.exposure.delta.detach().clone()
        name = raster.backend_for(self.mode.gaussian_params["means"], self.config.backend).__name__
        names = data.cameras.names
        return Scene(
            gaussians=self.frame.undo(self.mode.at(None)),
            cameras=self._refined_cameras(),
            fields=self.mode.fields(),
            mode=self.config.mode,
            mode_state=state,
            units=self.frame.units(),
            config=replace(self.config, resume=False, overwrite=False),
            info={
                "source": str(self.source.resolve()),
                "split": {"train": [names[i] for i in data.train], "test": [names[i] for i in data.test]},
                "background": background_of(self.config, data),
                "full_sizes": data.full_sizes,
                "training": {
                    "seconds": round(self.seconds, 3),
                    "steps": self.step_index,
                    "peak_memory_bytes": memory.peak(),
                    "backend": name.rsplit(".", 1)[-1],
                },
            },
        )

    def _refined_cameras(self) -> Cameras:
        """The data's cameras, the training ones with their refined poses."""
        cameras = self.dataset.cameras
        if self.poses is None:
            return cameras
        viewmats, given = cameras.viewmats.clone(), self.frame.cameras(cameras[self.dataset.train]).viewmats
        with torch.no_grad():
            refined = [self.poses.apply(v.float().to(self.device), i).cpu() for i, v in enumerate(given)]
        viewmats[self.dataset.train] = self.frame.undo_viewmats(torch.stack(refined)).to(viewmats.dtype)
        return replace(cameras, viewmats=viewmats)

    def finish(self) -> Scene:
        """Write the run folder: the scene, its metrics and its report."""
        scene, module = self.scene(), registry.load("modes", self.config.mode)
        scene.save(self.folder)  # before what may still fail
        if hasattr(module, "settled"):
            scene = module.settled(scene, self.dataset)
            scene.save(self.folder)
        if self.config.teacher.name and not scene.fields:
            scene = with_field(scene, self.dataset, self.config, self.device, self.progress)
            scene.save(self.folder)
        atomic_write_json(self.folder / METRICS, measure(scene, self.dataset, self.config.backend))
        if self.config.report:
            from featuresplat.report import write_report

            write_report(self.folder, self.dataset)
        return scene

    def save_checkpoint(self) -> Path:
        """Everything that the remaining steps depend on."""
        return _checkpoints.save(self.folder, self._state(), self.config)

    def _state(self) -> _checkpoints.State:
        return _checkpoints.State(
            self.mode, self.optimizer, self.extra_optimizer, self.strategy, self.generator,
            self.step_index, self.seconds, self.running,
        )  # fmt: skip

    def _plan_memory(self) -> None:
        sizes = self.dataset.cameras.sizes
        cached = min(sum(w * h * 3 for w, h in sizes), 2 * memory.GIB)
        model = self.config.model
        start = 0 if self.dataset.points is None else len(self.dataset.points)
        count = model.budget
        if self.config.densify.strategy == "none":
            count = min(count, start or model.init_count)
        self.plan = memory.plan(count, model.sh_degree, max(w * h for w, h in sizes), cached)
        if self.device.type == "cpu":
            memory.check(self.plan)

    def _ask_stop(self, *_) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True
