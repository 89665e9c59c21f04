"""Which pixels a surface that holds still explains, in a film with known cameras."""

from __future__ import annotations

import numpy as np

from featuresplat.priors.film import Film, opencv

WIDEST = 160
"""Longer side, in pixels, of the frames that are compared."""
OTHERS = 14
"""Frames that each one is compared with."""
APART = 3
"""Frames nearer in time than this say nothing: in them nothing has moved yet."""
FEWEST = 5
"""Frames that must show a place to judge by."""
DEPTHS = 20
"""Depths at which a pixel's surface is sought."""
ALIKE = 15.0
"""Grey values between two frames up to which they show the same; at half as many more they surely do not."""


def agreement(film: Film, where: np.ndarray, reach: tuple[float, float]) -> np.ndarray:
    """[T, H, W] the largest share of the other frames that agree with a pixel at any depth; 0 outside of ``where``.

    What holds still has a depth at which nearly all frames that see the place show its colour. What moves has none:
    in most frames its place is taken by something else. A plane sweep (Collins 1996) over the whole film.

    Args:
        where: bool [T, H, W] the pixels that are asked for.
        reach: nearest and farthest depth at which surfaces are sought, in units of the cameras.
    """
    cv2 = opencv()
    count, (width, height) = len(film), film.size
    factor = max(1.0, max(film.size) / WIDEST)
    size = max(1, round(width / factor)), max(1, round(height / factor))
    images = [cv2.GaussianBlur(cv2.resize(i, size, interpolation=cv2.INTER_AREA).astype(np.float32), (0, 0), 0.8)
              for i in film.images]  # fmt: skip
    Ks = film.Ks * np.array([size[0] / width, size[1] / height, 1.0])[:, None]
    depths = 1 / np.linspace(1 / reach[1], 1 / reach[0], DEPTHS)
    others = np.unique(np.linspace(0, count - 1, min(OTHERS, count)).round().astype(int))
    out = np.zeros((count, height, width), np.float32)
    for t in range(count):
        film.progress("what holds still", t + 1, count)
        asked = cv2.resize(where[t].astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0
        share = np.zeros((size[1], size[0]), np.float32)
        share[asked] = _share(film, t, images, Ks, asked, depths, [s for s in others if abs(s - t) >= APART])
        out[t] = cv2.resize(share, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(where, out, 0)


def _share(film, t: int, images, Ks: np.ndarray, asked: np.ndarray, depths: np.ndarray, others: list) -> np.ndarray:
    """[Q] of the asked pixels of frame t."""
    cv2 = opencv()
    rows, cols = np.nonzero(asked)
    if not len(rows):
        return np.zeros(0, np.float32)
    height, width = asked.shape
    rays = np.stack([cols + 0.5, rows + 0.5, np.ones(len(rows))], -1) @ np.linalg.inv(Ks[t]).T
    own = images[t][rows, cols]
    agree, seen = np.zeros((2, len(depths), len(rows)), np.float32)
    for s in others:
        pose = film.viewmats[s] @ np.linalg.inv(film.viewmats[t])
        turned = (rays @ (Ks[s] @ pose[:3, :3]).T).astype(np.float32)  # [Q, 3]
        shift = (Ks[s] @ pose[:3, 3]).astype(np.float32)
        x, y, z = (turned[None, :, k] * depths.astype(np.float32)[:, None] + shift[k] for k in range(3))
        u, v = x / np.maximum(z, 1e-6), y / np.maximum(z, 1e-6)
        inside = (z > 0) & (u >= 0) & (v >= 0) & (u < width) & (v < height)
        there = cv2.remap(images[s], u - 0.5, v - 0.5, cv2.INTER_LINEAR)
        off = np.abs(there - own).max(-1)
        seen += inside
        agree += inside * np.clip(1.5 - off / ALIKE, 0, 1)
    return np.where(seen >= FEWEST, agree / np.maximum(seen, 1), 0).max(0)
