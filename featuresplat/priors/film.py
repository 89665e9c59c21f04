"""The training frames as one film: in the order of time, small, with the flow from frame to frame."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.datasets import Dataset
from featuresplat.errors import FeaturesplatError

LONGEST = 400
"""Frames are reduced until their longer side has at most so many pixels: flow costs by the pixel."""
CONSISTENT = 1.0
"""Flow there and back may differ by so many pixels."""
LEAST_CONSISTENT = 0.3
"""Share of consistent pixels below which two frames do not follow each other in one film."""

Progress = Callable[[str, int, int], None]


def silent(word: str, done: int, total: int) -> None:
    """A progress that says nothing."""


@dataclass
class Film:
    """T frames of one camera in the order of time, reduced; numpy throughout.

    Attributes:
        indices: [T] the frames' places among the training images.
        times: [T] ascending.
        images: [T, H, W, 3] uint8.
        viewmats: [T, 4, 4] float64 world-to-camera, data's frame. Ks: [T, 3, 3] for the reduced size.
        depth: [T, H, W] float32 z-depth in scene units, 0 = unknown; None where no frame has any.
        flow_folder: where flow files are, or None.
        names: [T] image names.
        full_size: width and height of the images that were reduced.
    """

    indices: list[int]
    times: np.ndarray
    images: np.ndarray
    viewmats: np.ndarray
    Ks: np.ndarray
    depth: np.ndarray | None
    names: list[str]
    full_size: tuple[int, int]
    flow_folder: Path | None = None
    progress: Progress = silent

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.images.shape[2], self.images.shape[1]

    @cached_property
    def flows(self) -> tuple[np.ndarray, np.ndarray]:
        """Flow [T-1, H, W, 2] from each frame to the next, and back, in pixels of the reduced size."""
        if self.flow_folder is not None:
            return _flow_files(self, self.flow_folder)
        cv2 = opencv()
        dis = cv2.DISOpticalFlow_create(cv2.DISOpticalFlow_PRESET_MEDIUM)
        dis.setFinestScale(0)
        dis.setPatchStride(3)
        gray = [_even_light(cv2, image) for image in self.images]
        there, back = [], []
        for t in range(len(gray) - 1):
            self.progress("optical flow", t + 1, len(gray) - 1)
            there.append(dis.calc(gray[t], gray[t + 1], None))
            back.append(dis.calc(gray[t + 1], gray[t], None))
        return np.stack(there), np.stack(back)

    @cached_property
    def steady(self) -> tuple[np.ndarray, np.ndarray]:
        """Bool [T-1, H, W]: pixels of t whose flow to t+1 leads back, and pixels of t+1 whose flow to t does."""
        there, back = self.flows
        pairs = [(consistent(f, b), consistent(b, f)) for f, b in zip(there, back, strict=True)]
        return np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs])

    @cached_property
    def continuous(self) -> bool:
        """Whether the frames follow each other closely enough for flow to make sense."""
        return len(self) > 1 and float(np.median(self.steady[0].mean((1, 2)))) >= LEAST_CONSISTENT


def opencv() -> Any:
    """The cv2 module.

    Raises:
        FeaturesplatError: OpenCV is not installed.
    """
    if importlib.util.find_spec("cv2") is None:
        raise FeaturesplatError(
            "finding motion in a film needs OpenCV, which is not installed.", "pip install 'featuresplat[dynamic]'"
        )
    import cv2

    return cv2


def film_of(dataset: Dataset, flow_folder: Path | None = None, progress: Progress = silent) -> Film:
    """The training frames of a dataset as a film.

    Raises:
        FeaturesplatError: the frames have no times, there is but one, sizes differ, or OpenCV is missing.
    """
    times = clock_of(dataset)
    order = sorted(range(len(dataset.train)), key=lambda i: (float(times[dataset.train[i]]), i))
    values = np.array([float(times[dataset.train[i]]) for i in order])
    if len(np.unique(values)) < 2:
        raise FeaturesplatError(
            f"{len(order)} training frames, but all at one time: nothing can move.",
            "Give frames of two or more times, or train with --config fast.",
        )
    cameras = dataset.cameras[[dataset.train[i] for i in order]]
    factor = max(1.0, max(max(s) for s in cameras.sizes) / LONGEST)
    width, height = (max(1, round(v / factor)) for v in cameras.sizes[0])
    if len(set(cameras.sizes)) > 1:
        raise FeaturesplatError("the frames of this film differ in size.", "Use frames of one size.")
    small = cameras.resized(width, height)
    frames = [dataset.train[i] for i in order]
    depth = [dataset.depth(i) for i in frames]
    return Film(
        indices=order,
        times=values,
        images=np.stack([_resized(dataset.image(i).numpy(), width, height) for i in frames]),
        viewmats=small.viewmats.double().numpy(),
        Ks=small.Ks.double().numpy(),
        depth=None
        if all(d is None for d in depth)
        else np.stack([_nearest(None if d is None else d.numpy(), width, height) for d in depth]),
        names=list(cameras.names),
        full_size=cameras.sizes[0],
        flow_folder=flow_folder,
        progress=progress,
    )


def clock_of(dataset: Dataset) -> Tensor:
    """[C] the times of all frames, on one clock that runs from 0 to 1.

    Raises:
        FeaturesplatError: there are none, or they run on another clock (seconds, frame numbers).
    """
    times = dataset.cameras.times
    if times is None:
        raise FeaturesplatError(
            "the frames have no `time`: this scene holds still as far as the data says.",
            "Add `time` to the frames, or train it with --config fast.",
        )
    low, high = float(times.min()), float(times.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # NaN is neither
        off = int(torch.where(times > 1 + 1e-6, times, -times).nan_to_num(torch.inf).argmax())
        raise FeaturesplatError(
            f"`time` runs from {low:g} to {high:g} (frame {dataset.cameras.names[off]}), expected 0..1.",
            "Put all cameras on one clock, 0 at the first frame and 1 at the last: divide seconds by the length.",
        )
    return times


def sample(image: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Bilinear samples [M, ...] of [H, W, ...] at pixels ``at`` [M, 2] (column, row; centres at +0.5)."""
    cv2 = opencv()
    at = at.astype(np.float32)
    if not len(at):
        return np.zeros((0, *image.shape[2:]), np.float32)
    return cv2.remap(image.astype(np.float32), at[:, :1] - 0.5, at[:, 1:] - 0.5, cv2.INTER_LINEAR)[:, 0]


def warp(image: np.ndarray, flow: np.ndarray, outside: float = 0.0) -> np.ndarray:
    """``image`` [H, W, ...] as seen through ``flow`` [H, W, 2]: out(p) = image(p + flow(p))."""
    cv2 = opencv()
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return cv2.remap(
        image,
        x + flow[..., 0],
        y + flow[..., 1],
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(outside,) * 4,
    )


def structure(image: np.ndarray) -> np.ndarray:
    """[H, W, 2, 2] mean of the outer products of the grey gradient over a patch of about 7 pixels."""
    cv2 = opencv()
    gray = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 0.8)
    gx, gy = (cv2.Sobel(gray, cv2.CV_32F, dx, 1 - dx, scale=0.125) for dx in (1, 0))
    xx, xy, yy = (cv2.GaussianBlur(v, (0, 0), 1.7) for v in (gx * gx, gx * gy, gy * gy))
    return np.stack([np.stack([xx, xy], -1), np.stack([xy, yy], -1)], -1)


def consistent(there: np.ndarray, back: np.ndarray) -> np.ndarray:
    """Bool [H, W]: where the flow leads to a pixel inside, and that one's flow leads back."""
    height, width = there.shape[:2]
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    u, v = x + there[..., 0], y + there[..., 1]
    inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
    error = np.linalg.norm(there + warp(back, there, 1e3), axis=-1)
    return inside & (error < CONSISTENT + 0.05 * np.linalg.norm(there, axis=-1))


def _even_light(cv2: Any, image: np.ndarray) -> np.ndarray:
    """Grey values with their contrast evened out, so that flow holds on in shade."""
    return cv2.createCLAHE(2.0, (8, 8)).apply(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    return opencv().resize(image, (width, height), interpolation=opencv().INTER_AREA)


def _nearest(depth: np.ndarray | None, width: int, height: int) -> np.ndarray:
    if depth is None:
        return np.zeros((height, width), np.float32)
    rows = ((np.arange(height) + 0.5) * depth.shape[0] / height + 1e-6).astype(int)
    cols = ((np.arange(width) + 0.5) * depth.shape[1] / width + 1e-6).astype(int)
    return depth[rows][:, cols].astype(np.float32)


def _flow_files(film: Film, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Flow from files ``NAME.npy`` (to the next frame) and ``NAME_back.npy`` (to the one before), [h, w, 2] pixels."""
    if not folder.is_dir():
        raise FeaturesplatError(f"{folder}: there is no such folder of flow.", "Check --priors.flow.")
    width, height = film.size

    def load(stem: str) -> np.ndarray:
        path = folder / f"{stem}.npy"
        try:
            flow = np.asarray(np.load(path, allow_pickle=False), np.float32)
        except (OSError, ValueError, EOFError) as error:
            raise FeaturesplatError(
                f"{path}: is missing or no flow ({error}).", "Write NAME.npy and NAME_back.npy, [H, W, 2] in pixels."
            ) from None
        fits = flow.ndim == 3 and flow.shape[2] == 2
        if not fits or abs(flow.shape[1] * height / (flow.shape[0] * width) - 1) > 0.02:
            raise FeaturesplatError(
                f"{path}: expected flow [h, w, 2] of the frames' proportions, got {list(flow.shape)}.",
                "Write the flow at the size of the frames, or all of it smaller by one factor.",
            )
        scale = np.array([width / flow.shape[1], height / flow.shape[0]], np.float32)
        return opencv().resize(np.nan_to_num(flow), (width, height)) * scale

    stems = [Path(n).with_suffix("").as_posix() for n in film.names]
    stems = [s if (folder / f"{s}.npy").is_file() or "/" not in s else s.rsplit("/", 1)[1] for s in stems]
    there = np.stack([load(s) for s in stems[:-1]])
    return there, np.stack([load(f"{s}_back") for s in stems[1:]])
