"""Masks of what moves."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from featuresplat.errors import FeaturesplatError
from featuresplat.priors.film import Film, opencv, structure, warp
from featuresplat.priors.still import agreement

STEPS = (3, 8, 16)
"""Frames apart at which a pixel is compared with the epipolar geometry: slow motion shows over long steps."""
EPIPOLAR = 1.2
"""Pixels of the reduced frames off its epipolar line that a point that holds still may be, plus a share of its way."""
DRIFT = 0.06
"""That share: chained flow drifts."""
THROUGH = 0.02
"""A surface is gone where another frame looks through its place by this share of the distance."""
WORSE = 5.0
"""Grey values (of 255) by which a patch would fit worse if it held still, above which it moves."""
VOTES = 2
"""So many frames must say so."""
UNLIKE = 30
"""Grey values between two frames above which flow has lost its point."""
FADE = 0.99
"""How evidence fades from frame to frame along the flow."""
STILL = 0.45
"""Share of the other frames that agree with a pixel at some depth above which it holds still after all."""


def moving_masks(film: Film, folder: Path | None = None, reach: tuple[float, float] | None = None) -> np.ndarray:
    """Bool [T, H, W]: pixels of what moves at any time of the film, also where it pauses.

    From files where there is a folder; else from depth maps, where there are some: the places of what moves are empty
    at other times; else from epipolar errors of the chained flow. These take a rim of what lies behind along, which
    flow drags with the thing in front: with ``reach``, what a still surface explains is taken out again.

    Args:
        reach: nearest and farthest depth of the surfaces, in units of the cameras.

    Raises:
        FeaturesplatError: files that are missing, damaged or of other proportions.
    """
    if folder is not None:
        return _mask_files(film, folder)
    if film.depth is not None:
        return cleaned(spread(film, depth_evidence(film)) > 0.5)
    masks = cleaned(spread(film, epipolar_evidence(film)) > 0.5)
    if reach is None:
        return masks
    around = np.stack([opencv().dilate(m.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0 for m in masks])
    return cleaned(around & (agreement(film, around, reach) < STILL))


def epipolar_evidence(film: Film) -> np.ndarray:
    """[T, H, W] in 0..1: how much worse a pixel's patch would fit if it held still; 0.5 at the threshold.

    The flow over some steps says where the patch went; what holds still could only have gone along its epipolar line.
    The structure tensor of the patch turns the way between the two into grey values: where there is no texture, flow
    says nothing, and neither do we.
    """
    count, (width, height) = len(film), film.size
    out = np.zeros((count, height, width), np.float32)
    for t in range(count):
        film.progress("what moves", t + 1, count)
        texture = structure(film.images[t])
        # What a moving thing is about to cover, or has just uncovered, seems to move in one direction of time only.
        out[t] = np.minimum(*(_one_way(film, t, sign, texture) for sign in (1, -1)))
    return out


def _one_way(film: Film, t: int, sign: int, texture: np.ndarray) -> np.ndarray:
    """[H, W] evidence from the frames after (or before) frame t; 0 where there are none."""
    found = np.zeros(film.images.shape[1:3], np.float32)
    for at, way, good in ways(film, t, sign, STEPS):
        off, worse = epipolar_error(film, t, at, way, texture)
        far = off / (EPIPOLAR + DRIFT * np.linalg.norm(way, axis=-1))
        found = np.maximum(found, np.where(good, np.clip(np.minimum(far, worse / WORSE) / 2, 0, 1), 0))
    return found


def ways(film: Film, t: int, sign: int, steps: Collection[int]) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Frame t against those so many steps after it, or before it for sign -1, as far as the film goes.

    Yields:
        The other frame, the way [H, W, 2] in pixels that the flow leads there, and where it is to be believed [H, W].
    """
    height, width = film.images.shape[1:3]
    way, good, at = np.zeros((height, width, 2), np.float32), np.ones((height, width), bool), t
    for step in range(1, max(steps) + 1):
        if not 0 <= at + sign < len(film):
            return
        flow, steady = step_of(film, at, sign)
        good = good & (warp(steady.astype(np.float32), way) > 0.5)
        way = way + warp(flow, way)
        at += sign
        if step in steps:
            yield at, way, good


def epipolar_error(
    film: Film, t: int, other: int, flow: np.ndarray, texture: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """[H, W] pixels, and grey values, between where the flow leads from frame t and where what holds still can be.

    That is a segment from the image of the point at infinity to that of the nearest sensible depth; with no way
    between the two cameras it is a point. The nearest place on it is sought in grey values.

    Args:
        texture: [H, W, 2, 2] structure tensor of frame t.
    """
    height, width = flow.shape[:2]
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(film.Ks[t]).T
    pose = film.viewmats[other] @ np.linalg.inv(film.viewmats[t])
    K = film.Ks[other]
    infinite = pixels @ pose[:3, :3].T @ K.T
    far = infinite[..., :2] / np.maximum(infinite[..., 2:], 1e-6)
    near3 = infinite * _nearest_depth(film) + K @ pose[:3, 3]
    near = near3[..., :2] / np.maximum(near3[..., 2:], 1e-6)
    landed = np.stack([x + flow[..., 0], y + flow[..., 1]], -1)
    along, gap = near - far, landed - far
    weighed = np.einsum("hwij,hwj->hwi", texture, along)
    share = (weighed * gap).sum(-1) / np.maximum((weighed * along).sum(-1), 1e-9)
    plain = (along * gap).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
    # Texture along the line decides; without any, the plain distance does.
    share = np.where((weighed * along).sum(-1) > 1e-3, share, plain)
    gap = gap - np.clip(share, 0, 1)[..., None] * along
    worse = np.sqrt(np.maximum(np.einsum("hwi,hwij,hwj->hw", gap, texture, gap), 0))
    return np.linalg.norm(gap, axis=-1), worse


def _nearest_depth(film: Film) -> float:
    """A tenth of the distance at which the cameras look at one place, or of their way."""
    centres = np.linalg.inv(film.viewmats)[:, :3, 3]
    way = float(np.linalg.norm(centres - centres.mean(0), axis=1).max())
    return max(0.2 * way, 1e-6)


def depth_evidence(film: Film) -> np.ndarray:
    """[T, H, W] in 0..1: the share of ``VOTES`` frames that look through a pixel's place, halved."""
    assert film.depth is not None  # the caller has looked
    count, (width, height) = len(film), film.size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    pixels = np.stack([x, y, np.ones_like(x)], -1)
    solid = _without_edges(film.depth)
    others = np.unique(np.linspace(0, count - 1, min(count, 24)).round().astype(int))
    out = np.zeros((count, height, width), np.float32)
    for t in range(count):
        film.progress("what moves", t + 1, count)
        place = (pixels @ np.linalg.inv(film.Ks[t]).T) * film.depth[t][..., None]
        votes = np.zeros((height, width), np.float32)
        for s in others:
            pose = film.viewmats[s] @ np.linalg.inv(film.viewmats[t])
            local = place @ pose[:3, :3].T + pose[:3, 3]
            z = np.maximum(local[..., 2], 1e-9)
            col = np.floor(film.Ks[s][0, 0] * local[..., 0] / z + film.Ks[s][0, 2]).astype(int)
            row = np.floor(film.Ks[s][1, 1] * local[..., 1] / z + film.Ks[s][1, 2]).astype(int)
            seen = (local[..., 2] > 0) & (col >= 0) & (row >= 0) & (col < width) & (row < height)
            there = solid[s][row.clip(0, height - 1), col.clip(0, width - 1)]
            votes += seen & (there > z * (1 + THROUGH)) & (film.depth[t] > 0)
        out[t] = np.clip(1.1 * votes / VOTES / 2, 0, 1)
    return out


def _without_edges(depth: np.ndarray) -> np.ndarray:
    """Depth with 0 where it jumps: what is nearest around a pixel, or nothing where anything is unknown."""
    cv2 = opencv()
    kernel = np.ones((3, 3), np.uint8)
    out = depth.copy()
    for t, plane in enumerate(depth):
        near, far = cv2.erode(plane, kernel), cv2.dilate(plane, kernel)
        out[t] = np.where((near > 0) & (far < 1.05 * near), near, 0)
    return out


def step_of(film: Film, t: int, sign: int) -> tuple[np.ndarray, np.ndarray]:
    """Flow from frame t to t + sign, and where it is consistent."""
    side, place = (0, t) if sign > 0 else (1, t - 1)
    return film.flows[side][place], film.steady[side][place]


def spread(film: Film, evidence: np.ndarray) -> np.ndarray:
    """Evidence carried along the flow through the whole film: what moves later moves as one with what it is now."""
    best = evidence.copy()
    for sign, order in ((1, range(len(film) - 2, -1, -1)), (-1, range(1, len(film)))):
        carried = evidence.copy()
        for t in order:
            flow, steady = step_of(film, t, sign)
            same = steady & _same_surface(film, t, t + sign, flow)
            carried[t] = np.maximum(carried[t], np.where(same, FADE * warp(carried[t + sign], flow), 0))
        best = np.maximum(best, carried)
    return best


def _same_surface(film: Film, t: int, other: int, flow: np.ndarray) -> np.ndarray:
    """Bool [H, W]: the flow leads to like colours, and to a like depth where that is known."""
    colours = np.abs(warp(film.images[other].astype(np.float32), flow) - film.images[t]).max(-1)
    same = colours < UNLIKE
    if film.depth is not None:
        depth, there = film.depth[t], warp(film.depth[other], flow)
        same &= (depth == 0) | (there == 0) | (np.abs(there - depth) < 0.02 * depth)
    return same


def cleaned(masks: np.ndarray) -> np.ndarray:
    """Without specks, without pinholes."""
    cv2 = opencv()
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    out = []
    for mask in masks:
        solid = cv2.morphologyEx(cv2.medianBlur(mask.astype(np.uint8), 5), cv2.MORPH_CLOSE, disc)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(solid)
        large = [k for k in range(1, count) if stats[k, cv2.CC_STAT_AREA] >= 0.0008 * mask.size]
        out.append(np.isin(labels, large))
    return np.stack(out)


def _mask_files(film: Film, folder: Path) -> np.ndarray:
    """Masks ``NAME.png``: 0 holds still, all else moves."""
    from PIL import Image

    if not folder.is_dir():
        raise FeaturesplatError(f"{folder}: there is no such folder of motion masks.", "Check --priors.masks.")
    width, height = film.size
    out = []
    for name in film.names:
        stem = Path(name).with_suffix("")
        path = next((f for f in (folder / f"{stem}.png", folder / f"{stem.name}.png") if f.is_file()), None)
        if path is None:
            raise FeaturesplatError(
                f"{folder}: holds no motion mask for {name}.", f"Name them as the images: {stem.name}.png."
            )
        try:
            with Image.open(path) as image:
                mask = np.asarray(image.convert("L"))
        except (OSError, SyntaxError, ValueError) as error:
            raise FeaturesplatError(f"{path}: is no picture ({error}).", "Write it again.") from None
        if abs(mask.shape[1] * height / (mask.shape[0] * width) - 1) > 0.02:
            raise FeaturesplatError(
                f"{path}: expected the proportions of its frame, {width}x{height}, got {mask.shape[1]}x{mask.shape[0]}",
                "Store masks in the size of the frame or a fraction of it.",
            )
        out.append(opencv().resize((mask > 0).astype(np.float32), (width, height)) > 0.5)
    return np.stack(out)
