"""How near materials and relit pictures come to the truth, where a data set has it.

Over the test views, at the size that was trained, pixels of objects alone and none at their edges:

- ``albedo_psnr``: linear base colour, after one factor per channel: the least-squares one over all test views. PSNR of
  each view, mean.
- ``normal_degrees``: mean angle over all pixels. ``roughness_error``, ``metallic_error``: mean absolute difference.
- ``relit``: for each other light, linear radiance, after one factor per channel and light, least squares over all
  views (but for what is clipped where the truth has 8 bits); then the sRGB curve, clipped; PSNR of each view, mean.

An image says nothing about the brightness of albedo and light apart: hence the factors. TensoIR and those after it use
the median of the ratios over all pixels for the albedo and put that factor into the relit render too, over a white
background that counts; Stanford-ORB fits a factor per image. Figures of one protocol are not those of another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.datasets._truths import Read, RelitView, ViewTruth, truths_of
from featuresplat.io.images import resize_area
from featuresplat.metrics import psnr
from featuresplat.modes import _inverse_scene as finished
from featuresplat.scene import RenderRequest, Scene
from featuresplat.shading import tone
from featuresplat.shading.light import Light
from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset

PROTOCOL = (
    "pixels of objects; albedo (linear) and relit radiance (then sRGB, clipped) after one least-squares factor per "
    "channel over all test views"
)
CLIPPED = 0.98
KINDS = ("albedo", "normal", "roughness", "metallic")


@torch.no_grad()
def measure(scene: Scene, dataset: Dataset, backend: str | None = None) -> dict[str, Any] | None:
    """What `metrics.json` says under ``inverse``; None where the data set has no truth.

    Raises:
        FeaturesplatError: truth that is damaged.
    """
    truths = truths_of(dataset)
    if truths is None:
        return None
    out: dict[str, Any] = {"protocol": PROTOCOL}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {k: [] for k in KINDS}
    for i in dataset.test:
        camera = dataset.cameras[i]
        truth = truths.view(camera.names[0])
        if truth is not None:
            _compare(scene, camera, truth, pairs, backend)
    out |= _of_materials({k: v for k, v in pairs.items() if v})
    own = {name: k for k, name in enumerate(dataset.cameras.names)}
    relit = {}
    for light, views in truths.relit.items():
        found = _relit(scene, views, dataset, own, backend)
        if found:
            relit[light] = found
    if relit:
        out["relit"] = relit
        out["relit_psnr"] = sum(r["psnr"] for r in relit.values()) / len(relit)
    return out if len(out) > 1 else None


def factor(render: Tensor, truth: Tensor, clipped: bool = False) -> Tensor:
    """[3] by which the channels of ``render`` [P, 3] come nearest to ``truth`` [P, 3], in the least-squares sense.

    Where the truth is ``clipped`` at 1, what is there says only that it was brighter, and is left out.
    """
    if clipped:
        render = render * (truth < CLIPPED)
    return (render * truth).sum(0) / render.square().sum(0).clamp_min(1e-12)


def _compare(
    scene: Scene, camera: Cameras, truth: ViewTruth, pairs: dict[str, list[tuple[Tensor, Tensor]]], backend: str | None
) -> None:
    """Add a view's pixels of objects to ``pairs``: (ours [P, C], true [P, C])."""
    objects = _shrunk_mask(truth.objects, camera)
    if not bool(objects.any()):
        return
    request = RenderRequest(linear=True, backend=backend)
    for kind in KINDS:
        read: Read | None = getattr(truth, kind)
        if read is not None:
            ours = finished.picture(scene, camera, kind, request)[0].cpu()
            true = _shrunk(read(), camera)
            pairs[kind].append((ours[objects], true[objects]))


def _of_materials(pairs: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    joined = {k: [torch.cat(side) for side in zip(*v, strict=True)] for k, v in pairs.items()}
    if joined:
        out["pixels"] = len(next(iter(joined.values()))[0])
    if "albedo" in joined:
        scale = factor(joined["albedo"][0], joined["albedo"][1])
        out["albedo_psnr"] = _mean([psnr((a * scale)[None], b[None]) for a, b in pairs["albedo"]])
        out["albedo_factor"] = scale.tolist()
    if "normal" in joined:
        ours, true = (F.normalize(v, dim=-1) for v in joined["normal"])
        cosine = (ours * true).sum(-1).clamp(-1, 1)
        out["normal_degrees"] = float(torch.rad2deg(cosine.acos()).mean())
    for kind in ("roughness", "metallic"):
        if kind in joined:
            out[f"{kind}_error"] = float((joined[kind][0] - joined[kind][1]).abs().mean())
    return out


def _relit(
    scene: Scene, views: list[RelitView], dataset: Dataset, own: dict[str, int], backend: str | None
) -> dict[str, Any] | None:
    """PSNR under one other light; maps that differ from view to view are each read once."""
    size = int(scene.mode_state["light"].shape[1])
    stems = {name.rsplit(".", 1)[0]: k for name, k in own.items()}
    ours, true, reader, light = [], [], None, None
    for view in views:
        place = own.get(view.name, stems.get(view.name))
        camera = view.camera if view.camera is not None else None if place is None else dataset.cameras[place]
        if camera is None:
            continue
        if view.camera is not None:
            camera = _as_trained(camera, dataset)
        if view.environment is not reader:
            reader, light = view.environment, Light.of(view.environment(), size)
        objects = _shrunk_mask(view.objects, camera)
        if bool(objects.any()):
            rgb = scene.render(camera, light=light, linear=True, backend=backend).rgb
            assert rgb is not None  # scenes have colours
            ours.append(rgb[0].cpu()[objects])
            true.append(_shrunk(view.image(), camera)[objects])
    if not ours:
        return None
    scale = factor(torch.cat(ours), torch.cat(true), any(v.clipped for v in views))
    scores = [psnr(tone.display(r * scale)[None], tone.display(t)[None]) for r, t in zip(ours, true, strict=True)]
    return {"psnr": _mean(scores), "views": len(scores), "factor": scale.tolist()}


def _as_trained(camera: Cameras, dataset: Dataset) -> Cameras:
    """A camera from outside of the photographs, reduced as they were."""
    (full, _), (now, _) = dataset.full_sizes[0], dataset.cameras.sizes[0]
    share = now / full
    width, height = camera.sizes[0]
    return camera.resized([max(1, round(width * share))], [max(1, round(height * share))])


def _shrunk(values: Tensor, camera: Cameras) -> Tensor:
    """[H, W, C] means over the camera's pixels."""
    return resize_area(values.float(), *camera.sizes[0])


def _shrunk_mask(read: Read, camera: Cameras) -> Tensor:
    """bool [H, W]: the camera's pixels that lie in the mask wholly."""
    return resize_area(read().float(), *camera.sizes[0]) > 0.999


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
