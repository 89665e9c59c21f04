"""The checkpoints of a training: all that its remaining steps depend on, put down and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat.config import to_dict
from featuresplat.errors import FeaturesplatError
from featuresplat.io.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)

if TYPE_CHECKING:
    from featuresplat.trainer import Trainer

FOLDER = "checkpoints"
KEPT = 2  # the newest ones


def save(trainer: Trainer) -> Path:
    """Write the checkpoint of a training's present step; older ones than the last two go away."""
    tensors: dict[str, Any] = {
        "params": {k: p.detach() for k, p in trainer.mode.gaussian_params.items()},
        "extra_params": {k: p.detach() for k, p in trainer.mode.extra_params.items()},
        "buffers": trainer.mode.buffers(),
        "optimizer": _moments(trainer.optimizer),
        "strategy": trainer.strategy.state_dict(),
        "generator": {"state": trainer.generator.get_state()},
    }
    if trainer.extra_optimizer:
        tensors["extra"] = {g["name"]: g["params"][0].detach() for g in trainer.extra_optimizer.param_groups}
        tensors["extra_optimizer"] = _moments(trainer.extra_optimizer)
    meta = {"step": trainer.step_index, "seconds": trainer.seconds, "running": trainer.running}
    meta["config"] = to_dict(trainer.config)
    path = checkpoint_path(trainer.folder / FOLDER, trainer.step_index)
    save_checkpoint(path, tensors, meta)
    prune_checkpoints(trainer.folder / FOLDER, KEPT)
    return path


def restore(trainer: Trainer) -> None:
    """Put a training where its newest checkpoint left off.

    Raises:
        FeaturesplatError: there is none, or it cannot be read.
    """
    path = latest_checkpoint(trainer.folder / FOLDER)
    if path is None:
        raise FeaturesplatError(f"{trainer.folder}: holds no checkpoint to resume from", "Leave --resume out.")
    saved, mode = load_checkpoint(path), trainer.mode
    for kind, params in (("params", mode.gaussian_params), ("extra_params", mode.extra_params)):
        for name, value in saved.tensors.get(kind, {}).items():
            params[name] = torch.nn.Parameter(value.to(trainer.device))
    everything = {**mode.gaussian_params, **mode.extra_params}
    for group in trainer.optimizer.param_groups:
        group["params"] = [everything[group["name"]]]
    mode.load_buffers(saved.tensors.get("buffers", {}))
    _restore_moments(trainer.optimizer, saved.tensors.get("optimizer", {}))
    trainer.strategy.load_state_dict(saved.tensors.get("strategy", {}))
    trainer.generator.set_state(saved.tensors["generator"]["state"])
    if trainer.extra_optimizer:
        for group in trainer.extra_optimizer.param_groups:
            group["params"][0].data.copy_(saved.tensors["extra"][group["name"]])
        _restore_moments(trainer.extra_optimizer, saved.tensors.get("extra_optimizer", {}))
    trainer.step_index, trainer.seconds = saved.meta["step"], saved.meta["seconds"]
    trainer.running = dict(saved.meta["running"])


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """Adam's state by the group's name."""
    out: dict[str, dict[str, Tensor]] = {}
    for group in optimizer.param_groups:
        state = optimizer.state.get(group["params"][0])
        if state:
            out[group["name"]] = {k: torch.as_tensor(v).detach() for k, v in state.items()}
    return out


def _restore_moments(optimizer: torch.optim.Optimizer, saved: dict[str, dict[str, Tensor]]) -> None:
    optimizer.state.clear()
    for group in optimizer.param_groups:
        if group["name"] in saved:
            p = group["params"][0]
            optimizer.state[p] = {k: v.to(p.device) if k != "step" else v for k, v in saved[group["name"]].items()}
