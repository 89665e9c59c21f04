"""What is around the training loop: its folder, its device, Ctrl-C, and the field that comes after."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from featuresplat import _checkpoints, registry
from featuresplat.config import TrainConfig
from featuresplat.datasets import Dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import check_folder
from featuresplat.scene import Scene
from featuresplat.trainlog import progress_bar


def claim(folder: Path, config: TrainConfig) -> None:
    """Refuse to overwrite another run unless told to."""
    if folder.exists() and not folder.is_dir():
        raise FeaturesplatError(f"{folder}: is a file", "Give another --out.")
    check_folder(folder)
    used = (folder / "scene.json").exists() or any((folder / _checkpoints.FOLDER).glob("*.safetensors"))
    if used and not (config.resume or config.overwrite):
        raise FeaturesplatError(
            f"{folder}: holds a run already", "Add --resume to go on, --overwrite to start anew, or another --out."
        )
    if used and config.overwrite and not config.resume:
        for path in (folder / _checkpoints.FOLDER).glob("*.safetensors"):
            path.unlink()


def begun(config: TrainConfig, first: Callable[[TrainConfig, Callable[[Dataset], None]], None]) -> TrainConfig:
    """The configuration after what its mode wants trained before (see `featuresplat.modes`).

    Raises:
        FeaturesplatError: the mode refuses it, or what ``first`` raises.
    """
    module = registry.load("modes", config.mode)
    if not hasattr(module, "begun"):
        return config
    after = module.begun(config, first)
    assert config.out is not None
    if after is not config and not any((config.out / _checkpoints.FOLDER).glob("*.safetensors")):
        after = replace(after, resume=False)  # it was stopped in what came before
    return after


def on_interrupt(handler):
    """Install a SIGINT handler where that is possible; returns the one before it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGINT, handler)


def check_teacher(config: TrainConfig) -> None:
    """Raise now, not after the geometry, when the field that is asked for cannot be made."""
    if config.teacher.name:
        from featuresplat import teachers
        from featuresplat.fields import distill

        names = distill.teacher_names(config.teacher)
        distill.check(names, config.field)
        for name in names:
            teachers.make_teacher(name, replace(config.teacher, name=name))


def with_field(scene: Scene, dataset: Dataset, config: TrainConfig, device: torch.device, progress: bool) -> Scene:
    """The trained scene with the field that the configuration asks for."""
    from featuresplat.fields.distill import distill
    from featuresplat.fields.maps import silent

    return distill(
        scene.to(device), dataset, config.teacher, config.field,
        device=device, seed=config.seed, progress=progress_bar if progress else silent,
    ).to("cpu")  # fmt: skip
