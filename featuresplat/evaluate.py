"""How good a run is: PSNR, SSIM and LPIPS on its held-out views, written to metrics.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat import __version__, raster, registry
from featuresplat.datasets import Dataset, load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_write_json
from featuresplat.masks_eval import measure_masks, read_masks
from featuresplat.metrics import image_metrics
from featuresplat.prompts import text
from featuresplat.scene import Scene

FORMAT = 1
METRICS = "metrics.json"


def evaluate(
    run: str | Path,
    device: str = "cpu",
    backend: str | None = None,
    *,
    masks: str | Path | None = None,
    field: str | None = None,
    gaussians: bool = False,
    objects: bool = False,
    compete: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Measure a run on its held-out views and write its metrics.json.

    Args:
        masks: folder of true masks; adds ``masks`` to the result, see `featuresplat.masks_eval`. What an earlier
            evaluation found of masks is kept otherwise.
        field, gaussians, objects, compete, progress: of `featuresplat.masks_eval.measure_masks`.

    Raises:
        FeaturesplatError: no such run, or its photographs are gone, or nothing was held out; masks that cannot be
            used, a run without a field that answers text.
    """
    scene = Scene.load(run)
    there = scene.to(device)
    # What can be wrong with masks is told before the minutes that the photographs take.
    truth = None if masks is None else read_masks(masks, scene)
    if truth is not None:
        text.ask(scene, sorted({label for found in truth.values() for label in found}), field)
    dataset = dataset_of(scene)
    result = measure(there, dataset, backend)
    if truth is not None:
        how = {"gaussians": gaussians, "objects": objects, "compete": compete, "progress": progress}
        result["masks"] = measure_masks(there, truth, field, dataset=dataset, **how)
    elif "masks" in (before := _earlier(run)):
        result["masks"] = before["masks"]
    atomic_write_json(Path(run) / METRICS, result)
    return result


def _earlier(run: str | Path) -> dict[str, Any]:
    """The metrics.json that is there, if it can be read."""
    try:
        found = json.loads((Path(run) / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def dataset_of(scene: Scene) -> Dataset:
    """The photographs that a scene was trained on, at the size it was trained at.

    Raises:
        FeaturesplatError: the scene does not say where they are, or they are gone.
    """
    source = scene.info.get("source")
    if not source or scene.config is None:
        raise FeaturesplatError("this scene does not say which photographs it was made from", "Train it again.")
    if not Path(source).exists():
        raise FeaturesplatError(f"{source}: the photographs of this run are no longer there", "Put them back there.")
    return load_dataset(Path(source), scene.config.data)


def measure(scene: Scene, dataset: Dataset, backend: str | None = None) -> dict[str, Any]:
    """The content of metrics.json for a scene and its data."""
    images = []
    perceptual: list[float | None] = []
    for name, render, truth, mask in rendered_views(scene, dataset, dataset.test, backend):
        found = image_metrics(render, truth, mask)
        images.append({"name": name, **found})
        perceptual.append(found["lpips"])
    training = scene.info.get("training", {})
    module = registry.load("modes", scene.mode)
    own = module.measure(scene, dataset, backend) if hasattr(module, "measure") else None
    return {
        "format": FORMAT,
        "test": {
            "psnr": _mean([i["psnr"] for i in images]),
            "ssim": _mean([i["ssim"] for i in images]),
            "lpips": None if None in perceptual else _mean([p for p in perceptual if p is not None]),
            "images": [{"name": i["name"], "psnr": i["psnr"], "ssim": i["ssim"]} for i in images],
            "exposure": "predicted from neighbouring views" if "exposure.delta" in scene.mode_state else "none",
        },
        "train_seconds": training.get("seconds"),
        "gaussians": len(scene.gaussians),
        "peak_memory_bytes": training.get("peak_memory_bytes"),
        "backend": training.get("backend") or _backend_name(scene, backend),
        "versions": versions(),
    } | ({} if own is None else {scene.mode: own})


def rendered_views(
    scene: Scene, dataset: Dataset, indices: list[int], backend: str | None = None
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """(name, render [H, W, 3], photograph [H, W, 3], mask [H, W] or None) of each view, in 0..1."""
    for i in indices:
        view = dataset.cameras[i]
        out = scene.render(view, exposure=True, backend=backend)
        assert out.rgb is not None  # Scene always renders colours
        truth = dataset.image(i).to(out.rgb.device).float() / 255.0
        yield view.names[0], out.rgb[0].clamp(0, 1), truth, dataset.mask(i)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on. A checkout that is not installed has the version of its sources."""
    try:
        own = metadata.version("featuresplat")
    except metadata.PackageNotFoundError:
        own = f"{__version__} (not installed)"
    return {
        "featuresplat": own,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _backend_name(scene: Scene, backend: str | None) -> str:
    return raster.backend_for(scene.gaussians.means, backend).__name__.rsplit(".", 1)[-1]
