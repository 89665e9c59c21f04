"""Frames to a film: mp4 where imageio-ffmpeg is installed, else an animated GIF."""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path
from featuresplat.io.images import to_bytes


def write_video(path: str | Path, frames: Iterable[Tensor], fps: float = 30.0, quality: int = 8) -> Path:
    """Write frames to ``.mp4`` (H.264, plays everywhere) or ``.gif``, atomically, holding few frames at a
    time.

    An mp4 holds one frame in memory; a GIF one byte a pixel of every frame, because Pillow collects them.
    H.264 wants even sizes: the last row or column is repeated where needed.

    Args:
        path: ends in .mp4 or .gif. Without imageio-ffmpeg an .mp4 becomes a .gif beside it, with a warning.
        frames: [H, W, 3] each, all of one size, uint8 or floating in 0..1.
        fps: frames a second.
        quality: 1 (small) to 10 (best), for mp4.

    Returns:
        The path that was written.

    Raises:
        FeaturesplatError: another ending, no frames, frames of different sizes, a failing encoder, a full
            disk.
    """
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif") or not fps > 0:
        raise FeaturesplatError(
            f"{path}: expected a film that ends in .mp4 or .gif, and more than 0 frames a second, got {fps}.",
            "The ending chooses the format.",
        )
    checked = _checked(path, frames)
    first = next(checked, None)
    if first is None:
        raise FeaturesplatError(f"{path}: there are no frames to write.", "Check the camera path.")
    everything = itertools.chain([first], checked)
    if path.suffix.lower() == ".mp4":
        encoder = _ffmpeg()
        if encoder is not None:
            _write_mp4(encoder, path, first, everything, fps, quality)
            return path
        path = path.with_suffix(".gif")
        warnings.warn(
            f"mp4 needs imageio-ffmpeg (pip install 'featuresplat[video]'); writing {path} instead.",
            stacklevel=2,
        )
    _write_gif(path, everything, fps)
    return path


def _checked(path: Path, frames: Iterable[Tensor]) -> Iterator[Tensor]:
    """The frames as contiguous uint8 [H, W, 3], each of the size of the first."""
    size = None
    for number, frame in enumerate(frames):
        size = size or tuple(frame.shape)
        if tuple(frame.shape) != size or frame.ndim != 3 or frame.shape[2] != 3:
            raise FeaturesplatError(
                f"{path}: expected frames of [H, W, 3] and one size, got {tuple(frame.shape)} for frame "
                f"{number} after {size}.",
                "Render all frames with one camera size.",
            )
        yield to_bytes(frame)


def _ffmpeg():
    """The imageio_ffmpeg module with a working ffmpeg behind it, or None."""
    try:
        module = importlib.import_module("imageio_ffmpeg")
        module.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        return None
    return module


def _write_mp4(encoder, path: Path, first: Tensor, frames: Iterable[Tensor], fps: float, quality: int) -> None:
    height, width = first.shape[0] + first.shape[0] % 2, first.shape[1] + first.shape[1] % 2
    with atomic_path(path) as temporary:
        # macro_block_size 1: the sizes are even already, and rescaling would blur.
        writer = encoder.write_frames(
            str(temporary),
            (width, height),
            fps=fps,
            quality=quality,
            macro_block_size=1,
            ffmpeg_log_level="error",
        )
        try:
            writer.send(None)
            for frame in frames:
                frame = torch.cat([frame, frame[-1:]])[:height]
                frame = torch.cat([frame, frame[:, -1:]], dim=1)[:, :width]
                writer.send(frame.numpy().tobytes())
        finally:
            writer.close()
        if not temporary.is_file() or temporary.stat().st_size == 0:
            raise FeaturesplatError(f"{path}: ffmpeg wrote nothing.", "Write a .gif instead.")


def _write_gif(path: Path, frames: Iterable[Tensor], fps: float) -> None:
    # GIF counts hundredths of a second, and players slow down what is faster than 2 of them.
    duration = max(20, round(100 / fps) * 10)
    small = (Image.fromarray(f.numpy()).quantize(256, dither=Image.Dither.FLOYDSTEINBERG) for f in frames)
    head = next(small)
    with atomic_path(path) as temporary:
        head.save(temporary, "GIF", save_all=True, append_images=small, duration=duration, loop=0)
