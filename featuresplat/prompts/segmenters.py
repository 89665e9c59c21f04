"""What cuts an object out of one view, and how views vote on it.

A segmenter is called with a camera and the prompt in its pixels, and gives the probability of each pixel. SAM's decoder
works on features rendered from a field of teacher ``sam``; GrabCut on the photograph, or on the render.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from featuresplat import raster
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.surface import smaller, solid, splat, surface
from featuresplat.types import Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

PIXELS = 60_000
Photograph = Callable[[str], Tensor | None]


class Segmenter(Protocol):
    """[H, W] probability in 0..1 of a prompt in the pixels of ``camera``: points [P, 2] with labels [P] 1 or 0, and a
    box [4] or None.
    """

    def __call__(self, camera: Cameras, points: Tensor, labels: Tensor, box: Tensor | None) -> Tensor: ...


def of_sam(scene: Scene, gaussians: Gaussians) -> Segmenter | None:
    """SAM's decoder on the features of the scene's last field of teacher ``sam``; None where there is no such field or
    its weights are not on this machine.
    """
    field = next((f for f in reversed(scene.fields.values()) if f.teacher == "sam"), None)
    if field is None:
        return None
    settings = field.info.get("teacher", {})
    teacher: Any = _sam(str(settings.get("model", "")), str(settings.get("weights", "")))
    if teacher is None:
        return None

    def segment(camera: Cameras, points: Tensor, labels: Tensor, box: Tensor | None) -> Tensor:
        seen = splat(gaussians, camera, field.codes, scene.raster_settings())
        features = field.decode(seen[..., :-1] / seen[..., -1:].clamp_min(1e-6)).cpu()
        given = (points, labels) if len(points) else (None, None)
        return teacher.predict(features, (camera.height, camera.width), *given, box)

    return segment


@lru_cache(maxsize=1)
def _sam(model: str, weights: str):
    """The teacher, if that needs no download."""
    from featuresplat.config_fields import TeacherConfig
    from featuresplat.teachers import make_teacher

    if not weights:
        from featuresplat.teachers import sam

        name = sam._FILES.get(model or sam.DEFAULT_MODEL, "")
        if not (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file():
            return None
    elif not Path(weights).is_file():
        return None
    try:
        return make_teacher("sam", TeacherConfig(name="sam", model=model, path=Path(weights) if weights else None))
    except FeaturesplatError:
        return None


def of_grabcut(scene: Scene, gaussians: Gaussians, photograph: Photograph | None = None) -> Segmenter | None:
    """GrabCut; None where its packages are not installed (extra ``segments``)."""
    from featuresplat.teachers import _segments

    if any(importlib.util.find_spec(package) is None for package in ("cv2", "skimage")):
        return None

    def segment(camera: Cameras, points: Tensor, labels: Tensor, box: Tensor | None) -> Tensor:
        image = None if photograph is None or not camera.names[0] else photograph(camera.names[0])
        if image is None:
            seen = splat(gaussians, camera, gaussians.colors, scene.raster_settings())
            image = (seen[..., :-1] / seen[..., -1:].clamp_min(1e-6)).clamp(0, 1)
        planes = image.cpu().float().permute(2, 0, 1)[None]
        sized = torch.nn.functional.interpolate(planes, (camera.height, camera.width), mode="area")[0].permute(1, 2, 0)
        given = (points, labels) if len(points) else (None, None)
        return _segments.segment_from_prompt(sized, *given, box)

    return segment


def vote(
    scene: Scene,
    gaussians: Gaussians,
    camera: Cameras,
    places: np.ndarray,
    labels: list[int],
    box: tuple[float, float, float, float] | None,
    segment: Segmenter,
    views: int,
) -> Tensor:
    """[N] scores in 0..1: the share of what views see of each Gaussian that a segmenter calls part of the object.

    Args:
        camera: the view that the prompt was given in; it votes first.
        places: [K, 3] the prompt's points in the scene, with labels [K].
        box: in the pixels of ``camera``. In other views the box around what the first view found takes its place.
        views: how many of the scene's other views vote: the nearest that see the points.
    """
    first = smaller(camera, PIXELS)
    scale = first.width / camera.width, first.height / camera.height
    sized = None if box is None else torch.tensor([box[k] * scale[k % 2] for k in range(4)])
    settings = scene.raster_settings()
    sums, weights = _cast(gaussians, first, places, labels, sized, segment, settings)
    own = sums / weights.clamp_min(1e-9)
    found = gaussians[(own > 0.5) & (weights > 0.05)]
    asked = places[np.array(labels, bool)] if 1 in labels else found.means.double().cpu().numpy()[:1]
    for i in _nearest(scene, gaussians, camera, asked, views):
        other = smaller(scene.cameras[i], PIXELS)
        around = None if box is None else _around(found, other)
        if box is not None and around is None:
            continue
        more = _cast(gaussians, other, places, labels, around, segment, settings)
        sums, weights = sums + more[0], weights + more[1]
    return torch.where(weights > 1e-3, sums / weights.clamp_min(1e-9), 0.0)


def _cast(
    gaussians: Gaussians,
    camera: Cameras,
    places: np.ndarray,
    labels: list[int],
    box: Tensor | None,
    segment: Segmenter,
    settings: raster.RasterSettings,
) -> tuple[Tensor, Tensor]:
    """One view's vote: sums and weights [N], 0 and 0 where no point of the prompt is to be seen in it."""
    seen = surface(gaussians, camera, settings)
    points, kinds = [], []
    for place, label in zip(places, labels, strict=True):
        pixel, depth = project(place[None], camera)
        x, y = pixel[0]
        if 0 <= x < camera.width and 0 <= y < camera.height and depth[0] > 0:
            met = seen.depth[int(y), int(x)]
            if met <= 0 or depth[0] <= 1.05 * met:
                points.append((x, y))
                kinds.append(label)
    nothing = torch.zeros(len(gaussians), device=gaussians.means.device)
    if box is None and 1 not in kinds:
        return nothing, nothing
    marks = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
    probability = segment(camera, marks, torch.tensor(kinds, dtype=torch.int64), box)
    firm = solid(gaussians, camera, settings=settings).nonzero()[:, 0]
    some = gaussians[firm]
    viewmats, Ks = camera.viewmats.to(some.means), camera.Ks.to(some.means)
    maps = probability.to(some.means)[None, :, :, None].contiguous()
    sums, weights = raster.lift(
        some.means, some.quats, some.scales, some.opacities, viewmats, Ks, camera.width, camera.height, maps,
        settings=settings,
    )  # fmt: skip
    return nothing.index_copy(0, firm, sums[:, 0]), nothing.index_copy(0, firm, weights)


def project(places: np.ndarray, camera: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [K, 2] and camera z [K] of world points [K, 3]."""
    pose, K = camera.viewmats[0].double().cpu().numpy(), camera.Ks[0].double().cpu().numpy()
    local = places @ pose[:3, :3].T + pose[:3, 3]
    z = np.where(np.abs(local[:, 2]) < 1e-9, 1e-9, local[:, 2])
    return np.stack([local[:, 0] / z * K[0, 0] + K[0, 2], local[:, 1] / z * K[1, 1] + K[1, 2]], 1), local[:, 2]


def _nearest(scene: Scene, gaussians: Gaussians, camera: Cameras, asked: np.ndarray, views: int) -> list[int]:
    """The scene's views from which the first point is to be seen, nearest first, spread over all of them."""
    if not len(asked):
        return []
    here = camera.positions[0].double().cpu().numpy()
    order = np.argsort(np.linalg.norm(scene.cameras.positions.double().cpu().numpy() - here, axis=1), kind="stable")
    out = []
    for i in order.tolist():
        other = scene.cameras[i]
        pixel, depth = project(asked[:1], other)
        inside = 0 <= pixel[0, 0] < other.width and 0 <= pixel[0, 1] < other.height
        if inside and depth[0] > 0:
            out.append(i)
    picks = np.unique(np.linspace(0, len(out) - 1, min(views, len(out))).round().astype(int)) if out else []
    return [out[int(k)] for k in picks]


def _around(some: Gaussians, camera: Cameras) -> Tensor | None:
    """[4] the box around most of some Gaussians in a view, or None where they are not in it."""
    if not len(some):
        return None
    pixels, depth = project(some.means.detach().double().cpu().numpy(), camera)
    pixels = pixels[depth > 0]
    if len(pixels) < 0.9 * len(some):
        return None
    # Gaussians reach beyond their centres, far beyond where few of them make up an object.
    reach = 2.5 * float(some.scales.median()) * float(camera.Ks[0, 0, 0]) / float(np.median(depth[depth > 0]))
    low, high = np.quantile(pixels, 0.02, axis=0) - 2 - reach, np.quantile(pixels, 0.98, axis=0) + 2 + reach
    low, high = low.clip(0, [camera.width - 1, camera.height - 1]), high.clip(1, [camera.width, camera.height])
    return torch.from_numpy(np.concatenate([low, high])) if (high - low > 4).all() else None
