"""Point tracks: chained from flow, or read from a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featuresplat.errors import FeaturesplatError
from featuresplat.priors.film import Film, opencv, sample, structure

EVERY = 4
"""Frames between two sowings of new tracks."""
CORNER = 20.0
"""Cornerness, grey values squared, of a track that is trusted by a quarter."""
SHORTEST = 4
"""Tracks seen in fewer frames say little about motion."""


@dataclass
class Tracks:
    """P points followed over the T frames of a film.

    Attributes:
        uv: [P, T, 2] pixels of the film's reduced frames, centres at +0.5; NaN where not visible.
        visible: bool [P, T].
        depth: [P, T] z-depth in scene units, 0 = unknown.
        trust: [P] in 0..1: how well the place is held; flow slides over what has no texture.
    """

    uv: np.ndarray
    visible: np.ndarray
    depth: np.ndarray
    trust: np.ndarray

    def __len__(self) -> int:
        return len(self.uv)


def track(film: Film, masks: np.ndarray, spacing: int = 4, most: int = 2500) -> Tracks:
    """Points inside of ``masks`` [T, H, W] followed along consistent flow, both ways from where they were sown.

    New ones are sown every few frames where none is near, at the best corner around.
    """
    count, (width, height) = len(film), film.size
    corners = [cornerness(image) for image in film.images]
    uv = np.zeros((0, count, 2), np.float32)
    visible = np.zeros((0, count), bool)
    for t in sorted(range(0, count, EVERY), key=lambda t: abs(t - count // 2)):
        taken = np.zeros((height // spacing + 1, width // spacing + 1), bool)
        here = uv[visible[:, t], t]
        taken[(here[:, 1] // spacing).astype(int), (here[:, 0] // spacing).astype(int)] = True
        rows, cols = np.nonzero(~taken[: height // spacing, : width // spacing])
        seeds = _best_corners(corners[t], rows, cols, spacing)
        seeds = seeds[masks[t][seeds[:, 1].astype(int), seeds[:, 0].astype(int)]]
        new_uv = np.full((len(seeds), count, 2), np.nan, np.float32)
        new_visible = np.zeros((len(seeds), count), bool)
        new_uv[:, t], new_visible[:, t] = seeds, True
        for sign in (1, -1):
            _follow(film, masks, new_uv, new_visible, t, sign)
        uv, visible = np.concatenate([uv, new_uv]), np.concatenate([visible, new_visible])
    long = visible.sum(1) >= min(SHORTEST, count)
    uv, visible = uv[long], visible[long]
    if len(uv) > most:
        keep = np.sort(np.random.default_rng(0).permutation(len(uv))[:most])
        uv, visible = uv[keep], visible[keep]
    return Tracks(uv, visible, _depth_at(film, uv, visible), _trust(corners, masks, uv, visible))


def cornerness(image: np.ndarray) -> np.ndarray:
    """[H, W] the smaller eigenvalue of the structure tensor, grey values squared (Shi and Tomasi 1994)."""
    tensor = structure(image)
    half = 0.5 * (tensor[..., 0, 0] + tensor[..., 1, 1])
    root = np.sqrt(0.25 * (tensor[..., 0, 0] - tensor[..., 1, 1]) ** 2 + tensor[..., 0, 1] ** 2)
    return np.maximum(half - root, 0)


def _best_corners(corners: np.ndarray, rows: np.ndarray, cols: np.ndarray, spacing: int) -> np.ndarray:
    """[Q, 2] pixel centres (column, row) of the strongest corner in each cell (row, col) of the grid."""
    inside = np.arange(spacing)
    r = rows[:, None] * spacing + np.repeat(inside, spacing)
    c = cols[:, None] * spacing + np.tile(inside, spacing)
    best = corners[r, c].argmax(1)
    pick = np.arange(len(rows))
    return np.stack([c[pick, best], r[pick, best]], 1).astype(np.float32) + 0.5


def _trust(corners: list[np.ndarray], masks: np.ndarray, uv: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """[P] how strong a corner each track follows on average; little at outlines, which are none of the surface's."""
    cv2 = opencv()
    total = np.zeros(len(uv))
    for t, corner in enumerate(corners):
        inner = cv2.erode(masks[t].astype(np.uint8), np.ones((5, 5), np.uint8))
        rows = np.nonzero(visible[:, t])[0]
        at = uv[rows, t].astype(int)
        strength = corner[at[:, 1], at[:, 0]]
        total[rows] += (strength / (strength + CORNER)) ** 2 * np.where(inner[at[:, 1], at[:, 0]], 1, 0.2)
    return (total / np.maximum(visible.sum(1), 1)).clip(1e-3, 1).astype(np.float32)


def _follow(film: Film, masks: np.ndarray, uv: np.ndarray, visible: np.ndarray, start: int, sign: int) -> None:
    """Extend tracks from frame ``start`` as long as the flow is consistent and stays inside of the masks."""
    height, width = masks.shape[1:]
    t = start
    while 0 <= t + sign < len(film):
        rows = np.nonzero(visible[:, t])[0]
        if not len(rows):
            return
        side, place = (0, t) if sign > 0 else (1, t - 1)
        flow, steady = film.flows[side][place], film.steady[side][place]
        at = uv[rows, t]
        good = steady[at[:, 1].astype(int), at[:, 0].astype(int)]
        to = at + sample(flow, at)
        good &= (to >= 0.5).all(1) & (to[:, 0] <= width - 0.5) & (to[:, 1] <= height - 0.5)
        rows, to = rows[good], to[good]
        inside = masks[t + sign][to[:, 1].astype(int), to[:, 0].astype(int)]
        rows, to = rows[inside], to[inside]
        uv[rows, t + sign], visible[rows, t + sign] = to, True
        t += sign


def _depth_at(film: Film, uv: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """[P, T] depth under the tracks; unknown at jumps, where a little drift would mean another surface."""
    depth = np.zeros(visible.shape, np.float32)
    if film.depth is None:
        return depth
    for t in range(len(film)):
        rows = np.nonzero(visible[:, t])[0]
        at = uv[rows, t]
        values = [film.depth[t][_clip(at[:, 1] + dy, film.size[1]), _clip(at[:, 0] + dx, film.size[0])]
                  for dy in (-1, 0, 1) for dx in (-1, 0, 1)]  # fmt: skip
        near, far = np.min(values, axis=0), np.max(values, axis=0)
        exact = sample(film.depth[t], at) if len(at) else np.zeros(0, np.float32)
        depth[rows, t] = np.where((near > 0) & (far < 1.04 * near), exact, 0)
    return depth


def _clip(values: np.ndarray, size: int) -> np.ndarray:
    return np.clip(values, 0, size - 1).astype(int)


def read_tracks(path: Path, film: Film) -> Tracks:
    """Tracks from a file of arrays (.npz or .safetensors).

    ``uv`` [P, T, 2] in pixels of the photographs (pixel centres at +0.5), or ``xyz`` [P, T, 3] in the world; T frames
    in the order of time. Optional: ``visible`` bool [P, T]; ``size`` [2] width and height that the pixels refer to,
    where that is not the photographs' own. Rows with NaN are not visible there.

    Raises:
        FeaturesplatError: missing, damaged, of another number of frames, or nothing usable in it.
    """
    arrays = _arrays(path)
    points = arrays.get("xyz", arrays.get("uv"))
    wanted = 3 if "xyz" in arrays else 2
    if points is None or points.ndim != 3 or points.shape[2] != wanted or points.dtype.kind not in "fiu":
        got = "no `uv` or `xyz`" if points is None else f"{list(points.shape)} {points.dtype}"
        raise FeaturesplatError(f"{path}: expected uv [P, T, 2] or xyz [P, T, 3], got {got}.", "Write them so.")
    if points.shape[1] != len(film):
        raise FeaturesplatError(
            f"{path}: the tracks have {points.shape[1]} frames, the film has {len(film)} training frames.",
            "Give the tracks of the training frames in the order of time.",
        )
    finite = np.isfinite(points).all(-1)
    visible = arrays.get("visible", finite).astype(bool)
    if visible.shape != finite.shape:
        raise FeaturesplatError(
            f"{path}: expected visible {list(finite.shape)}, got {list(visible.shape)}.", "Give one flag a point."
        )
    if not finite.all():
        hidden = int((visible & ~finite).sum())
        if hidden:
            warnings.warn(f"{path}: {hidden} visible points are NaN or infinite and were left out.", stacklevel=2)
    visible = visible & finite
    if wanted == 3:
        uv, depth = _projected(film, points, visible)
    else:
        uv, depth = _scaled(film, points, arrays, path), None
    keep = visible.sum(1) >= min(2, len(film))
    if not keep.any():
        raise FeaturesplatError(f"{path}: holds no point that is seen in two frames.", "Leave --priors.tracks out.")
    uv = np.where(visible[..., None], uv, np.nan).astype(np.float32)[keep]
    visible = visible[keep]
    depth = _depth_at(film, uv, visible) if depth is None else np.where(visible, depth[keep], 0)
    return Tracks(uv, visible, depth, np.ones(len(uv), np.float32))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        from featuresplat.io.tensors import read_tensors

        return {k: v.numpy() for k, v in read_tensors(path)[0].items()}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files}
    except (OSError, ValueError, EOFError, AttributeError, KeyError) as error:
        raise FeaturesplatError(
            f"{path}: is missing, damaged or no file of tracks ({error}).", "Give an .npz or .safetensors file."
        ) from None


def _scaled(film: Film, uv: np.ndarray, arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    size = arrays.get("size")
    full = film.full_size if size is None else np.asarray(size, float).reshape(-1)
    if np.shape(full) != (2,) or not (np.asarray(full) > 0).all():
        raise FeaturesplatError(f"{path}: expected size [width, height], got {full}.", "Mend `size`.")
    return uv * (np.array(film.size) / np.asarray(full))


def _projected(film: Film, xyz: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [P, T, 2] and depth [P, T] of world points."""
    local = np.einsum("tij,ptj->pti", film.viewmats[:, :3, :3], np.nan_to_num(xyz)) + film.viewmats[:, :3, 3]
    z = local[..., 2]
    image = np.einsum("tij,ptj->pti", film.Ks, local)
    return image[..., :2] / np.maximum(z, 1e-9)[..., None], np.where(visible & (z > 0), z, 0).astype(np.float32)
