"""A scene in pieces, from its geometry and colours alone: a support, the things that stand on it, and the rest.

The surface is gathered from many views as voxels. The plane that most of it lies on is the support (a table, a floor);
what rises above it and hangs together is one object. Where an object meets its support, heights say little; there the
labels spread over the graph of neighbouring Gaussians by a random walk that hardly crosses changes of colour (`walk`).
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import binary_closing, binary_fill_holes, gaussian_filter
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import ConvexHull, KDTree, QhullError
from torch import Tensor

from featuresplat import registry
from featuresplat.paths import focus_point
from featuresplat.prompts.graph import graph_of
from featuresplat.prompts.surface import Surface, glance, smaller, unproject
from featuresplat.prompts.walk import certain, walk
from featuresplat.types import Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

VIEWS, PIXELS = 24, 30_000
"""How many views the surface is gathered from, and at how many pixels each."""
SOLID = 0.3
"""Weight of a pixel's heaviest Gaussians from which on it shows a surface."""
VOXEL = 2.0
"""Edge of a voxel in pixels of a full view at the distance of the focus."""
TOLERANCE = 0.01
"""Roughness of a plane as a share of the distance to the focus: the unit of all heights below."""
CORE, LOW, DEEP = 2.0, 0.5, -8.0
"""Heights: what is above CORE is surely an object, what is below LOW the support; below DEEP is the rest."""
SMALLEST, MOST = 80, 24
"""An object has at least so many voxels; at most so many objects are told apart."""


@dataclass(frozen=True)
class Pieces:
    """The pieces of a scene.

    Attributes:
        scores: float32 [N, L], to which piece each Gaussian belongs, rows sum to about 1: column 0 is the support, then
            come the objects, largest first, and last the rest.
        sizes: int64 [L] voxels of each piece.
        plane: normal (towards the cameras) and a point of the support, float64 [3] each, and its roughness in world
            units; None where there is no support: then column 0 is empty and an object is all that hangs together.
    """

    scores: Tensor
    sizes: Tensor
    plane: tuple[np.ndarray, np.ndarray, float] | None

    @property
    def found(self) -> bool:
        """Whether there is a support."""
        return self.plane is not None

    @property
    def ids(self) -> Tensor:
        """int64 [N]: the piece of each Gaussian."""
        return self.scores.argmax(1)

    @property
    def objects(self) -> range:
        """The columns that are objects."""
        return range(1, self.scores.shape[1] - 1)


@dataclass(frozen=True)
class _Voxels:
    """The surface: centres [V, 3], colours [V, 3], edge; the tolerance, the point that the cameras look at and how far
    they are from it; and the views it was gathered from.
    """

    points: np.ndarray
    colors: np.ndarray
    edge: float
    tolerance: float
    focus: np.ndarray
    distance: float
    views: list[tuple[Cameras, Surface]]


FOOT = 0.35
"""Most of an object that may hold still, as a share of what moves, to move with it in name."""
_known: dict[int, tuple[weakref.ref, Pieces]] = {}


def pieces_of(scene: Scene, gaussians: Gaussians) -> Pieces:
    """The pieces of a scene at one time (see `surface.snapshot`), remembered as long as the Gaussians live."""
    key = id(gaussians.means)
    found = _known.get(key)
    if found is not None and found[0]() is gaussians.means:
        return found[1]
    pieces = _by_motion(scene, _divide(scene, gaussians))
    _remember(gaussians.means, pieces)
    return pieces


def _by_motion(scene: Scene, pieces: Pieces) -> Pieces:
    """The pieces with an object for each thing that moves by itself: common fate is better evidence than any shape."""
    module = registry.load("modes", scene.mode)
    if not hasattr(module, "bodies"):
        return pieces
    bodies = module.bodies(scene).to(pieces.scores.device)
    count = int(bodies.max()) + 1 if len(bodies) else 0
    if count < 1:
        return pieces
    bodies = _with_still_parts(bodies, count, pieces)
    own = torch.nn.functional.one_hot(bodies.clamp_min(0), count).to(pieces.scores) * (bodies >= 0)[:, None]
    still = pieces.scores * (bodies < 0)[:, None]
    scores = torch.cat([still[:, :-1], own, still[:, -1:]], dim=1)
    # As many voxels as Gaussians: only how they compare counts.
    share = float(pieces.sizes.sum()) / max(len(bodies), 1)
    sizes = (own.sum(0).cpu() * share).long().clamp_min(1)
    return replace(pieces, scores=scores, sizes=torch.cat([pieces.sizes[:-1], sizes, pieces.sizes[-1:]]))


def _with_still_parts(bodies: Tensor, count: int, pieces: Pieces) -> Tensor:
    """The bodies with what holds still of the object that each one is most of: the foot of a tree in the wind.

    A larger still part is a thing of its own: the book under a cover that opens.
    """
    out, ids = bodies.clone(), pieces.ids
    for piece in pieces.objects:
        inside = ids == piece
        moving = bodies[inside & (bodies >= 0)]
        still = inside & (bodies < 0)
        if not len(moving) or int(still.sum()) > FOOT * len(moving):
            continue
        votes = moving.bincount(minlength=count)
        body = int(votes.argmax())
        if int(votes[body]) > 0.8 * len(moving) and int(votes[body]) > 0.5 * int((bodies == body).sum()):
            out[still] = body
    return out


def inherit(before: Tensor, after: Tensor, rows: Tensor | None = None) -> None:
    """Gaussians whose means were ``before`` are now at ``after``: the same ones, or some ``rows`` of them.

    An edit leaves the pieces as they are, so they are not looked for again.
    """
    found = _known.get(id(before))
    if found is None or found[0]() is not before:
        return
    scores = found[1].scores
    _remember(after, replace(found[1], scores=scores if rows is None else scores[rows.to(scores.device)]))


def _remember(means: Tensor, pieces: Pieces) -> None:
    key = id(means)
    _known[key] = (weakref.ref(means, lambda _: _known.pop(key, None)), pieces)


def _divide(scene: Scene, gaussians: Gaussians) -> Pieces:
    voxels = _gather(scene, gaussians) if len(scene.cameras) else None  # no views, as of a bare PLY: nothing is known
    if voxels is None or len(voxels.points) < SMALLEST:
        scores, seen = torch.zeros(len(gaussians), 3), 0 if voxels is None else len(voxels.points)
        scores[:, 1] = 1.0
        return Pieces(scores.to(gaussians.means.device), torch.tensor([0, seen, 0]), None)
    plane = _plane(voxels, scene.cameras.positions.double().cpu().numpy().mean(0))
    centres = gaussians.means.detach().double().cpu().numpy()
    if plane is None:
        labels, count = _apart(voxels, np.ones(len(voxels.points), bool))
        labels[labels < 0] = count + 1
        heights = np.full(len(centres), np.inf)
    else:
        labels, count = _on_support(voxels, *plane)
        heights = (centres - plane[1]) @ plane[0] / voxels.tolerance
    seeds = _seeds(voxels, labels, count, centres, heights)
    graph = graph_of(gaussians.means)
    walked = walk(graph, gaussians.colors, seeds, count + 2)
    open_ = (~certain(graph, seeds) & (heights >= 0)).nonzero()[0]
    within = _within(voxels, centres[open_], walked.argmax(1).numpy(), count)
    hidden = torch.from_numpy(open_[within >= 0])
    inside = torch.from_numpy(within[within >= 0])
    walked[hidden] = torch.nn.functional.one_hot(inside, count + 2).float()
    sizes = np.bincount(labels[labels >= 0], minlength=count + 2)
    support = None if plane is None else (*plane, voxels.tolerance)
    return Pieces(walked.to(gaussians.means.device), torch.from_numpy(sizes), support)


def _gather(scene: Scene, gaussians: Gaussians) -> _Voxels:
    """The surface as views see it, without what lies at the edges of depth."""
    cameras, settings = scene.cameras, scene.raster_settings()
    points, colors, views = [], [], []
    for i in np.unique(np.linspace(0, len(cameras) - 1, min(VIEWS, len(cameras))).round().astype(int)):
        camera = smaller(cameras[int(i)], PIXELS)
        seen, mixed = glance(gaussians, camera, settings)
        views.append((camera, seen))
        step = np.zeros_like(seen.depth)
        for axis in (0, 1):
            jump = np.abs(np.diff(seen.depth, axis=axis))
            pad = [(0, 0), (0, 0)]
            pad[axis] = (1, 0)
            step = np.maximum(step, np.pad(jump, pad))
            pad[axis] = (0, 1)
            step = np.maximum(step, np.pad(jump, pad))
        smooth = (seen.weight > SOLID) & (seen.depth > 0) & (step < 10 * seen.depth / float(camera.Ks[0, 0, 0]))
        points.append(unproject(seen.depth, camera)[smooth])
        colors.append(mixed[smooth])
    xyz, rgb = np.concatenate(points), np.concatenate(colors)
    focus = focus_point(cameras).numpy()
    distance = float(np.median(np.linalg.norm(cameras.positions.double().cpu().numpy() - focus, axis=1)))
    edge = VOXEL * distance / float(cameras.Ks[:, 0, 0].median())
    near = np.linalg.norm(xyz - focus, axis=1) < 2.5 * distance
    xyz, rgb = xyz[near], rgb[near]
    if not len(xyz):
        return _Voxels(xyz, rgb, edge, TOLERANCE * distance, focus, distance, views)
    cells = np.floor(xyz / edge).astype(np.int64)
    cells -= cells.min(0)
    span = cells.max(0) + 1
    _, number, hits = np.unique(
        (cells[:, 0] * span[1] + cells[:, 1]) * span[2] + cells[:, 2], return_inverse=True, return_counts=True
    )

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(number, values[:, k]) for k in range(3)], 1) / hits[:, None]

    firm = hits > 1
    return _Voxels(mean(xyz)[firm], mean(rgb)[firm], edge, TOLERANCE * distance, focus, distance, views)


def _plane(voxels: _Voxels, cameras: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Normal towards the cameras and a point of the plane that most of the surface lies on, if it is a good share."""
    rng = np.random.default_rng(0)
    near = voxels.points[np.linalg.norm(voxels.points - voxels.focus, axis=1) < 1.5 * voxels.distance]
    if len(near) < SMALLEST:
        return None
    some = near[rng.choice(len(near), min(len(near), 8000), replace=False)]
    three = some[rng.integers(len(some), size=(1000, 3))]
    normals = np.cross(three[:, 1] - three[:, 0], three[:, 2] - three[:, 0])
    lengths = np.linalg.norm(normals, axis=1)
    good = lengths > 1e-12 * lengths.max()
    normals, origins = normals[good] / lengths[good, None], three[good, 0]
    counts = [int((np.abs((some - p) @ n) < voxels.tolerance).sum()) for n, p in zip(normals, origins, strict=True)]
    if not counts:
        return None
    normal, point = normals[int(np.argmax(counts))], origins[int(np.argmax(counts))]
    inside = np.abs((near - point) @ normal) < voxels.tolerance
    for _ in range(5):
        point = near[inside].mean(0)
        normal = np.linalg.svd(near[inside] - point, full_matrices=False)[2][2]
        inside = np.abs((near - point) @ normal) < voxels.tolerance
    if inside.mean() < 0.25:
        return None
    return (normal if (cameras - point) @ normal > 0 else -normal), point


def _apart(voxels: _Voxels, chosen: np.ndarray) -> tuple[np.ndarray, int]:
    """int64 [V]: 1, 2, ... for what hangs together among the chosen, largest first; -1 for crumbs and the others."""
    at = chosen.nonzero()[0]
    out = np.full(len(chosen), -1)
    if not len(at):
        return out, 0
    pairs = KDTree(voxels.points[at]).query_pairs(2.5 * voxels.edge, output_type="ndarray")
    joined = csr_matrix((np.ones(len(pairs), np.int8), pairs.T), shape=(len(at), len(at)))
    part = connected_components(joined, directed=False)[1]
    sizes = np.bincount(part)
    order = np.argsort(-sizes, kind="stable")
    count = min(int((sizes >= SMALLEST).sum()), MOST)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    out[at] = np.where(rank[part] < count, rank[part] + 1, -1)
    return out, count


def _on_support(voxels: _Voxels, normal: np.ndarray, point: np.ndarray) -> tuple[np.ndarray, int]:
    """Piece of each voxel, -1 = not sure, and how many objects there are."""
    heights = (voxels.points - point) @ normal / voxels.tolerance
    labels, count = _apart(voxels, heights > CORE)
    axes = np.linalg.svd(normal[None])[2][1:]
    flat = (voxels.points - point) @ axes.T  # [V, 2]
    foot = _footprint(voxels, flat, (np.abs(heights) < 4) & (labels < 0))
    low = labels < 0
    support = low & foot & (np.abs(heights) < 6) & (heights < LOW)
    rest = low & ~support & ((~foot & (heights < CORE)) | (heights < DEEP) | (heights > CORE))
    everywhere = _histogram(voxels.colors[support])
    unsure = np.zeros(len(labels), bool)
    for k in range(1, count + 1):
        mine = labels == k
        inside = _under(flat, flat[mine])
        middle = flat[mine].mean(0)
        radius = np.quantile(np.linalg.norm(flat[mine] - middle, axis=1), 0.95)
        around = support & ~inside & (np.linalg.norm(flat - middle, axis=1) < 1.7 * radius + 5 * voxels.tolerance)
        ground = 0.2 * everywhere
        ground += 0.8 * (_histogram(voxels.colors[around]) if around.sum() > 50 else everywhere)
        # Under an object the support shows only where it has the support's colours: a pan's bottom is as low as the
        # table around it.
        under = (inside & low).nonzero()[0]
        odd = _look(_histogram(voxels.colors[mine]), voxels.colors[under]) > _look(ground, voxels.colors[under])
        unsure[under[odd | rest[under]]] = True
    labels[rest] = count + 1
    labels[support] = 0
    labels[unsure] = -1
    return labels, count


def _footprint(voxels: _Voxels, flat: np.ndarray, level: np.ndarray) -> np.ndarray:
    """bool [V]: over the part of the plane that the largest connected stretch of ``level`` covers, holes filled."""
    cell = 3 * voxels.edge
    place = np.floor(flat / cell).astype(np.int64)
    place -= place.min(0) - 4
    covered = np.zeros(place.max(0) + 5, bool)
    part, count = _apart(voxels, level)
    covered[tuple(place[part == 1 if count else level].T)] = True
    covered = binary_fill_holes(binary_closing(covered, iterations=3))
    assert covered is not None
    return covered[tuple(place.T)]


def _under(flat: np.ndarray, object_: np.ndarray) -> np.ndarray:
    """bool [V]: inside the convex outline of an object, seen along the normal."""
    try:
        sides = ConvexHull(object_).equations  # [S, 3]: outside is where a x + b y + c > 0
    except QhullError:  # all on one line
        return np.zeros(len(flat), bool)
    slack = 0.02 * (object_.max(0) - object_.min(0)).max()
    inside = np.ones(len(flat), bool)
    for a, b, c in sides:
        inside &= a * flat[:, 0] + b * flat[:, 1] + c <= slack
    return inside


def _histogram(colors: np.ndarray, bins: int = 16) -> np.ndarray:
    """Smooth density of colours [M, 3] over bins^3 cells, summing to 1 (of none: to 0)."""
    counts = np.zeros((bins,) * 3)
    np.add.at(counts, tuple((colors * bins).astype(int).clip(0, bins - 1).T), 1)
    smooth = gaussian_filter(counts, 1.0)
    return smooth / max(smooth.sum(), 1e-12)


def _look(density: np.ndarray, colors: np.ndarray) -> np.ndarray:
    bins = len(density)
    return density[tuple((colors * bins).astype(int).clip(0, bins - 1).T)]


def _seeds(voxels: _Voxels, labels: np.ndarray, count: int, centres: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """int64 [N]: the piece that a Gaussian surely belongs to, -1 = not sure."""
    distance, nearest = KDTree(voxels.points).query(centres, distance_upper_bound=2.5 * voxels.edge)
    near = np.isfinite(distance)
    seeds = np.full(len(centres), -1)
    seeds[near] = labels[np.asarray(nearest)[near]]
    seeds[(seeds == 0) & (heights > 2 * LOW)] = -1
    seeds[(seeds > 0) & (seeds <= count) & (heights < 0.75 * CORE)] = -1
    seeds[~near & (np.linalg.norm(centres - voxels.focus, axis=1) > 2.5 * voxels.distance)] = count + 1
    return seeds


def _within(voxels: _Voxels, centres: np.ndarray, ids: np.ndarray, count: int) -> np.ndarray:
    """int64 [N]: the object that hides a Gaussian, or shows in its place, from wherever one looks; else -1.

    What lies inside an object is connected with nothing, so the walk does not reach it, yet when the object goes it
    would stay as a ghost.
    """
    votes = np.zeros((len(centres), count + 2), np.int32)
    frames = np.zeros(len(centres), np.int32)
    for camera, seen in voxels.views:
        pose, K = camera.viewmats[0].double().cpu().numpy(), camera.Ks[0].double().cpu().numpy()
        local = centres @ pose[:3, :3].T + pose[:3, 3]
        z = np.maximum(local[:, 2], 1e-9)
        x, y = local[:, 0] / z * K[0, 0] + K[0, 2], local[:, 1] / z * K[1, 1] + K[1, 2]
        at = ((local[:, 2] > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)).nonzero()[0]
        met = seen.ids[y[at].astype(int), x[at].astype(int)]
        depth = seen.depth[y[at].astype(int), x[at].astype(int)]
        # What hangs in the air before the surface is no part of it.
        behind = (met >= 0) & (z[at] > 0.97 * depth)
        frames[at] += 1
        votes[at[behind], ids[met[behind]]] += 1
    best = votes[:, 1:-1].argmax(1) + 1 if count else np.zeros(len(centres), np.int64)
    enough = (frames >= 3) & (votes[np.arange(len(centres)), best] >= 0.75 * frames)
    return np.where(enough & (count > 0), best, -1)
