"""What the training of a moving scene starts from: still points, moving points, nodes, and masks of what moves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat import modes, priors
from featuresplat.modes._motion import dualquat
from featuresplat.modes._motion.depths import guessed, seen_points
from featuresplat.modes._motion.fit import fit_motion, node_radii, spread
from featuresplat.modes._motion.nodes import Nodes, neighbours, sample_times
from featuresplat.modes._motion.sightings import Paths
from featuresplat.modes.static import start_points
from featuresplat.priors.film import Progress, opencv, silent
from featuresplat.types import PointCloud

KEYFRAMES = 13
"""Frames that points are taken from."""
SEEDS, KEYFRAME_POINTS = 8000, 4000
"""Pixels of what moves kept of each of them, and points made of them at most."""
TRACKS = 900
"""Tracks that nodes are fitted to; more cost time and tell little new."""
FEWEST = 16
"""Moving points below which there is no telling how anything moves."""
COVERED = 3
"""Pixels around a point that already stands for a surface."""


@dataclass
class Start:
    """In the training frame.

    Attributes:
        still: points that hold still, or None where there are none.
        moving: points that move, in the nodes' rest frame.
        nodes: how they move; without any, everything may move by nodes that have yet to learn how.
        masks: bool [M, H, W] by training image, at the film's reduced size; or None.
        ids, weights: [Q, K] nodes that the moving points follow, and how much.
    """

    still: PointCloud | None
    moving: PointCloud
    nodes: Nodes
    masks: Tensor | None
    ids: Tensor
    weights: Tensor


def start_of(inputs: modes.ModeInputs, progress: Progress = silent) -> Start:
    """Look at the film: what moves, how, and where its surfaces are.

    Raises:
        FeaturesplatError: no times, one time only, priors that do not fit.
    """
    config, dataset = inputs.config, inputs.dataset
    assert dataset is not None  # only tests of other modes leave it out
    film = priors.film_of(dataset, config.priors.flow, progress)
    if not (one_camera(film) and (config.priors.flow or film.continuous)):
        return _without_film(inputs, film)
    masks = priors.moving_masks(film, config.priors.masks, _reach(inputs, film))
    tracks = _tracks(inputs, film, masks)
    paths = _paths(inputs, film, tracks, masks)
    times = torch.tensor(film.times, dtype=torch.float32)
    progress("motion", 0, 1)
    nodes = fit_motion(paths, times, config.dynamic.nodes, steps=config.dynamic.fit_steps, seed=config.seed)
    if nodes is None:
        return _without_film(inputs, film)
    progress("surfaces", 0, 1)
    moving, ids, weights = _moving_points(inputs, film, masks, nodes)
    if len(moving) < FEWEST:
        return _without_film(inputs, film)
    still = _still_points(inputs, film, masks)
    order = torch.tensor(film.indices).argsort()
    return Start(still, moving, nodes, torch.from_numpy(masks)[order], ids, weights)


def one_camera(film: priors.Film) -> bool:
    """Whether each time has one frame: several cameras at once are no film."""
    return len(np.unique(film.times)) == len(film)


def _tracks(inputs: modes.ModeInputs, film: priors.Film, masks: np.ndarray) -> priors.Tracks:
    path = inputs.config.priors.tracks
    tracks = priors.track(film, masks) if path is None else priors.read_tracks(path, film)
    if len(tracks) > TRACKS:
        # The long ones first, but not all of them: what shows only for a while needs its own.
        order = np.random.default_rng(inputs.config.seed).permutation(len(tracks))
        length = tracks.visible[order].sum(1) * (0.1 + tracks.trust[order])
        keep = np.concatenate([order[: TRACKS // 2], order[np.argsort(-length, kind="stable")]])
        _, first = np.unique(keep, return_index=True)
        keep = keep[np.sort(first)][:TRACKS]
        tracks = priors.Tracks(tracks.uv[keep], tracks.visible[keep], tracks.depth[keep], tracks.trust[keep])
    return tracks


def _reach(inputs: modes.ModeInputs, film: priors.Film) -> tuple[float, float] | None:
    """Nearest and farthest depth of the start points in the film's frames, in the data's units; a little beyond."""
    if inputs.points is None or len(inputs.points) < FEWEST:
        return None
    viewmats = _viewmats(inputs, film)
    depth = torch.cat([inputs.points.xyz.float() @ viewmats[t, 2, :3] + viewmats[t, 2, 3] for t in _keyframes(film)])
    depth = depth[depth > 1e-3]
    if len(depth) < FEWEST:
        return None
    near, far = np.quantile(depth.numpy(), [0.01, 0.99]) / inputs.frame.scale
    return 0.8 * float(near), 1.05 * float(far)


def _viewmats(inputs: modes.ModeInputs, film: priors.Film) -> Tensor:
    """[T, 4, 4] of the film's frames, in the training frame."""
    return inputs.cameras.viewmats[film.indices].float()


def _rays(film: priors.Film, uv: Tensor) -> Tensor:
    """[P, T, 2] x/z and y/z of pixels [P, T, 2]."""
    K = torch.tensor(film.Ks, dtype=torch.float32)
    return (uv - K[:, :2, 2]) / torch.stack([K[:, 0, 0], K[:, 1, 1]], -1)


def _paths(inputs: modes.ModeInputs, film: priors.Film, tracks: priors.Tracks, masks: np.ndarray) -> Paths:
    uv = torch.from_numpy(tracks.uv).nan_to_num()
    seen = torch.from_numpy(tracks.visible)
    depth = torch.from_numpy(tracks.depth) * inputs.frame.scale
    viewmats = _viewmats(inputs, film)
    paths = Paths(_rays(film, uv), seen, depth, viewmats, torch.from_numpy(tracks.trust))
    if not paths.has_depth and len(tracks):
        still = None if inputs.points is None else _that_hold_still(inputs, film, viewmats, masks)
        paths.guess, paths.floor = guessed(film, tracks, masks, viewmats, inputs.points, still)
    return paths


def _still_points(inputs: modes.ModeInputs, film: priors.Film, masks: np.ndarray) -> PointCloud | None:
    """The start points that hold still, and pixels of known depth from key frames where there are none yet."""
    viewmats = _viewmats(inputs, film)
    most = max(inputs.config.model.budget // 2, 1)
    still = _Cover(film, viewmats)
    if inputs.points is not None and len(inputs.points):
        static = _that_hold_still(inputs, film, viewmats, masks)
        still.add(static.xyz.float(), static.rgb.float())
    if film.depth is not None:
        room = max(most - len(still.xyz), 0)
        for t in (int(t) for t in _keyframes(film)):
            still.extend(t, ~masks[t], film.depth[t] * inputs.frame.scale, max(1, room // 4))
    return still.cloud(most, inputs.config.seed) if len(still.xyz) else None


def _keyframes(film: priors.Film) -> np.ndarray:
    return np.unique(np.linspace(0, len(film) - 1, min(KEYFRAMES, len(film))).round().astype(int))


def _moving_points(
    inputs: modes.ModeInputs, film: priors.Film, masks: np.ndarray, nodes: Nodes
) -> tuple[PointCloud, Tensor, Tensor]:
    """Points in the rest frame, and the nodes [Q, K] and weights: of the rest frame, and of what key frames add."""
    viewmats, count = _viewmats(inputs, film), inputs.config.dynamic.follow
    motions = nodes.frames()
    xyz, rgb = torch.zeros(0, 3), torch.zeros(0, 3)
    ids, weights = torch.zeros(0, min(count, len(nodes)), dtype=torch.long), torch.zeros(0, min(count, len(nodes)))
    for t in sorted({int(t) for t in _keyframes(film)} | {nodes.rest}, key=lambda t: abs(t - nodes.rest)):
        seeds = _seeds(inputs, film, masks, t)
        others = dualquat.apply(dualquat.blend(motions[ids, t], weights), xyz) if len(xyz) else None
        cloud = seeds.place(nodes, t, viewmats[t], KEYFRAME_POINTS, others)
        if not len(cloud):
            continue
        new = follow(nodes, cloud.xyz, t, count)
        w = weights_of(nodes, cloud.xyz, t, new)
        xyz, rgb = torch.cat([xyz, to_rest(nodes, cloud.xyz, t, new, w)]), torch.cat([rgb, cloud.rgb])
        ids, weights = torch.cat([ids, new]), torch.cat([weights, w])
    most = min(inputs.config.dynamic.moving, inputs.config.model.budget // 2)
    generator = torch.Generator().manual_seed(inputs.config.seed)
    keep = torch.randperm(len(xyz), generator=generator)[:most].sort().values
    return PointCloud(xyz[keep], rgb[keep]), ids[keep], weights[keep]


def _seeds(inputs: modes.ModeInputs, film: priors.Film, masks: np.ndarray, t: int) -> Seeds:
    """The pixels of what moves in frame t."""
    rows, cols = np.nonzero(masks[t])
    if len(rows) > SEEDS:
        keep = np.sort(np.random.default_rng(t).permutation(len(rows))[:SEEDS])
        rows, cols = rows[keep], cols[keep]
    K = film.Ks[t]
    rays = np.stack([(cols + 0.5 - K[0, 2]) / K[0, 0], (rows + 0.5 - K[1, 2]) / K[1, 1]], 1)
    depth = np.zeros(len(rows)) if film.depth is None else film.depth[t][rows, cols] * inputs.frame.scale
    colors = film.images[t][rows, cols] / 255.0
    return Seeds(*(torch.from_numpy(v).float() for v in (rays, depth, colors)), pixel=float(1 / K[0, 0]))


@dataclass
class Seeds:
    """Pixels of what moves in one frame: rays [Q, 2] (x/z, y/z), depth [Q] (training units, 0 = unknown), colors
    [Q, 3]; ``pixel`` is the width of one in units of the rays."""

    rays: Tensor
    depth: Tensor
    colors: Tensor
    pixel: float

    def place(self, nodes: Nodes, t: int, viewmat: Tensor, most: int, others: Tensor | None = None) -> PointCloud:
        """Points in the world of those pixels of frame t that none of ``others`` [N, 3] (of frame t) covers.

        Where depth is unknown, a pixel takes that of the nodes that show near it.
        """
        depth = self.depth if bool((self.depth > 0).any()) else depth_by_nodes(nodes, t, viewmat, self.rays)
        wanted = depth > 0
        if others is not None and len(others):
            local = others @ viewmat[:3, :3].T + viewmat[:3, 3]
            local = local[local[:, 2] > 1e-3]
            if len(local):
                at = (local[:, :2] / local[:, 2:]).numpy()
                distance, near = KDTree(at).query(self.rays.numpy(), k=1)
                alike = (local[near, 2] - depth).abs() < 0.05 * depth
                wanted &= ~((torch.from_numpy(distance) < COVERED * self.pixel) & alike)
        rows = wanted.nonzero()[:, 0]
        if len(rows) > most:
            rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(t))[:most].sort().values]
        z = depth[rows, None]
        xyz = (torch.cat([self.rays[rows] * z, z], 1) - viewmat[:3, 3]) @ viewmat[:3, :3]
        return PointCloud(xyz, self.colors[rows])


def depth_by_nodes(nodes: Nodes, t: int, viewmat: Tensor, rays: Tensor) -> Tensor:
    """[Q] z along rays [Q, 2] of frame t: of the nodes that show near, the nearer ones."""
    local = nodes.positions[:, t] @ viewmat[:3, :3].T + viewmat[:3, 3]
    z = local[:, 2].clamp_min(1e-3)
    distance, near = KDTree((local[:, :2] / z[:, None]).numpy()).query(rays.numpy(), k=min(4, len(z)))
    distance = torch.from_numpy(distance.reshape(len(rays), -1)).float()
    around = z[torch.from_numpy(near.reshape(len(rays), -1))]
    weight = 1 / (distance + 0.003) ** 2 * torch.exp(-20 * (around / around.amin(1, keepdim=True) - 1))
    return (weight * around).sum(1) / weight.sum(1)


def _that_hold_still(inputs: modes.ModeInputs, film: priors.Film, viewmats: Tensor, masks: np.ndarray) -> PointCloud:
    """The start points that hold still.

    Points may have been measured at one time: those of a moving thing lie under a mask then, and at other times the
    frames show something else in their place, in colour or, where it is known, in depth.
    """
    points = inputs.points
    assert points is not None  # the caller has looked
    count = len(points)
    masked, open_, alike = np.zeros(count), np.zeros(count), np.zeros(count)
    colors = points.rgb.numpy()
    for t in range(0, len(film), max(1, len(film) // 24)):
        local = (points.xyz.float() @ viewmats[t, :3, :3].T + viewmats[t, :3, 3]).numpy()
        K, z = film.Ks[t], local[:, 2]
        uv = local[:, :2] / np.maximum(z, 1e-6)[:, None] * [K[0, 0], K[1, 1]] + [K[0, 2], K[1, 2]]
        inside = (z > 1e-3) & (uv >= 0).all(1) & (uv < film.size).all(1)
        col, row = (np.where(inside, uv[:, k], 0).astype(int) for k in (0, 1))
        under = masks[t][row, col]
        masked += inside & under
        open_ += inside & ~under
        same = np.abs(film.images[t][row, col] / 255.0 - colors).max(1) < 0.15
        if film.depth is not None:
            there = film.depth[t][row, col] * inputs.frame.scale
            same = np.where(there > 0, there < 1.03 * z, same)
        alike += inside & ~under & same
    still = (masked == 0) | (alike > 0.5 * open_)
    keep = torch.from_numpy(still)
    return PointCloud(points.xyz[keep], points.rgb[keep])


class _Cover:
    """Points that hold still, growing key frame by key frame where no surface is yet."""

    def __init__(self, film: priors.Film, viewmats: Tensor):
        self.film, self.viewmats = film, viewmats
        self.xyz, self.rgb = torch.zeros(0, 3), torch.zeros(0, 3)

    def add(self, xyz: Tensor, rgb: Tensor) -> None:
        self.xyz, self.rgb = torch.cat([self.xyz, xyz]), torch.cat([self.rgb, rgb])

    def cloud(self, most: int, seed: int) -> PointCloud:
        keep = torch.randperm(len(self.xyz), generator=torch.Generator().manual_seed(seed))[:most].sort().values
        return PointCloud(self.xyz[keep], self.rgb[keep])

    def extend(self, t: int, mask: np.ndarray, depth: np.ndarray, most: int) -> None:
        """Take every other pixel of frame t in the mask, of known depth, that no point covers."""
        film, viewmat = self.film, self.viewmats[t]
        wanted = mask & (depth > 0) & ~self._covered(t, depth)
        wanted[::2], wanted[:, ::2] = False, False
        rows, cols = np.nonzero(wanted)
        if len(rows) > most:
            keep = np.random.default_rng(t).permutation(len(rows))[:most]
            rows, cols = rows[keep], cols[keep]
        z = torch.from_numpy(depth[rows, cols]).float()
        K = film.Ks[t]
        x = torch.from_numpy((cols + 0.5 - K[0, 2]) / K[0, 0]).float() * z
        y = torch.from_numpy((rows + 0.5 - K[1, 2]) / K[1, 1]).float() * z
        xyz = (torch.stack([x, y, z], 1) - viewmat[:3, 3]) @ viewmat[:3, :3]
        self.add(xyz, torch.from_numpy(film.images[t][rows, cols]).float() / 255.0)

    def _covered(self, t: int, depth: np.ndarray) -> np.ndarray:
        """Bool [H, W]: pixels near which a point lies at about the depth that is seen."""
        near = np.zeros(depth.shape, np.uint8)
        if not len(self.xyz):
            return near > 0
        uv, z = seen_points(self.xyz, self.viewmats[t], self.film, t)
        rows, cols = uv[:, 1].astype(int), uv[:, 0].astype(int)
        like = np.abs(z - depth[rows, cols]) < 0.05 * z
        near[rows[like], cols[like]] = 1
        return opencv().dilate(near, np.ones((2 * COVERED + 1,) * 2, np.uint8)) > 0


def follow(nodes: Nodes, points: Tensor, t: int, count: int) -> Tensor:
    """[N, K] nodes that points [N, 3] of frame t follow: near in place, then near in the path that this gives."""
    count = min(count, len(nodes))
    place = nodes.positions[:, t]
    ids = torch.cat([torch.cdist(part, place).topk(count, largest=False).indices for part in points.split(4096)])
    some = sample_times(nodes.positions.shape[1])
    motions = nodes.frames()
    weights = weights_of(nodes, points, t, ids)
    back = dualquat.inverse(dualquat.blend(motions[ids, t], weights))
    rest = dualquat.apply(back, points)
    there = torch.stack([dualquat.apply(dualquat.blend(motions[ids, s], weights), rest) for s in some], dim=1)
    return neighbours(nodes.positions[:, some], there, count)


def weights_of(nodes: Nodes, points: Tensor, t: int, ids: Tensor) -> Tensor:
    """[N, K] RBF weights of points [N, 3] in frame t towards the nodes ``ids``."""
    d2 = ((points[:, None] - nodes.positions[ids, t]) ** 2).sum(-1)
    return torch.softmax(-0.5 * d2 * (-2 * nodes.log_radii)[ids].exp(), dim=1)


def to_rest(nodes: Nodes, points: Tensor, t: int, ids: Tensor, weights: Tensor) -> Tensor:
    """Points [N, 3] of frame t, which follow the nodes ``ids``, in the rest frame."""
    return dualquat.apply(dualquat.inverse(dualquat.blend(nodes.frames()[ids, t], weights)), points)


def _without_film(inputs: modes.ModeInputs, film: priors.Film) -> Start:
    """No film (several cameras at once, jumps, nothing that moves): everything may move, by nodes still at rest."""
    cloud = start_points(inputs.config, inputs.cameras, inputs.points)
    count = min(inputs.config.dynamic.nodes, len(cloud))
    centres = _far_apart(cloud.xyz.float(), count)
    times = torch.tensor(np.unique(film.times), dtype=torch.float32)
    positions = centres[:, None].repeat(1, len(times), 1)
    quats = torch.zeros(count, len(times), 4)
    quats[..., 0] = 1
    nodes = Nodes(times, positions, quats, torch.zeros(count))
    nodes.log_radii = node_radii(nodes)
    moving = PointCloud(cloud.xyz.float(), cloud.rgb.float())
    ids = follow(nodes, moving.xyz, 0, inputs.config.dynamic.follow)
    return Start(None, moving, nodes, None, ids, weights_of(nodes, moving.xyz, 0, ids))


def _far_apart(xyz: Tensor, count: int) -> Tensor:
    """``count`` of the points, far from each other."""
    return xyz[spread(xyz[:, None], torch.ones(len(xyz)), count)]
