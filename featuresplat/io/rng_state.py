"""The states of all random generators, so that a resumed run draws what the uninterrupted one would have."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError

Generator = torch.Generator | np.random.Generator | random.Random


def capture_rng(
    generators: Mapping[str, Generator] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The global generators of torch (CPU, and every CUDA device in use), numpy and Python, and those given
    by name.

    Returns:
        (tensors, JSON-able words), both for :func:`featuresplat.io.checkpoint.save_checkpoint` to keep.
    """
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        tensors.update({f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    legacy: Any = np.random.get_state(legacy=False)
    legacy["state"] = {**legacy["state"], "key": legacy["state"]["key"].tolist()}
    words: dict[str, Any] = {"python": random.getstate(), "numpy": legacy}
    for name, generator in (generators or {}).items():
        if isinstance(generator, torch.Generator):
            tensors[f"named.{name}"] = generator.get_state()
        elif isinstance(generator, random.Random):
            words[f"named.{name}"] = generator.getstate()
        else:
            words[f"named.{name}"] = _plain(generator.bit_generator.state)
    return tensors, words


def restore_rng(
    tensors: Mapping[str, Tensor], words: Mapping[str, Any], generators: Mapping[str, Generator] | None = None
) -> None:
    """Put back what :func:`capture_rng` took; the named generators must be of the same kinds.

    Raises:
        FeaturesplatError: a state is missing or not of its generator.
    """
    try:
        torch.set_rng_state(tensors["torch"])
        if torch.cuda.is_available():
            for i in range(torch.cuda.device_count()):
                if f"cuda{i}" in tensors:
                    torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
        legacy = words["numpy"]
        key = np.array(legacy["state"]["key"], np.uint32)
        np.random.set_state({**legacy, "state": {**legacy["state"], "key": key}})
        random.setstate(_python_state(words["python"]))
        for name, generator in (generators or {}).items():
            if isinstance(generator, torch.Generator):
                generator.set_state(tensors[f"named.{name}"])
            elif isinstance(generator, random.Random):
                generator.setstate(_python_state(words[f"named.{name}"]))
            else:
                generator.bit_generator.state = words[f"named.{name}"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FeaturesplatError(
            f"checkpoint: the states of its random generators do not fit ({error}).",
            "Resume with the version that wrote it, or start again.",
        ) from error


def _python_state(state: Any) -> tuple:
    version, numbers, gauss = state
    return version, tuple(numbers), gauss


def _plain(value: Any) -> Any:
    """Arrays and numpy numbers as lists and Python numbers."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
