"""What moves in a film whose cameras are not known yet: the pixels that leave the motion of most of the picture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from featuresplat.errors import FeaturesplatError
from featuresplat.priors.film import LONGEST, Film, opencv, structure
from featuresplat.priors.motion import WORSE, cleaned, spread, ways

STEPS = (2, 5)
"""Frames apart at which pictures are compared."""
OFF = 1.5
"""Pixels off its epipolar line from which a point moves by itself."""
STANDING = 0.35
"""Pixels a frame below which a camera stands still: no depth can be told from its frames."""


def mask_motion(work: Path, names: list[str], progress: Callable[[str, int, int], None]) -> None:
    """Write ``work/motion/NAME.png``, black where things move, for the images ``work/images/NAME``, in order of time.

    Raises:
        FeaturesplatError: the camera stands still, or OpenCV is missing.
    """
    from PIL import Image

    folder = work / "motion"
    if (work / "motion.json").is_file() or len(names) < 3:
        return
    film = _film(work / "images", names, progress)
    way = camera_way(film)
    if way < STANDING:
        raise FeaturesplatError(
            f"this film was taken by a camera that stands still (its picture moves by {way:.2f} pixels a frame): "
            "how far away things are cannot be told from it.",
            "Give a film of a moving camera, or several cameras with known poses (transforms.json with `time`).",
        )
    masks = moving(film)
    folder.mkdir(exist_ok=True)
    for name, mask in zip(names, masks, strict=True):
        with Image.open(work / "images" / name) as image:
            size = image.size
        Image.fromarray(np.where(mask, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.NEAREST).save(
            folder / f"{name}.png"
        )
    (work / "motion.json").write_text(json.dumps({"moving": float(masks.mean()), "way": way}), encoding="utf-8")


def camera_way(film: Film) -> float:
    """Pixels (of the reduced frames) by which most of the picture moves from frame to frame, on average.

    The lower quartile of the lengths of the flow: things that move by themselves fill less than three quarters.
    """
    lengths = np.linalg.norm(film.flows[0], axis=-1)
    return float(np.mean(np.quantile(lengths.reshape(len(lengths), -1), 0.25, axis=1)))


def moving(film: Film) -> np.ndarray:
    """Bool [T, H, W]: pixels that move by themselves, by the errors against the fundamental matrices of frame pairs."""
    count, (width, height) = len(film), film.size
    evidence = np.zeros((count, height, width), np.float32)
    for t in range(count):
        film.progress("what moves", t + 1, count)
        texture = structure(film.images[t])
        ways = [_one_way(film, t, sign, texture) for sign in (1, -1)]
        known = [w for w in ways if w is not None]
        if known:
            evidence[t] = np.minimum.reduce(known)
    return cleaned(spread(film, evidence) > 0.5)


def _one_way(film: Film, t: int, sign: int, texture: np.ndarray) -> np.ndarray | None:
    """[H, W] evidence from the frames after (before) t; None where there are none."""
    found = None
    for _, way, good in ways(film, t, sign, STEPS):
        off = epipolar_gap(way, good)
        worse = np.sqrt(np.maximum(np.einsum("hwi,hwij,hwj->hw", off, texture, off), 0))
        this = np.where(good, np.minimum(np.linalg.norm(off, axis=-1) / OFF, worse / WORSE) / 2, 0)
        found = np.clip(this if found is None else np.maximum(found, this), 0, 1)
    return found


def epipolar_gap(flow: np.ndarray, good: np.ndarray) -> np.ndarray:
    """[H, W, 2] from each landing place to its epipolar line, under the motion that most pixels agree on.

    A homography takes the place of the fundamental matrix where it explains nearly as many pixels: a turning camera,
    or a flat scene, has no epipoles.
    """
    cv2 = opencv()
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    start = np.stack([x, y], -1)
    end = start + flow
    rows = np.zeros((height, width), bool)
    rows[3::6, 3::6] = True
    rows &= good
    a, b = start[rows], end[rows]
    if len(a) < 30:
        return np.zeros_like(end)
    cv2.setRNGSeed(0)
    F, inside_f = cv2.findFundamentalMat(a, b, cv2.FM_RANSAC, 1.0, 0.99, 500)
    H, inside_h = cv2.findHomography(a, b, cv2.RANSAC, 1.5, maxIters=500)
    shares = [0.0 if m is None else float(np.mean(m)) for m in (inside_f, inside_h)]
    one = np.ones_like(x)
    if H is not None and shares[1] >= 0.9 * shares[0]:
        where = np.stack([x, y, one], -1) @ H.T
        return end - where[..., :2] / np.where(np.abs(where[..., 2:]) < 1e-9, 1e-9, where[..., 2:])
    if F is None or F.shape != (3, 3):
        return np.zeros_like(end)
    line = np.stack([x, y, one], -1) @ F.T  # a u + b v + c = 0 in the other frame
    norm2 = np.maximum((line[..., :2] ** 2).sum(-1), 1e-12)
    distance = (line * np.concatenate([end, one[..., None]], -1)).sum(-1) / norm2
    return distance[..., None] * line[..., :2]


def _film(folder: Path, names: list[str], progress: Callable[[str, int, int], None]) -> Film:
    from PIL import Image

    pictures = []
    for name in names:
        with Image.open(folder / name) as image:
            rgb = image.convert("RGB")
        factor = max(1.0, max(rgb.size) / LONGEST)
        pictures.append(rgb.resize((round(rgb.width / factor), round(rgb.height / factor)), Image.Resampling.BOX))
    sizes = {p.size for p in pictures}
    if len(sizes) > 1:
        raise FeaturesplatError(f"the frames of this film have {len(sizes)} sizes.", "Use frames of one size.")
    eye = np.repeat(np.eye(4)[None], len(names), 0)
    return Film(
        indices=list(range(len(names))),
        times=np.linspace(0, 1, len(names)),
        images=np.stack([np.asarray(p) for p in pictures]),
        viewmats=eye,
        Ks=eye[:, :3, :3],
        depth=None,
        names=names,
        full_size=pictures[0].size,
        progress=progress,
    )
