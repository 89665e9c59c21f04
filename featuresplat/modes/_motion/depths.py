"""How far away the point tracks of moving things are, where no depth is given: from start points, and from the floor.

One moving camera cannot tell a large thing that is far and fast from a small one that is near and slow. Start points
that show on a thing say how far it is when it is first seen; after that most things stand on something, and where their
lowest pixels go on what holds still, there they go.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat.priors.film import opencv

if TYPE_CHECKING:
    from featuresplat import priors
    from featuresplat.modes._motion.sightings import Paths
    from featuresplat.types import PointCloud

TOGETHER = 48
"""Tracks around each one that share what the floor says."""
STANDS, LET_GO = 0.015, 0.08
"""Shares by which a depth may be off what the floor says: below the first that is noise, far above the second the thing
does not stand there."""
GAIN = 0.3
"""How much of the rest is made up for in each frame."""
AROUND = 0.1
"""How far a new track may look for others whose depth it takes, in units of the rays."""


def guessed(
    film: priors.Film, tracks: priors.Tracks, masks: np.ndarray, viewmats: Tensor, points: PointCloud | None, still
) -> tuple[Tensor, Tensor]:
    """Depths at which tracks start, and at which things stand.

    Args:
        masks: bool [T, H, W], what moves. viewmats: [T, 4, 4] in the frame of the points.
        points: start points, or None. still: those of them that hold still, or None.

    Returns:
        z [P] at the first frame of each track: of the start points that show there, else of what it stands on; and
        [P, T] z of what each track stands on, 0 where it is not seen or nothing is known.
    """
    width, height = film.size
    floor = floor_of(film, masks, viewmats, still)
    uv = np.nan_to_num(tracks.uv)
    frame = np.arange(len(film))[None].repeat(len(tracks), 0)
    below = floor[frame, uv[..., 1].astype(int).clip(0, height - 1), uv[..., 0].astype(int).clip(0, width - 1)]
    below = np.where(tracks.visible, below, 0).astype(np.float32)
    first = tracks.visible.argmax(1)
    out = np.zeros(len(tracks), np.float32)
    for t in np.unique(first):
        rows = np.nonzero(first == t)[0]
        z = below[rows, t]
        at, depth = (np.zeros((0, 2)), np.zeros(0)) if points is None else seen_points(points.xyz, viewmats[t], film, t)
        anything = float(np.median(depth)) if len(depth) else 1.0
        z = np.where(z > 0, z, anything)
        inside = masks[t][at[:, 1].astype(int), at[:, 0].astype(int)]
        if inside.sum() >= 3:
            distance, nearest = KDTree(at[inside]).query(tracks.uv[rows, t], k=3)
            on_points = np.median(depth[inside][nearest], axis=1)
            # A point behind the moving thing shows through it: what stands on the floor is not behind it.
            believed = (distance[:, 0] < 0.03 * width) & (on_points < 1.15 * z)
            z = np.where(believed, on_points, z)
        out[rows] = z
    return torch.from_numpy(np.maximum(out, 1e-3)), torch.from_numpy(below)


def seen_points(xyz: Tensor, viewmat: Tensor, film: priors.Film, t: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [Q, 2] and z [Q] of the points that project into frame t."""
    local = (xyz.float() @ viewmat[:3, :3].T + viewmat[:3, 3]).numpy()
    K = film.Ks[t]
    z = local[:, 2]
    uv = local[:, :2] / np.maximum(z, 1e-6)[:, None] * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]
    inside = (z > 1e-3) & (uv >= 0).all(1) & (uv < film.size).all(1)
    return uv[inside], z[inside]


def floor_of(film: priors.Film, masks: np.ndarray, viewmats: Tensor, still: PointCloud | None) -> np.ndarray:
    """[T, H, W] z at which moving things stand, column by column; 0 where nothing moves or nothing is known.

    That of the still points nearest to the lowest pixel of the blob around the column.
    """
    cv2 = opencv()
    width, height = film.size
    out = np.zeros((len(film), height, width), np.float32)
    wide = 2 * max(2, width // 40) + 1
    for t in range(len(film)):
        uv, z = (np.zeros((0, 2)), np.zeros(0)) if still is None else seen_points(still.xyz, viewmats[t], film, t)
        free = ~masks[t][uv[:, 1].astype(int), uv[:, 0].astype(int)]
        uv, z = uv[free], z[free]
        if len(z) < 8:
            continue
        tree = KDTree(uv)
        count, labels = cv2.connectedComponents(masks[t].astype(np.uint8))
        for k in range(1, count):
            blob = labels == k
            lowest = np.where(blob, np.arange(height)[:, None], -1).max(0).astype(np.float32)
            lowest = cv2.dilate(lowest[None], np.ones((1, wide), np.uint8))[0]
            cols = np.nonzero(blob.any(0))[0]
            _, near = tree.query(np.stack([cols + 0.5, lowest[cols] + 1.5], 1), k=6)
            column = np.zeros(width, np.float32)
            column[cols] = np.median(z[near], axis=1)
            out[t] = np.where(blob, column, out[t])
    return out


def standing(paths: Paths, ids: Tensor, weights: Tensor) -> Tensor:
    """World points [P, T, 3] of tracks without depth: as far as they were, unless the floor takes them elsewhere.

    Args:
        paths: with ``guess``, and ``floor`` or None. ids, weights: [P, J] tracks that each one moves with.
    """
    assert paths.guess is not None  # the caller has looked
    count, frames = paths.seen.shape
    floor = torch.zeros(count, frames) if paths.floor is None else paths.floor
    place, born = torch.zeros(count, 3), torch.zeros(count, dtype=torch.bool)
    out, z, ratio = torch.zeros(count, frames, 3), torch.ones(count), torch.zeros(count)
    for t in range(frames):
        R, shift = paths.viewmats[t, :3, :3], paths.viewmats[t, :3, 3]
        seen = paths.seen[:, t]
        z = torch.where(born, (place @ R.T + shift)[:, 2].clamp_min(1e-3), z)
        new = seen & ~born
        z = torch.where(new, _of_others(paths, t, z, born & seen, ids, weights), z)
        ratio = torch.where(new & (floor[:, t] > 0), z / floor[:, t].clamp_min(1e-6), ratio)
        born = born | seen
        says = floor[:, t] * ratio
        known = seen & (says > 0)
        off = torch.where(known, says.clamp_min(1e-6).log() - z.log(), 0.0)
        off = (off.abs() - STANDS).clamp_min(0) * off.sign() / (1 + (off / LET_GO) ** 2)
        w = torch.cat([torch.ones(count, 1), weights], 1) * known[torch.cat([torch.arange(count)[:, None], ids], 1)]
        pull = (w[:, 0] * off + (w[:, 1:] * off[ids]).sum(1)) / w.sum(1).clamp_min(1e-6)
        z = torch.where(seen, z * (GAIN * pull).exp(), z)
        on_ray = torch.cat([paths.rays[:, t] * z[:, None], z[:, None]], 1)
        place = torch.where(seen[:, None], (on_ray - shift) @ R, place)
        out[:, t] = place
    return out


def _of_others(paths: Paths, t: int, z: Tensor, usable: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """[P] depth at frame t of the tracks around each one that have one already; the guess where there are none."""
    assert paths.guess is not None  # the caller has looked
    away = (paths.rays[ids, t] - paths.rays[:, None, t]).norm(dim=-1)
    w = weights * usable[ids] * (away < AROUND) / (away + 0.01 * AROUND) ** 2
    total = w.sum(1)
    return torch.where(total > 0, (w * z[ids]).sum(1) / total.clamp_min(1e-12), paths.guess)
