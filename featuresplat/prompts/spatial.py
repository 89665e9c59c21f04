"""Points, a box or a brush stroke in one view -> a selection of Gaussians, seen from everywhere.

Coordinates are pixels of the camera that is given, centres at +0.5; a camera for another image size is
``cameras.resized(width, height)``.

A point is carried into the scene by the depth at which it meets the surface. What it means is looked up among the
scene's pieces (`pieces`), which need no feature field and no network. Where that leaves it open, because a piece is
most of the scene or a box cuts through it, several views are segmented and vote (`segmenters`); without the packages
for that, the part that hangs together best around the points is found on the graph of Gaussians (`regions`). Where the
scene has a field of SAM and its weights are at hand, SAM's decoder on rendered features does it all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat import raster
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import affinity, regions, segmenters
from featuresplat.prompts.pieces import Pieces, pieces_of
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.surface import met, smaller, snapshot, splat, surface, unproject
from featuresplat.types import Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""
PIXELS = 120_000
"""Prompts are looked at in a view of at most about so many pixels."""
_MOST_OF_SCENE = 0.6  # a piece with more of the surface than this says nothing about a point in it
_IN_BOX = 0.7  # a piece with at least this share of its pixels in a box is meant by it
_BOX_FITS = 0.4  # the least overlap of a box with the outline of what it means


@dataclass(frozen=True)
class Prompted:
    """What a prompt in one view means.

    Attributes:
        selection: the Gaussians.
        scores: [N] in 0..1, how surely each Gaussian belongs; the selection is what lies above 0.5, cleaned up.
        points: [K, 3] where the prompt's points lie in the scene.
        masks: camera -> bool [H, W], the object in any view.
    """

    selection: Selection
    scores: Tensor
    points: Tensor
    masks: Callable[[Cameras], Tensor]


@dataclass(frozen=True)
class _Prompt:
    """A prompt in the pixels of ``camera``; places [K, 3] are where its points meet the surface."""

    camera: Cameras
    points: list[tuple[float, float]]
    labels: list[int]
    box: Box | None
    places: np.ndarray

    def at(self, label: int) -> np.ndarray:
        """float64 [K, 3] places of the points of one label."""
        return self.places[np.array(self.labels, np.int64) == label]

    def all_points(self) -> tuple[np.ndarray, list[int]]:
        """Places [K, 3] and labels of all points."""
        return np.concatenate([self.at(1), self.at(0)]), [1] * self.labels.count(1) + [0] * self.labels.count(0)


def select_points(
    scene: Scene,
    camera: Cameras,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] | None = None,
    box: Box | None = None,
    *,
    photograph: Callable[[str], Tensor | None] | None = None,
    views: int = 8,
) -> Prompted:
    """The object under points, or in a box, of one view; carried through the scene to all views.

    Args:
        scene: with or without feature fields.
        camera: one camera.
        points: x, y each.
        labels: 1 = on the object, 0 = not on it, one per point; default all 1.
        box: around the object.
        photograph: image name -> [H, W, 3] in 0..1 or None: where views have to be segmented, those whose photograph
            is given are on it, others on their render.
        views: how many of the scene's own views vote then.

    Raises:
        FeaturesplatError: no prompt, a point outside the image or where the scene is empty, an empty box, labels
            that do not fit the points.
    """
    gaussians = snapshot(scene, camera)
    prompt = _looked_at(gaussians, scene, camera, points, labels, box)
    sam = segmenters.of_sam(scene, gaussians)
    scores = None if sam else _by_pieces(scene, gaussians, prompt, pieces_of(scene, gaussians))
    if scores is not None:
        selection = Selection(scores > 0.5)  # no cleaning: what is inside an object is connected with nothing
    else:
        scores = None if sam else _by_affinity(scene, gaussians, prompt)
        if scores is None and (segment := sam or segmenters.of_grabcut(scene, gaussians, photograph)):
            places, kinds = prompt.all_points()
            scores = segmenters.vote(scene, gaussians, prompt.camera, places, kinds, prompt.box, segment, views)
            if prompt.box is not None and _fit(scene, gaussians, prompt, scores) < _BOX_FITS:
                scores = None  # colours do not tell the object from what is around it
        if scores is None:
            scores = _by_region(scene, gaussians, prompt)
        selection = Selection(scores > 0.5).cleanup(scene)
    return _prompted(scene, selection, scores, prompt.at(1))


def brush(scene: Scene, camera: Cameras, mask: Tensor) -> Prompted:
    """The Gaussians that show under a painted mask [H, W] in one view: nothing behind them, nothing beside.

    Raises:
        FeaturesplatError: a mask of another size, or an empty one.
    """
    camera = _one(camera)
    if tuple(mask.shape) != (camera.height, camera.width):
        got = f"{tuple(mask.shape)}, the view {(camera.height, camera.width)}"
        raise FeaturesplatError(f"brush: the mask is of size {got}", "Paint in the pixels of the view.")
    if not bool(mask.any()):
        raise FeaturesplatError("brush: the mask is empty", "Paint over what is to be selected.")
    gaussians = snapshot(scene, camera)
    view = smaller(camera, PIXELS)
    small = torch.nn.functional.interpolate(mask[None, None].float(), (view.height, view.width), mode="area")[0, 0]
    scores = _under(gaussians, scene, view, small.to(gaussians.means.device))
    seen = surface(gaussians, view, scene.raster_settings())
    places = unproject(seen.depth, view)[(small.cpu().numpy() > 0.5) & (seen.ids >= 0)]
    selection = Selection(scores > 0.5)
    if selection.count == 0:
        raise FeaturesplatError("brush: the scene is empty there", "Paint where something is to be seen.")
    return _prompted(scene, selection, scores, places.mean(0, keepdims=True) if len(places) else places)


def mask_of(scene: Scene, camera: Cameras, selection: Selection | Tensor) -> Tensor:
    """bool [H, W]: where a selection, or scores [N], makes up at least half of what one camera sees."""
    return masks_of(scene, camera, [selection])[0]


def masks_of(scene: Scene, camera: Cameras, selections: Sequence[Selection | Tensor]) -> Tensor:
    """bool [P, H, W]: `mask_of` of P selections, splatted together."""
    camera = _one(camera)
    gaussians = snapshot(scene, camera)
    columns = [s.mask if isinstance(s, Selection) else s for s in selections]
    for values in columns:
        if len(values) != len(gaussians):
            got = f"{len(values)} Gaussians, the scene {len(gaussians)}"
            raise FeaturesplatError(f"selection: is of {got}", "Select again on this scene.")
    together = torch.stack([values.to(gaussians.means) for values in columns], dim=1)
    seen = splat(gaussians, camera, together, scene.raster_settings())
    shares, weight = seen[..., :-1], seen[..., -1:]
    return ((shares >= 0.5 * weight) & (weight > 0.5)).permute(2, 0, 1)


def pick(scene: Scene, camera: Cameras, x: float, y: float) -> Tensor:
    """[3] the point of the scene's surface under a pixel, world frame.

    Raises:
        FeaturesplatError: the pixel is outside the image, or nothing is there.
    """
    prompt = _looked_at(snapshot(scene, camera), scene, camera, [(x, y)], None, None)
    return torch.from_numpy(prompt.at(1)[0]).to(scene.gaussians.means)


def _prompted(scene: Scene, selection: Selection, scores: Tensor, places: np.ndarray) -> Prompted:
    points = torch.from_numpy(places).to(scene.gaussians.means)
    return Prompted(selection, scores, points, lambda camera: mask_of(scene, camera, selection))


def _one(camera: Cameras) -> Cameras:
    if len(camera) != 1:
        raise FeaturesplatError(f"camera: expected one, got {len(camera)}", "Index one first: cameras[i].")
    return camera


def _looked_at(
    gaussians: Gaussians,
    scene: Scene,
    camera: Cameras,
    points: Sequence[Sequence[float]],
    labels: Sequence[int] | None,
    box: Box | None,
) -> _Prompt:
    """The prompt, checked, in the pixels of a view of moderate size."""
    camera = _one(camera)
    width, height = camera.width, camera.height
    given = [(float(p[0]), float(p[1])) for p in points]
    kinds = [1] * len(given) if labels is None else [int(k) for k in labels]
    if len(kinds) != len(given) or any(k not in (0, 1) for k in kinds):
        raise FeaturesplatError(
            f"labels: expected 0 or 1 for each of {len(given)} points, got {kinds}", "1 = on the object, 0 = not."
        )
    for x, y in given:
        if not (0 <= x < width and 0 <= y < height):
            raise FeaturesplatError(
                f"point: ({x:g}, {y:g}) is outside the image of {width} x {height} pixels",
                "Give pixels of the photograph, x to the right and y down.",
            )
    if box is not None:
        box = _checked_box(box, width, height)
    if box is None and 1 not in kinds:
        raise FeaturesplatError("prompt: no point on the object and no box", "Give one or the other.")
    view = smaller(camera, PIXELS)
    sx, sy = view.width / width, view.height / height
    scaled = [(min(x * sx, view.width - 1e-6), min(y * sy, view.height - 1e-6)) for x, y in given]
    depths, places = np.zeros(0), np.zeros((0, 3))
    if scaled:
        depths, places = met(gaussians, view, np.array(scaled), scene.raster_settings())
    for depth, (px, py) in zip(depths, given, strict=True):
        if depth <= 0:
            raise FeaturesplatError(f"point: the scene is empty at ({px:g}, {py:g})", "Point at something.")
    small = None if box is None else (box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy)
    return _Prompt(view, scaled, kinds, small, places)


def _checked_box(box: Sequence[float], width: int, height: int) -> Box:
    x0, y0, x1, y1 = (float(v) for v in box)
    x0, x1, y0, y1 = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    if not (x1 - x0 >= 2 and y1 - y0 >= 2):
        raise FeaturesplatError(
            f"box: {tuple(float(v) for v in box)} covers nothing of the image of {width} x {height} pixels",
            "Give two opposite corners: x0 y0 x1 y1.",
        )
    return x0, y0, x1, y1


def _by_pieces(scene: Scene, gaussians: Gaussians, prompt: _Prompt, pieces: Pieces) -> Tensor | None:
    """[N] scores by the scene's pieces; None where these leave it open."""
    count = pieces.scores.shape[1]
    onehot = torch.nn.functional.one_hot(pieces.ids, count).float()
    seen, rest = splat(gaussians, prompt.camera, onehot, scene.raster_settings()).cpu(), count - 1
    shown = torch.where(seen[..., -1] > 0.1, seen[..., :-1].argmax(-1), rest).numpy()  # where nothing is: the rest
    wanted, unwanted = ({_around(shown, p, count) for p in _of(prompt, label)} for label in (1, 0))
    total = int(pieces.sizes.sum())

    def says_something(k: int) -> bool:
        return (k != rest and int(pieces.sizes[k]) < _MOST_OF_SCENE * total) or (k == 0 and pieces.found)

    if prompt.box is not None:
        boxed = _in_box(shown, prompt.box, count, rest)
        if boxed is None:
            return None
        chosen = (boxed | wanted) - unwanted
    else:
        chosen = wanted
    if not chosen or chosen & unwanted or not all(says_something(k) for k in chosen):
        return None
    inside = torch.zeros(count, dtype=torch.bool, device=pieces.scores.device)
    inside[list(chosen)] = True
    mine = pieces.scores[:, inside].amax(1)
    others = pieces.scores[:, ~inside].amax(1) if bool((~inside).any()) else torch.zeros_like(mine)
    return mine / (mine + others).clamp_min(1e-12)


def _of(prompt: _Prompt, label: int) -> list[tuple[float, float]]:
    return [p for p, given in zip(prompt.points, prompt.labels, strict=True) if given == label]


def _around(shown: np.ndarray, point: tuple[float, float], count: int) -> int:
    """The piece that most of the 3 x 3 pixels around a point show."""
    x, y = int(point[0]), int(point[1])
    patch = shown[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    votes = np.bincount(patch.ravel(), minlength=count)
    votes[shown[y, x]] += 2
    return int(votes.argmax())


def _in_box(shown: np.ndarray, box: Box, count: int, rest: int) -> set[int] | None:
    """The pieces that a box means: what lies in it, or the one piece that fills it; None where it fits neither."""
    inside = np.zeros(shown.shape, bool)
    x0, y0, x1, y1 = (round(v) for v in box)
    inside[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    pixels = np.bincount(shown.ravel(), minlength=count)
    within = np.bincount(shown[inside], minlength=count)
    large = within >= max(4.0, 0.01 * inside.sum())
    lying = {int(k) for k in np.flatnonzero(large & (within >= _IN_BOX * pixels)) if k not in (0, rest)}
    candidates = [lying] if lying else []
    candidates += [{int(k)} for k in np.flatnonzero(large) if k != rest]
    best, fit = None, _BOX_FITS
    for candidate in candidates:
        overlap = _overlap(np.isin(shown, list(candidate)), inside)
        if overlap > fit + (0.05 if best else 0.0):
            best, fit = candidate, overlap
    return best


def _fit(scene: Scene, gaussians: Gaussians, prompt: _Prompt, scores: Tensor) -> float:
    """How well what scores above one half fills the prompt's box, in 0..1."""
    assert prompt.box is not None
    seen = splat(gaussians, prompt.camera, (scores > 0.5).float()[:, None], scene.raster_settings()).cpu().numpy()
    shape, inside = (seen[..., 0] > 0.5 * seen[..., 1]) & (seen[..., 1] > 0.1), np.zeros(seen.shape[:2], bool)
    x0, y0, x1, y1 = (round(v) for v in prompt.box)
    inside[y0:y1, x0:x1] = True
    return _overlap(shape, inside) if shape.any() else 0.0


def _overlap(shape: np.ndarray, inside: np.ndarray) -> float:
    """Intersection over union of the box around most of a shape with a box."""
    rows, cols = shape.any(1).nonzero()[0], shape.any(0).nonzero()[0]
    around = np.zeros_like(inside)
    around[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] = True
    return float((around & inside).sum() / (around | inside).sum())


def _by_affinity(scene: Scene, gaussians: Gaussians, prompt: _Prompt) -> Tensor | None:
    """[N] scores by the scene's affinity field; None where it has none."""
    field = next((f for f in reversed(scene.fields.values()) if f.teacher == affinity.TEACHER), None)
    if field is None:
        return None
    wanted, unwanted = prompt.at(1), prompt.at(0)
    if not len(wanted):
        wanted = _middle(scene, gaussians, prompt)
    tree = KDTree(gaussians.means.detach().double().cpu().numpy())

    def near(places: np.ndarray) -> Tensor:
        """[N] the highest affinity with any of some places."""
        rows = [torch.from_numpy(np.asarray(tree.query(p, min(5, tree.n))[1]).reshape(-1)) for p in places]
        return torch.stack([affinity.alike(field, r.to(field.codes.device)) for r in rows]).amax(0)

    scores = near(wanted)
    if len(unwanted):
        scores = torch.where(near(unwanted) > scores, 0.0, scores)
    if prompt.box is not None:
        scores = torch.where(torch.from_numpy(_outside(gaussians, prompt.camera, prompt.box)), 0.0, scores.cpu())
    # Cosines above ALIKE mean one object; scores are in above one half.
    return (scores * (0.5 / affinity.ALIKE)).clamp(0, 1).to(gaussians.means.device)


def _by_region(scene: Scene, gaussians: Gaussians, prompt: _Prompt) -> Tensor:
    """[N] scores by what hangs together on the graph of Gaussians."""
    means = gaussians.means
    wanted, unwanted = prompt.at(1), prompt.at(0)
    outside = None
    if prompt.box is not None:
        outside = _outside(gaussians, prompt.camera, prompt.box)
        if not len(wanted):
            wanted = _middle(scene, gaussians, prompt)
    values = regions.grow(scene, gaussians, wanted, unwanted, outside)
    return values.to(means.device)


def _outside(gaussians: Gaussians, camera: Cameras, box: Box) -> np.ndarray:
    """bool [N]: not in the box as the camera sees it."""
    viewmat, K = camera.viewmats[0].to(gaussians.means), camera.Ks[0].to(gaussians.means)
    local = gaussians.means @ viewmat[:3, :3].T + viewmat[:3, 3]
    depth = local[:, 2].clamp_min(1e-9)
    x, y = local[:, 0] / depth * K[0, 0] + K[0, 2], local[:, 1] / depth * K[1, 1] + K[1, 2]
    inside = (local[:, 2] > 0) & (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])
    return (~inside).cpu().numpy()


def _middle(scene: Scene, gaussians: Gaussians, prompt: _Prompt) -> np.ndarray:
    """[K, 3] places in the middle third of the box, the near ones."""
    assert prompt.box is not None
    x0, y0, x1, y1 = prompt.box
    rows = np.linspace(y0 + (y1 - y0) / 3, y1 - (y1 - y0) / 3, 5)
    cols = np.linspace(x0 + (x1 - x0) / 3, x1 - (x1 - x0) / 3, 5)
    pixels = np.stack(np.meshgrid(cols, rows), -1).reshape(-1, 2)
    depth, places = met(gaussians, prompt.camera, pixels, scene.raster_settings())
    if not (depth > 0).any():
        raise FeaturesplatError("box: the scene is empty there", "Draw it around something.")
    return places[(depth > 0) & (depth <= np.median(depth[depth > 0]))]


def _under(gaussians: Gaussians, scene: Scene, view: Cameras, mask: Tensor) -> Tensor:
    """[N] share of what a view shows of each Gaussian that lies under a mask; 0 for what lies behind the surface."""
    settings = scene.raster_settings()
    maps = mask[None, :, :, None].float().contiguous()
    g = gaussians
    viewmats, Ks = view.viewmats.to(g.means), view.Ks.to(g.means)
    sums, weights = raster.lift(
        g.means, g.quats, g.scales, g.opacities, viewmats, Ks, view.width, view.height, maps, settings=settings
    )
    share = sums[:, 0] / weights.clamp_min(1e-9)
    seen = surface(g, view, settings)
    local = g.means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
    z = local[:, 2].clamp_min(1e-9)
    x = (local[:, 0] / z * Ks[0, 0, 0] + Ks[0, 0, 2]).long().clamp(0, view.width - 1)
    y = (local[:, 1] / z * Ks[0, 1, 1] + Ks[0, 1, 2]).long().clamp(0, view.height - 1)
    depth = torch.from_numpy(seen.depth).to(g.means)[y, x]
    at_surface = z <= 1.03 * depth + g.log_scales.amin(1).exp()
    met = torch.zeros_like(at_surface)
    met[torch.from_numpy(seen.ids[seen.ids >= 0]).to(met.device)] = True
    firm = torch.from_numpy(seen.solid).to(met.device)
    return torch.where((at_surface | met) & firm & (weights > 1e-3), share, 0.0)
