"""Editing rows of parameters and of the optimizer's moments together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

Params = dict[str, torch.nn.Parameter]


def keep(params: Params, optimizer: torch.optim.Optimizer, rows: Tensor) -> None:
    """Keep only the Gaussians at ``rows``, a boolean mask or indices."""
    for name in params:
        _replace(params, optimizer, name, params[name].detach()[rows], lambda moment: moment[rows])


def append(params: Params, optimizer: torch.optim.Optimizer, new: dict[str, Tensor]) -> None:
    """Append rows, given for every parameter; their moments start at zero."""
    for name, rows in new.items():

        def longer(moment: Tensor, rows: Tensor = rows) -> Tensor:
            return torch.cat([moment, torch.zeros_like(rows)])

        _replace(params, optimizer, name, torch.cat([params[name].detach(), rows]), longer)


def zero_moments(
    params: Params, optimizer: torch.optim.Optimizer, rows: Tensor | slice, names: Iterable[str] | None = None
) -> None:
    """Forget the moments of the Gaussians at ``rows``, of the named parameters (default: all)."""
    for name in params if names is None else names:
        for moment in moments(optimizer, params[name]).values():
            moment[rows] = 0


def moments(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> dict[str, Tensor]:
    """The optimizer's per-element tensors of one parameter (Adam: exp_avg, exp_avg_sq), by name."""
    state = optimizer.state.get(param, {})
    return {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == param.shape and k != "step"}


def _replace(
    params: Params, optimizer: torch.optim.Optimizer, name: str, value: Tensor, edit: Callable[[Tensor], Tensor]
) -> None:
    """Put ``value`` in place of one parameter; ``edit`` is applied to its moments."""
    old = params[name]
    new = torch.nn.Parameter(value, requires_grad=old.requires_grad)
    edited = {k: edit(v) for k, v in moments(optimizer, old).items()}
    if old in optimizer.state:
        optimizer.state[new] = {**optimizer.state.pop(old), **edited}
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]
    params[name] = new
