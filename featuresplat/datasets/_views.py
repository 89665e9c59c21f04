"""From files to pixels: decode, lay over the background, undistort, reduce."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuresplat.datasets._recording import Frame, Lens
from featuresplat.datasets._undistort import Undistortion, sources
from featuresplat.errors import FeaturesplatError
from featuresplat.io.images import image_size, read_image, resize_area

BACKGROUNDS = {"white": 255.0, "black": 0.0, "gray": 127.5}


@dataclass
class View:
    """``rgb`` uint8 [H, W, 3]; ``alpha`` uint8 [H, W] or None when opaque; ``mask`` bool [H, W] or None when full."""

    rgb: Tensor
    alpha: Tensor | None
    mask: Tensor | None

    @property
    def bytes(self) -> int:
        return sum(t.numel() for t in (self.rgb, self.alpha, self.mask) if t is not None)


class DiskViews:
    """Photographs as they lie on disk, given at ``sizes`` (width, height) without distortion.

    Masks and the borders without a source lose a pixel at their edge rather than let a foreign one in: a reduced
    pixel counts only where all that it covers counts.
    """

    def __init__(self, frames: list[Frame], lenses: list[Lens], sizes: list[tuple[int, int]], background: str):
        self.frames, self.lenses, self.sizes, self.background = frames, lenses, sizes, BACKGROUNDS[background]
        self._lock = threading.Lock()
        # A map of twelve megapixels takes 100 MB: most data has one lens, so two suffice.
        self._undistortion = lru_cache(maxsize=2)(Undistortion)

    def view(self, i: int) -> View:
        """Decode frame ``i``."""
        frame, lens, size = self.frames[i], self.lenses[i], self.sizes[i]
        rgb, alpha = read_upright(frame.image_path, lens)
        if frame.alpha is not None:
            alpha = _fitting(frame, frame.alpha(), rgb)
        if alpha is not None and bool((alpha == 255).all()):
            alpha = None
        mask = None if frame.mask_path is None else _read_mask(frame.mask_path, lens)
        if lens.pinhole and alpha is None:
            return View(resize_area(rgb, *size), None, None if mask is None else _whole(mask, size))
        image = rgb.float()
        if alpha is not None:
            a = alpha.float()[..., None]
            image = torch.cat([image * (a / 255) + self.background * (1 - a / 255), a], dim=-1)
        if not lens.pinhole:
            with self._lock:
                undistortion = self._undistortion(lens)
            image = undistortion.apply(image)
            if mask is not None:
                mask = undistortion.apply(mask.float()[..., None])[..., 0] > 0.999
            if not bool(undistortion.valid.all()):
                mask = undistortion.valid if mask is None else mask & undistortion.valid
        image = resize_area(image, *size).round().clamp(0, 255).to(torch.uint8)
        out_alpha = image[..., 3].contiguous() if alpha is not None else None
        return View(image[..., :3].contiguous(), out_alpha, None if mask is None else _whole(mask, size))

    def depth(self, i: int) -> Tensor | None:
        """[H, W] float32 z-depth in scene units, 0 = unknown; the nearest sample, as a mean across an edge is none."""
        frame, lens, (width, height) = self.frames[i], self.lenses[i], self.sizes[i]
        if frame.depth_path is None:
            return None
        stored = read_depth(frame.depth_path, frame.depth_scale)
        if abs(stored.shape[1] * lens.height / (stored.shape[0] * lens.width) - 1) > 0.01:
            raise FeaturesplatError(
                f"{frame.depth_path}: expected the proportions of its image, {lens.width}x{lens.height}, got "
                f"{stored.shape[1]}x{stored.shape[0]}.",
                "Store depth maps in the size of the image or a fraction of it.",
            )
        u = (np.arange(width) + 0.5) * lens.width / width
        v = (np.arange(height) + 0.5) * lens.height / height
        u, v = np.meshgrid(u, v)
        seen = np.ones_like(u, bool)
        if not lens.pinhole:
            u, v, seen = sources(lens, (u - lens.cx) / lens.fx, (v - lens.cy) / lens.fy)
        # The small step makes the choice between two equally near samples the same for every rounding error.
        col = np.floor(u * stored.shape[1] / lens.width + 1e-6).clip(0, stored.shape[1] - 1).astype(np.int64)
        row = np.floor(v * stored.shape[0] / lens.height + 1e-6).clip(0, stored.shape[0] - 1).astype(np.int64)
        return torch.from_numpy(np.where(seen, stored[row, col], 0).astype(np.float32))


class SmallerViews:
    """Another source of views, reduced further."""

    def __init__(self, parent, sizes: list[tuple[int, int]]):
        self.parent, self.sizes = parent, sizes

    def view(self, i: int) -> View:
        view, size = self.parent.view(i), self.sizes[i]
        alpha = None if view.alpha is None else resize_area(view.alpha, *size)
        return View(resize_area(view.rgb, *size), alpha, None if view.mask is None else _whole(view.mask, size))

    def depth(self, i: int) -> Tensor | None:
        depth, (width, height) = self.parent.depth(i), self.sizes[i]
        if depth is None:
            return None
        rows = ((torch.arange(height) + 0.5) * depth.shape[0] / height + 1e-6).long()
        cols = ((torch.arange(width) + 0.5) * depth.shape[1] / width + 1e-6).long()
        return depth[rows][:, cols].contiguous()


def lens_for_file(frame: Frame) -> tuple[Lens, bool]:
    """The frame's lens over the pixels of its file, and whether it had to be scaled to them.

    Where the intrinsics fit the file as stored but not as its EXIF orientation turns it, the poses were made from the
    stored pixels (structure from motion often ignores the orientation), and so :func:`read_upright` gives those.

    Raises:
        FeaturesplatError: the image's proportions are others than the intrinsics'.
    """
    width, height = image_size(frame.image_path)
    lens = frame.lens
    if lens is None:
        focal = 0.5 * width / np.tan(0.5 * frame.angle_x)
        return Lens(width, height, float(focal), float(focal), width / 2, height / 2).check(frame.name), False
    if (width, height) == (lens.width, lens.height) or (lens.height, lens.width) == (width, height) == _turned(frame):
        return lens, False
    if abs(width * lens.height / (height * lens.width) - 1) <= 0.01:
        return lens.resized(width, height), True
    raise FeaturesplatError(
        f"{frame.image_path}: the image has {width}x{height} pixels but its intrinsics are for "
        f"{lens.width}x{lens.height}.",
        "Use the images that the poses were made from, or scaled copies of the same proportions.",
    )


def _turned(frame: Frame) -> tuple[int, int] | None:
    """The size as EXIF shows it, when that swaps width and height."""
    with Image.open(frame.image_path) as image:
        return (image.height, image.width) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else None


def read_upright(path: Path, lens: Lens) -> tuple[Tensor, Tensor | None]:
    """The image in the orientation that ``lens`` was made for: as EXIF says, or as stored (:func:`lens_for_file`)."""
    rgb, alpha = read_image(path)
    if rgb.shape[:2] == (lens.height, lens.width):
        return rgb, alpha
    with Image.open(path) as image:
        orientation = image.getexif().get(0x0112, 1)
    if orientation not in (5, 6, 7, 8):
        return rgb, alpha

    def stored(x: Tensor) -> Tensor:
        if orientation in (6, 8):
            return torch.rot90(x, 1 if orientation == 6 else -1).contiguous()
        x = x.transpose(0, 1)
        return (x.flip(0, 1) if orientation == 7 else x).contiguous()

    return stored(rgb), None if alpha is None else stored(alpha)


def read_depth(path: Path, scale: float) -> np.ndarray:
    """[h, w] float32 depth in scene units; what is not finite or below 0 becomes 0, unknown.

    Raises:
        FeaturesplatError: missing or damaged, not a single plane of numbers, or an 8-bit picture.
    """
    try:
        if path.suffix.lower() == ".npy":
            values, scale = np.load(path, allow_pickle=False), 1.0
        else:
            with Image.open(path) as image:
                values = np.asarray(image)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise FeaturesplatError(
            f"{path}: is missing, truncated or no depth map ({error}).", "Write a 16-bit PNG or a NAME.npy."
        ) from None
    values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.dtype == np.uint8:
        raise FeaturesplatError(
            f"{path}: expected one plane of 16-bit or floating numbers, got {list(values.shape)} {values.dtype}.",
            "Write a 16-bit PNG or a NAME.npy.",
        )
    depth = values.astype(np.float32) * np.float32(scale)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _fitting(frame: Frame, alpha: Tensor, rgb: Tensor) -> Tensor:
    """An opacity from elsewhere.

    Raises:
        FeaturesplatError: it is of another size than the photograph.
    """
    if alpha.shape != rgb.shape[:2]:
        raise FeaturesplatError(
            f"{frame.image_path}: expected a mask of its size, {rgb.shape[1]}x{rgb.shape[0]}, got "
            f"{alpha.shape[1]}x{alpha.shape[0]}.",
            "Store the mask in the size of the image.",
        )
    return alpha


def _read_mask(path: Path, lens: Lens) -> Tensor:
    """[H, W] bool at the lens's size: 0 leaves out, everything else counts."""
    mask = read_upright(path, lens)[0].amax(dim=-1) > 0
    height, width = mask.shape
    if abs(width * lens.height / (height * lens.width) - 1) > 0.01:
        raise FeaturesplatError(
            f"{path}: expected the proportions of its image, {lens.width}x{lens.height}, got {width}x{height}.",
            "Store masks in the size of the image or a fraction of it.",
        )
    return _whole(mask, (lens.width, lens.height))


def _whole(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a mask: True only where all that a pixel covers is True."""
    return resize_area(mask.float(), *size) > 0.999
