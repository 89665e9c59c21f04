"""Readers of scenes on disk: one file, one input layout; and the Dataset that training draws from."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.config import DataConfig
from featuresplat.datasets._recording import Frame, Lens, Recording
from featuresplat.datasets._split import split
from featuresplat.datasets._views import DiskViews, SmallerViews, View, lens_for_file
from featuresplat.errors import FeaturesplatError
from featuresplat.types import Cameras, PointCloud

CACHE_BYTES = 2 << 30
"""Images are kept decoded as long as all of them fit; otherwise only those decoded last are, within the same bound."""
THREADS = 2
"""How many images are decoded at once."""


@dataclass
class Dataset:
    """Posed photographs as undistorted pinhole images, ready to train on.

    Attributes:
        root: what was loaded.
        kind: name of the reader, e.g. ``colmap``.
        cameras: all C frames sorted by name; viewmats and Ks float64, world frame of the data, at the working size.
        train, test: indices into ``cameras``.
        points: start points in the world frame, or None.
    """

    root: Path
    kind: str
    cameras: Cameras
    train: list[int]
    test: list[int]
    points: PointCloud | None
    _views: DiskViews | SmallerViews = field(repr=False)
    _cache: OrderedDict[int, View] = field(default_factory=OrderedDict, repr=False)

    def __len__(self) -> int:
        return len(self.cameras)

    def image(self, i: int) -> Tensor:
        """uint8 [H, W, 3], undistorted, resized, transparency laid over the configured background.

        Raises:
            FeaturesplatError: the file is damaged.
        """
        return self._view(i).rgb

    def alpha(self, i: int) -> Tensor | None:
        """uint8 [H, W] opacity of an image with transparency, else None; ``image`` is premultiplied by it."""
        return self._view(i).alpha

    def mask(self, i: int) -> Tensor | None:
        """bool [H, W], True = use this pixel; None = use all."""
        return self._view(i).mask

    def depth(self, i: int) -> Tensor | None:
        """float32 [H, W] z-depth in scene units, 0 = unknown; None where the frame has no depth map."""
        return self._views.depth(i)

    def at_size(self, downscale_factor: int) -> Dataset:
        """The same data reduced further, by area averaging of the working images.

        Raises:
            FeaturesplatError: a factor below 1.
        """
        if downscale_factor < 1:
            raise FeaturesplatError(f"downscale: expected at least 1, got {downscale_factor}.", "2 halves the size.")
        sizes = [_reduced(w, h, downscale_factor) for w, h in zip(self._widths, self._heights, strict=True)]
        cameras = self.cameras.resized([w for w, _ in sizes], [h for _, h in sizes])
        cameras = replace(cameras, viewmats=cameras.viewmats.clone())
        train, test = list(self.train), list(self.test)
        return replace(
            self, cameras=cameras, train=train, test=test, _views=SmallerViews(self, sizes), _cache=OrderedDict()
        )

    @property
    def full_sizes(self) -> list[tuple[int, int]]:
        """(width, height) of the photographs as they lie on disk, before any reduction."""
        views = self._views
        while not isinstance(views, DiskViews):
            views = getattr(views.parent, "_views", views.parent)
        return [(lens.width, lens.height) for lens in views.lenses]

    def view(self, i: int) -> View:
        """Image, alpha and mask at once."""
        return self._view(i)

    @property
    def _widths(self) -> tuple[int, ...]:
        return tuple(self.cameras.widths)  # pyright: ignore[reportArgumentType]

    @property
    def _heights(self) -> tuple[int, ...]:
        return tuple(self.cameras.heights)  # pyright: ignore[reportArgumentType]

    @property
    def _fits(self) -> bool:
        pixels = sum(w * h for w, h in zip(self._widths, self._heights, strict=True))
        return pixels * 5 <= CACHE_BYTES  # colours, and what they may have of alpha and mask

    def _view(self, i: int) -> View:
        i = range(len(self))[i]
        if i in self._cache:
            return self._cache[i]
        view = self._views.view(i)
        self._cache[i] = view
        if not self._fits:
            while len(self._cache) > 1 and sum(v.bytes for v in self._cache.values()) > CACHE_BYTES:
                self._cache.popitem(last=False)
        return view

    def _preload(self, progress: Callable[..., Any] | None) -> None:
        """Decode everything now, so that a damaged image is told before an hour of training."""
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(self._view, i) for i in range(len(self))]
            try:
                for done, job in enumerate(jobs, 1):
                    job.result()
                    if progress is not None:
                        progress("images", done, len(jobs))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def load_dataset(path: str | Path, config: DataConfig | None = None, *, progress: Any = None) -> Dataset:
    """Read a scene; its layout is detected.

    Images are decoded, undistorted and reduced at once where all fit into :data:`CACHE_BYTES`, else on demand.

    Args:
        path: a folder, a transforms.json, or a video.
        config: what to read and how; None takes the defaults.
        progress: called as ``progress(what, done, total)``; None is silent.

    Raises:
        FeaturesplatError: no such path, no layout that we read, and whatever is wrong with the data: damaged files,
            missing images, image sizes that contradict the intrinsics, poses that are none, nothing to train on.
    """
    path, config = Path(path), config or DataConfig()
    kind, reader = _reader(path, config)
    recording: Recording = reader.read(path, config, progress)
    frames = sorted(recording.frames, key=lambda f: f.name)
    if recording.own_split and config.split != "every":
        frames = [f for f in frames if f.split is not None or config.split == "all"]
    if not frames:
        raise FeaturesplatError(f"{path}: no image is registered.", "Give images with poses, or plain photographs.")
    _finish_frames(frames, config)
    lenses, scaled = [], 0
    for frame in frames:
        lens, changed = lens_for_file(frame)
        lenses.append(lens)
        scaled += changed
    if scaled:
        warnings.warn(
            f"{path}: {scaled} of {len(frames)} images have another size than their intrinsics, which were scaled.",
            stacklevel=2,
        )
    factor = _factor(config, lenses)
    sizes = [_reduced(lens.width, lens.height, factor) for lens in lenses]
    Ks = [lens.resized(*size).matrix() for lens, size in zip(lenses, sizes, strict=True)]
    root = path if path.is_dir() else path.parent
    folders = [root] if recording.images in (None, root) else [root, recording.images]
    train, test = split(frames, recording.own_split, folders, config)
    cameras = Cameras(
        torch.from_numpy(np.stack([f.viewmat for f in frames])),
        torch.from_numpy(np.stack(Ks)),
        [w for w, _ in sizes],
        [h for _, h in sizes],
        _times(frames),
        [f.name for f in frames],
    )
    views = DiskViews(frames, lenses, sizes, config.background)
    dataset = Dataset(path, kind, cameras, train, test, recording.points, views)
    if dataset._fits:
        dataset._preload(progress)
    return dataset


def _reader(path: Path, config: DataConfig) -> tuple[str, ModuleType]:
    """The reader that the configuration names, or the first that knows the layout."""
    if not path.exists():
        raise FeaturesplatError(f"{path}: there is no such file or folder.", "Check the path.")
    if config.kind != "auto":
        return config.kind, registry.load("datasets", config.kind)
    readers = []
    for name in registry.names("datasets"):
        try:
            readers.append((name, registry.load("datasets", name)))
        except ImportError as error:  # one broken plug-in must not stop the others
            warnings.warn(f"the dataset reader '{name}' cannot be imported ({error}).", stacklevel=3)
    readers.sort(key=lambda r: (getattr(r[1], "ORDER", 50), r[0]))
    for name, reader in readers:
        if reader.detect(path):
            return name, reader
    layouts = "; ".join(getattr(r, "LAYOUT", name) for name, r in readers)
    empty = path.is_dir() and not any(path.iterdir())
    raise FeaturesplatError(
        f"{path}: {'is an empty folder' if empty else 'is no dataset that we can read'}.", f"Readable are {layouts}."
    )


def _finish_frames(frames: list[Frame], config: DataConfig) -> None:
    """Masks and depths as the configuration wants them; names that differ."""
    names = [f.name for f in frames]
    if len(set(names)) != len(names):
        twice = next(n for n in names if names.count(n) > 1)
        raise FeaturesplatError(f"the image {twice} is listed more than once.", "Remove all but one of its entries.")
    folder = config.depths
    if folder is not None and not folder.is_dir():
        raise FeaturesplatError(
            f"{folder}: there is no such folder of depth maps.", "Check --data.depths, or --priors.depth."
        )
    for frame in frames:
        if config.masks == "none":
            frame.mask_path = None
        if folder is not None:
            stem = Path(frame.name).with_suffix("")
            files = [folder / f"{n}{e}" for n in (stem, frame.name, stem.name) for e in (".npy", ".png")]
            frame.depth_path, frame.depth_scale = next((f for f in files if f.is_file()), None), 1e-3
    if folder is not None and not any(f.depth_path for f in frames):
        raise FeaturesplatError(
            f"{folder}: holds a depth map for none of the {len(frames)} images.",
            f"Name them as the images: {Path(frames[0].name).stem}.npy or .png.",
        )


def _factor(config: DataConfig, lenses: list[Lens]) -> int:
    """The reduction of all images: as configured, or the smallest that brings the largest under ``max_pixels``."""
    if config.downscale < 0 or config.max_pixels < 1:
        what = "downscale" if config.downscale < 0 else "max_pixels"
        raise FeaturesplatError(f"{what}: expected a positive number, got {getattr(config, what)}.", "Leave it out.")
    if config.downscale:
        return config.downscale
    sizes = {(lens.width, lens.height) for lens in lenses}
    factor = 1
    while any(w * h > config.max_pixels for w, h in (_reduced(*size, factor) for size in sizes)):
        factor += 1
    return factor


def _reduced(width: int, height: int, factor: int) -> tuple[int, int]:
    return max(1, int(width / factor + 0.5)), max(1, int(height / factor + 0.5))


def _times(frames: list[Frame]) -> Tensor | None:
    times = [f.time for f in frames if f.time is not None]
    if times and len(times) != len(frames):
        raise FeaturesplatError(
            f"{len(frames) - len(times)} of {len(frames)} frames have no `time`.", "Give it to all frames or to none."
        )
    return torch.tensor(times, dtype=torch.float64) if times else None
