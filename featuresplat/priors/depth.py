"""Depth maps beside the frames, brought to the scene's scale where they have one of their own."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featuresplat.config import TrainConfig
from featuresplat.datasets import Dataset, load_dataset
from featuresplat.datasets._views import DiskViews, SmallerViews, View
from featuresplat.errors import FeaturesplatError

FEWEST = 12
"""Start points that must show in a frame to find its scale and offset."""


def load_with_priors(source: str | Path, config: TrainConfig) -> Dataset:
    """The data set with the depth maps that ``config.priors`` names, in scene units.

    Raises:
        FeaturesplatError: as `load_dataset`; no start points to bring relative depth to the scene's scale by.
    """
    folder, kind = config.priors.depth, config.priors.depth_kind
    if folder is None:
        return load_dataset(source, config.data)
    dataset = load_dataset(source, replace(config.data, depths=folder))
    _check_sizes(dataset)
    if kind == "metric":
        return dataset
    if dataset.points is None or len(dataset.points) < FEWEST:
        raise FeaturesplatError(
            f"priors.depth_kind: '{kind}' depth is brought to scale by start points, but the data brings none.",
            "Give metric depth in scene units, or data with points (COLMAP, or a PLY named in transforms.json).",
        )
    return replace(dataset, _views=_Aligned(dataset, kind == "disparity"))


class _Aligned:
    """Views whose depth maps are scaled and shifted, frame by frame, to agree with the start points."""

    def __init__(self, dataset: Dataset, inverse: bool):
        self.parent, self.dataset, self.inverse = dataset._views, dataset, inverse
        self._fits: dict[int, tuple[float, float] | None] = {}

    def view(self, i: int) -> View:
        return self.parent.view(i)

    def depth(self, i: int) -> Tensor | None:
        raw = self.parent.depth(i)
        if raw is None:
            return None
        if i not in self._fits:
            self._fits[i] = self._fit(i, raw)
        fit = self._fits[i]
        if fit is None:
            return torch.zeros_like(raw)
        return _converted(raw, fit, self.inverse)

    def _fit(self, i: int, raw: Tensor) -> tuple[float, float] | None:
        """Factor and offset of frame i, or None where too few points show."""
        points, camera = self.dataset.points, self.dataset.cameras[i]
        assert points is not None  # load_with_priors has looked
        local = points.xyz.double() @ camera.viewmats[0, :3, :3].T.double() + camera.viewmats[0, :3, 3].double()
        z, K = local[:, 2], camera.Ks[0].double()
        uv = local[:, :2] / z.clamp_min(1e-9)[:, None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
        height, width = raw.shape
        inside = (z > 1e-6) & (uv >= 0).all(1) & (uv[:, 0] < width) & (uv[:, 1] < height)
        uv, z = uv[inside].long(), z[inside].numpy()
        value = raw[uv[:, 1], uv[:, 0]].double().numpy()
        known = value > 0
        if known.sum() < FEWEST:
            warnings.warn(f"depth of {camera.names[0]}: too few start points show, it is left out.", stacklevel=2)
            return None
        target = 1 / z[known] if self.inverse else z[known]
        return robust_line(value[known], target)


def robust_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """(a, b) of y = a x + b against outliers: points hidden behind what the map shows, and things that moved.

    Starts from the median of many slopes (Theil 1950, Sen 1968), then re-weights least squares by Cauchy's function.
    """
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, len(x), 2000) for _ in range(2))
    apart = np.abs(x[first] - x[second]) > 1e-9 * max(float(np.abs(x).max()), 1e-30)
    slopes = (y[first] - y[second])[apart] / (x[first] - x[second])[apart]
    a = float(np.median(slopes)) if len(slopes) else 0.0
    b = float(np.median(y - a * x))
    for _ in range(20):
        off = y - a * x - b
        spread = 1.5 * np.median(np.abs(off)) + 1e-12
        w = 1 / (1 + (off / spread) ** 2)
        mx, my = np.average(x, weights=w), np.average(y, weights=w)
        var = np.average((x - mx) ** 2, weights=w)
        a = float(np.average((x - mx) * (y - my), weights=w) / var) if var > 0 else a
        b = float(my - a * mx)
    return a, b


def _converted(raw: Tensor, fit: tuple[float, float], inverse: bool) -> Tensor:
    value = fit[0] * raw + fit[1]
    good = (raw > 0) & (value > 0)
    depth = 1 / value.clamp_min(1e-6) if inverse else value
    return torch.where(good, depth, torch.zeros_like(depth))


def _check_sizes(dataset: Dataset) -> None:
    """Read one map now: what does not fit is told before an hour of work."""
    views: DiskViews | SmallerViews | _Aligned = dataset._views
    first = next((i for i in dataset.train if isinstance(views, DiskViews) and views.frames[i].depth_path), None)
    if first is None:
        raise FeaturesplatError(
            "priors.depth: the folder holds a depth map for none of the training frames.",
            "Name them as the images: NAME.npy or NAME.png.",
        )
    dataset.depth(first)
