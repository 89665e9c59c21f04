"""The checkpoints of a training: all that its remaining steps depend on, put down and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.config import TrainConfig, to_dict
from featuresplat.densify import Strategy
from featuresplat.errors import FeaturesplatError
from featuresplat.io.checkpoint import (
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from featuresplat.modes import Mode

FOLDER = "checkpoints"
KEPT = 2  # the newest ones


@dataclass(frozen=True)
class State:
    """All that the remaining steps of a training depend on, but its configuration.

    Attributes:
        optimizer: of the mode's parameters.
        extra_optimizer: of exposures and poses; None without them.
        step: how many steps are done.
        seconds: how long they took.
        running: running means of loss and PSNR.
    """

    mode: Mode
    optimizer: torch.optim.Optimizer
    extra_optimizer: torch.optim.Optimizer | None
    strategy: Strategy
    generator: torch.Generator
    step: int
    seconds: float
    running: dict[str, float]


def save(folder: Path, state: State, config: TrainConfig) -> Path:
    """Write the checkpoint of a run folder's present step; older ones than the last two go away."""
    tensors: dict[str, Any] = {
        "params": {k: p.detach() for k, p in state.mode.gaussian_params.items()},
        "extra_params": {k: p.detach() for k, p in state.mode.extra_params.items()},
        "buffers": state.mode.buffers(),
        "optimizer": _moments(state.optimizer),
        "strategy": state.strategy.state_dict(),
        "generator": {"state": state.generator.get_state()},
    }
    if state.extra_optimizer:
        tensors["extra"] = {g["name"]: g["params"][0].detach() for g in state.extra_optimizer.param_groups}
        tensors["extra_optimizer"] = _moments(state.extra_optimizer)
    meta = {"step": state.step, "seconds": state.seconds, "running": state.running, "config": to_dict(config)}
    path = checkpoint_path(folder / FOLDER, state.step)
    save_checkpoint(path, tensors, meta)
    prune_checkpoints(folder / FOLDER, KEPT)
    return path


def restore(folder: Path, state: State, device: torch.device) -> State:
    """The state that a run folder's newest checkpoint holds, in the objects of a training that has just begun.

    Raises:
        FeaturesplatError: there is none, or it cannot be read.
    """
    path = latest_checkpoint(folder / FOLDER)
    if path is None:
        raise FeaturesplatError(f"{folder}: holds no checkpoint to resume from", "Leave --resume out.")
    saved, mode = load_checkpoint(path), state.mode
    for kind, params in (("params", mode.gaussian_params), ("extra_params", mode.extra_params)):
        for name, value in saved.tensors.get(kind, {}).items():
            params[name] = torch.nn.Parameter(value.to(device))
    everything = {**mode.gaussian_params, **mode.extra_params}
    for group in state.optimizer.param_groups:
        group["params"] = [everything[group["name"]]]
    mode.load_buffers(saved.tensors.get("buffers", {}))
    _restore_moments(state.optimizer, saved.tensors.get("optimizer", {}))
    state.strategy.load_state_dict(saved.tensors.get("strategy", {}))
    state.generator.set_state(saved.tensors["generator"]["state"])
    if state.extra_optimizer:
        for group in state.extra_optimizer.param_groups:
            group["params"][0].data.copy_(saved.tensors["extra"][group["name"]])
        _restore_moments(state.extra_optimizer, saved.tensors.get("extra_optimizer", {}))
    meta = saved.meta
    return replace(state, step=meta["step"], seconds=meta["seconds"], running=dict(meta["running"]))


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
            # As torch's own load_state_dict: only a fused Adam counts its steps where the parameter lives.
            counts_there = bool(group.get("fused") or group.get("capturable"))
            optimizer.state[p] = {
                k: v.to(p.device) if k != "step" or counts_there else v for k, v in saved[group["name"]].items()
            }
