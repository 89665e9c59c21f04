"""Pictures of motion: trails, what moves; strips over time for the report."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from featuresplat.io import html
from featuresplat.io.colormap import colormap
from featuresplat.io.images import to_bytes

if TYPE_CHECKING:
    from featuresplat.scene import RenderRequest, Scene
    from featuresplat.types import Cameras

KINDS = ("trails", "motion")
"""What can be rendered beside colours: where things came from, and how fast they are."""
TRAILS, TAIL, POINTS = 120, 0.2, 10
"""How many trails, how long (of the whole time), in how many pieces."""
STEP = 0.02
"""Time over which speed is measured."""
SHOWN = 5
"""Times in the report."""


@torch.no_grad()
def picture(scene: Scene, cameras: Cameras, kind: str, request: RenderRequest) -> Tensor:
    """[C, H, W, 3] in 0..1.

    ``trails``: the render with lines from where its parts were a fifth of the time ago. ``motion``: speed as colours,
    dark where nothing moves, bright at the fastest of the scene.
    """
    paint = _trails if kind == "trails" else _speed
    return torch.cat([paint(scene, cameras[i], request) for i in range(len(cameras))])


def _time_of(camera: Cameras) -> float:
    return 0.0 if camera.times is None else float(camera.times[0])


def _trails(scene: Scene, camera: Cameras, request: RenderRequest) -> Tensor:
    rgb = scene.splat(camera, replace(request, features=None)).rgb
    assert rgb is not None  # scenes have colours
    time = _time_of(camera)
    rows = travellers(scene)
    past = torch.linspace(max(0.0, time - TAIL), time, POINTS).tolist()
    some = scene.rows(rows)
    places = torch.stack([some.at(t).means for t in past], dim=1)  # [R, POINTS, 3]
    uv, front = project(places, camera)
    image = Image.fromarray(to_bytes(rgb[0].clamp(0, 1)).cpu().numpy())
    draw = ImageDraw.Draw(image)
    colors = colormap(torch.linspace(0.25, 1.0, POINTS)).cpu().numpy()
    for path, seen in zip(uv, front, strict=True):
        if float(np.abs(path[-1] - path[0]).max()) < 1.0:
            continue
        for k in range(POINTS - 1):
            if seen[k] and seen[k + 1]:
                draw.line([tuple(path[k]), tuple(path[k + 1])], fill=tuple(int(c) for c in colors[k + 1]), width=1)
    return torch.from_numpy(np.asarray(image).copy()).float()[None] / 255


_known: dict[int, tuple[weakref.ref, Tensor]] = {}


def travellers(scene: Scene) -> Tensor:
    """Indices of Gaussians that show and move, spread over what moves; none in a scene that holds still.

    Remembered as long as the scene lives: a film of trails asks for every picture.
    """
    key = id(scene)
    found = _known.get(key)
    if found is None or found[0]() is not scene:
        found = _known[key] = (weakref.ref(scene, lambda _: _known.pop(key, None)), _travellers(scene))
    return found[1]


def _travellers(scene: Scene) -> Tensor:
    g = scene.at(0.5)
    way = sum(
        ((scene.at(t).means - g.means).norm(dim=1) for t in (0.0, 0.25, 0.75, 1.0)), torch.zeros(len(g)).to(g.means)
    )
    reach = float((g.means - g.means.median(dim=0).values).norm(dim=1).median())
    rows = ((way > 0.02 * reach) & (g.opacities > 0.3)).nonzero()[:, 0]
    if len(rows) <= TRAILS:
        return rows
    chosen, distance = [0], torch.full((len(rows),), torch.inf).to(g.means)
    for _ in range(TRAILS - 1):
        distance = torch.minimum(distance, (g.means[rows] - g.means[rows[chosen[-1]]]).norm(dim=1))
        chosen.append(int(distance.argmax()))
    return rows[chosen]


def project(points: Tensor, camera: Cameras) -> tuple[np.ndarray, np.ndarray]:
    """Pixels [..., 2] of world points [..., 3], and which are in front."""
    view, K = camera.viewmats[0].to(points), camera.Ks[0].to(points)
    local = points @ view[:3, :3].T + view[:3, 3]
    z = local[..., 2]
    uv = local[..., :2] / z.clamp_min(1e-6)[..., None] * torch.stack([K[0, 0], K[1, 1]]) + K[:2, 2]
    return uv.cpu().numpy(), (z > 1e-6).cpu().numpy()


def _speed(scene: Scene, camera: Cameras, request: RenderRequest) -> Tensor:
    time = _time_of(camera)
    way = (scene.at(min(time + STEP, 1.0)).means - scene.at(max(time - STEP, 0.0)).means).norm(dim=1)
    shown = way[scene.gaussians.opacities > 0.1]
    fastest = float(shown.quantile(0.995)) if len(shown) else 0.0
    out = scene.splat(camera, replace(request, features=(way / max(fastest, 1e-9)).clamp(0, 1)[:, None]))
    assert out.features is not None  # asked for
    return colormap(out.features[0, ..., 0].clamp(0, 1)).float()[None] / 255


def report(scene: Scene, dataset: Any = None) -> list[tuple[str, str]]:
    """A section for the report: held-out (or training) views over time, as rendered, with trails, and what moves."""
    from featuresplat.scene import RenderRequest

    views = scene.part("test") if scene.names("test") else scene.part("train")
    if views.times is None or not len(views):
        return []
    order = sorted(range(len(views)), key=lambda i: float(views.times[i]))  # pyright: ignore[reportOptionalSubscript]
    chosen = [order[round(k * (len(order) - 1) / max(SHOWN - 1, 1))] for k in range(min(SHOWN, len(order)))]
    parts = [html.note("From left to right: the photograph, the render at its time, trails of the last fifth, speed.")]
    for i in chosen:
        view = views[i]
        out = scene.render(view, exposure=True)
        assert out.rgb is not None  # scenes have colours
        pictures = [(to_bytes(out.rgb[0].clamp(0, 1)), f"Time {_time_of(view):.2f}")]
        if dataset is not None:
            place = list(dataset.cameras.names).index(view.names[0])
            pictures.insert(0, (dataset.image(place), "Photograph"))
        for kind in KINDS:
            pictures.append((to_bytes(picture(scene, view, kind, RenderRequest())[0]), kind.capitalize()))
        parts.append(html.row(str(view.names[0]) or "a view", pictures))
    return [("Over time", "".join(parts))]
