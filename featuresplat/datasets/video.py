"""A video of a scene that stands still: its sharpest frames become the photographs of structure from motion.

Needs the extras ``sfm`` and ``video`` (PyAV). The rotation that phones store beside the frames is applied.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featuresplat.datasets import _sfm
from featuresplat.errors import FeaturesplatError

if TYPE_CHECKING:
    from featuresplat.config import DataConfig
    from featuresplat.datasets._recording import Recording

ORDER = 80
LAYOUT = "a video file (.mp4, .mov, .mkv, .avi, .webm, .m4v), whose poses are then found"
ENDINGS = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})
FRAMES = 100
"""How many frames are taken: the sharpest of each of so many equal intervals."""
BLANK = 2.0
"""Frames whose Laplacian has a lower variance (8-bit grey values) hold nothing to match: black, lens cap, blur."""


def detect(path: Path) -> bool:
    """Whether ``path`` is a file with the ending of a video."""
    return path.suffix.lower() in ENDINGS and path.is_file()


def read(path: Path, config: DataConfig, progress: _sfm.Progress | None = None) -> Recording:
    """Choose frames and find their poses, or take them from an earlier run over the same file.

    Raises:
        FeaturesplatError: PyAV or pycolmap is missing; not a video; fewer than three usable or registered frames.
    """
    from featuresplat.datasets import colmap

    work = _sfm.work_folder([path], f"film {FRAMES}" if config.film else f"video {FRAMES}")
    if not (work / "verdict.json").is_file():
        _require_av()
        _sfm.require_pycolmap()
    with _sfm.locked(work), _sfm.Bar.unless(progress) as report:
        listing = work / "frames.json"
        if not listing.is_file():
            names = extract_frames(path, work / "images", FRAMES, report)
            listing.write_text(json.dumps(names), encoding="utf-8")
        names = json.loads(listing.read_text(encoding="utf-8"))
        if config.film:
            from featuresplat.priors.unposed import mask_motion

            mask_motion(work, names, report)
        _sfm.reconstruct(work, [names], [], report, video=True)
    recording = colmap.read_model(work / "sparse" / "0", work / "images")
    return _sfm.timed(recording, names) if config.film else recording


def _require_av() -> None:
    if importlib.util.find_spec("av") is None:
        raise FeaturesplatError(
            "reading a video needs PyAV, which is not installed.", "pip install 'featuresplat[video,sfm]'"
        )


def extract_frames(path: Path, folder: Path, count: int, progress: _sfm.Progress) -> list[str]:
    """Write the sharpest frame of each of ``count`` intervals to ``folder/frame_000123.jpg`` (number in the video).

    Holds one decoded frame at a time. A video with fewer than ``count`` frames gives all of them.

    Returns:
        The file names, in order of time.

    Raises:
        FeaturesplatError: PyAV is missing; the file is not a video, or holds fewer than three usable frames.
    """
    _require_av()
    import av
    from av.error import FFmpegError
    from PIL import Image

    names: list[str] = []
    try:
        with av.open(str(path)) as packets:
            if not packets.streams.video:
                raise _not_a_video(path, "it has no picture track")
            total = sum(1 for packet in packets.demux(packets.streams.video[0]) if packet.size)
        with av.open(str(path)) as film:
            for index, pixels in _sharpest(film, total, count, progress):
                names.append(f"frame_{index:06d}.jpg")
                Image.fromarray(pixels).save(folder / names[-1], quality=95, subsampling=0)
    except (FFmpegError, UnicodeError) as error:
        if len(names) < 3:
            raise _not_a_video(path, str(error)) from error
        # A file cut short is used as far as it goes.
    progress("choosing frames", count, count)
    if len(names) < 3:
        raise FeaturesplatError(
            f"{path}: holds {len(names)} usable frames of {total}, and poses need at least 3.",
            "Film for at least a few seconds, slowly, in enough light.",
        )
    return names


def _not_a_video(path: Path, why: str) -> FeaturesplatError:
    return FeaturesplatError(
        f"{path}: is not a video that can be read ({why}).", "Give an mp4, mov, mkv, avi or webm file that plays."
    )


def _sharpest(film: Any, total: int, count: int, progress: _sfm.Progress) -> Iterator[tuple[int, np.ndarray]]:
    """(number, upright RGB [H, W, 3] uint8) of the sharpest frame of each interval that is not blank."""
    stream = film.streams.video[0]
    stream.thread_type = "AUTO"
    count = max(1, min(count, total))
    best, best_sharpness, best_index, interval = None, BLANK, 0, 0
    for index, frame in enumerate(film.decode(stream)):
        now = min(index * count // max(total, 1), count - 1)
        if now != interval:
            progress("choosing frames", now, count)
            if best is not None:
                yield best_index, _upright(best)
            best, best_sharpness, interval = None, BLANK, now
        value = sharpness(_small_grey(frame))
        if value > best_sharpness:
            best, best_sharpness, best_index = frame, value, index
    if best is not None:
        yield best_index, _upright(best)


def _small_grey(frame: Any) -> np.ndarray:
    """Grey [h, w], at most 640 wide: enough to rank frames by, and noise counts for less."""
    width = min(frame.width, 640)
    height = max(3, round(frame.height * width / frame.width))
    return frame.to_ndarray(format="gray", width=width, height=height)


def _upright(frame: Any) -> np.ndarray:
    """RGB pixels as a player shows them; ``rotation`` is counterclockwise, in degrees."""
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def sharpness(grey: np.ndarray) -> float:
    """Variance of the Laplacian (4-neighbour) of a grey image [h, w]: low when blurred, 0 when blank.

    Pech-Pacheco et al., "Diatom autofocusing in brightfield microscopy", ICPR 2000.
    """
    g = grey.astype(np.float32)
    centre = g[1:-1, 1:-1]
    return float((g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * centre).var())
