"""The radiance field of a scene of materials: the run it started from, in front of which the physical model is laid.

Surfels that lie where normals and reflections can be found by them show less detail than Gaussians that may lie
anywhere, behind a mirror for instance. So a finished scene keeps the Gaussians of the run it started from as its
radiance field, ``radiance.*`` of its state, and the progress of every surfel settles where the mixture with that field
explains the photographs best.

What is edited has no photograph: a surfel that is not, bit for bit, as it was when training ended speaks for itself
in the radiance, and what the field had near it is gone, as is the field near surfels that were taken away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat import raster
from featuresplat.exposure import EXPOSURES, transform
from featuresplat.modes import _inverse_pixels as px
from featuresplat.shading import tone
from featuresplat.types import Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset
    from featuresplat.modes._inverse_scene import Frame
    from featuresplat.scene import RenderRequest, Scene

PREFIX = "radiance."
VIEWS = 32
"""Most photographs that the progress settles by."""
FEW = 1e-3
"""Pull of the progress to 0, as a share of the mean squared difference of the two models."""
_ROWS = 1 << 16
_FIELDS: OrderedDict[tuple, tuple[tuple[Gaussians, Gaussians | None], object]] = OrderedDict()


def seals(g: Gaussians) -> Tensor:
    """int64 [N]: numbers that differ where Gaussians differ in a bit."""
    columns = [v.detach().float().reshape(len(g), v.shape[1:].numel()) for v in g.tensors().values()]
    bits = torch.cat(columns, 1)
    factors = torch.arange(1, bits.shape[1] + 1, device=bits.device) * 0x9E3779B97F4A7C1 | 1
    found = []
    for part in bits.view(torch.int32).split(_ROWS):
        values = part.long()
        found.append(((values ^ (values << 17)) * factors).sum(1))  # wraps around, which is meant
    return torch.cat(found)


def attached(scene: Scene, field: Gaussians, background: Sequence[float] | None) -> Scene:
    """The scene with a radiance field trained over a colour; every Gaussian of it goes with the nearest surfel."""
    own = seals(scene.gaussians)
    _, near = KDTree(scene.gaussians.means.cpu().numpy()).query(field.means.cpu().numpy(), workers=-1)
    tensors = {f"{PREFIX}{k}": v for k, v in field.to(own.device).detach().tensors().items()}
    tensors[f"{PREFIX}owner"], tensors[f"{PREFIX}seals"] = own[torch.from_numpy(near).to(own.device)], own
    tensors[f"{PREFIX}background"] = torch.tensor(background or (0.0, 0.0, 0.0), device=own.device)
    return replace(scene, mode_state={**scene.mode_state, **tensors})


def field_of(scene: Scene) -> tuple[Gaussians, Gaussians | None] | None:
    """The Gaussians that show the radiance: the field's, and edited surfels; of an edited scene also the field as it
    was. None: the surfels' own show it.
    """
    state, g = scene.mode_state, scene.gaussians
    if f"{PREFIX}owner" not in state:
        return None
    from featuresplat.modes import _inverse_scene as finished

    alive = (*g.tensors().values(), state[f"{PREFIX}owner"])
    key = tuple(map(id, alive))
    if key not in _FIELDS:
        now, whole = seals(g), Gaussians(**{k: state[PREFIX + k] for k in g.tensors()})
        kept, changed = torch.isin(state[f"{PREFIX}owner"], now), ~torch.isin(now, state[f"{PREFIX}seals"])
        edited = bool(changed.any()) or not bool(kept.all())
        found = (Gaussians.cat([whole[kept], g[changed]]), whole) if edited else (whole, None)
        finished.remember(_FIELDS, key, found, alive)
    _FIELDS.move_to_end(key)
    return _FIELDS[key][0]


def image(scene: Scene, frame: Frame, camera: Cameras, request: RenderRequest, behind: Tensor) -> Tensor:
    """[H, W, 3] the radiance, as shown or linear; ``behind`` [H, W, 3] is what surfels lie before."""
    assert frame.out.rgb is not None
    found, own = field_of(scene), frame.out.rgb[0]
    surfels = (tone.linear(own.clamp(0, 1)) if request.linear else own) + (1 - frame.out.alpha[0]) * behind
    if found is None:
        return surfels
    field, whole = found
    rgb, covered = _splat(scene, field, camera, request)
    before = covered if whole is None else torch.maximum(covered, _splat(scene, whole, camera, request)[1])
    # The field was trained over a colour, which is a part of what it shows.
    color = scene.mode_state[f"{PREFIX}background"] if request.backgrounds is None else request.backgrounds
    rgb = rgb + (1 - before) * color.to(rgb).reshape(-1, 3)[0]
    return (tone.linear(rgb.clamp(0, 1)) if request.linear else rgb) + (before - covered) * surfels


def _splat(scene: Scene, g: Gaussians, camera: Cameras, request: RenderRequest) -> tuple[Tensor, Tensor]:
    """Colours [H, W, 3] over black, and coverage [H, W, 1]."""
    out = replace(scene, gaussians=g).splat(camera, replace(request, features=None, backgrounds=torch.zeros(3)))
    assert out.rgb is not None
    return out.rgb[0], out.alpha[0]


@torch.no_grad()
def settled(scene: Scene, dataset: Dataset) -> Scene:
    """A scene whose training has ended, with the radiance field of the run it started from, if it did.

    The progress of each surfel becomes the share a of the physical model P in the picture that explains the
    photographs I best beside the radiance R, by least squares over the pixels where it shows:
    a = sum w (R - I)(R - P) / sum w (R - P)^2, clipped to 0..1.
    """
    from featuresplat.modes import _inverse_scene as finished
    from featuresplat.scene import RenderRequest
    from featuresplat.scene import Scene as Run

    config = scene.config
    if config is None or config.inverse.start is None or not config.inverse.progress:
        return scene
    start = Run.load(config.inverse.start).to(scene.gaussians.means.device)
    if start.mode != scene.mode:
        scene = attached(scene, start.gaussians, start.info.get("background"))
    elif found := field_of(start):
        scene = attached(scene, found[0], start.mode_state[f"{PREFIX}background"].tolist())
    else:
        return scene
    scene, g = _exposed_alike(scene, start), scene.gaussians
    if not bool(scene.mode_state["gaussian.progress"].any()):  # no physical model yet
        return scene
    exposures, names = scene.mode_state.get(EXPOSURES), scene.names("train")
    stage, request = finished.staged(scene, None), RenderRequest(backend=config.backend)
    top, bottom = g.means.new_zeros(len(g), 1), g.means.new_zeros(len(g), 1)
    for i in dataset.train[:: -(-len(dataset.train) // VIEWS)]:
        camera = scene.cameras[i]
        truth = dataset.image(i).to(g.means).reshape(-1, 3) / 255
        frame = finished.frame(scene, stage, camera, request)
        physical, radiance = finished.both(scene, stage, frame, camera, request)
        rows = frame.pixels.rows
        radiance = radiance.reshape(-1, 3)[rows]
        if exposures is not None and (name := camera.names[0]) in names:
            delta = exposures[names.index(name)]
            physical, radiance = transform(physical, delta), transform(radiance, delta)
        apart = radiance - physical
        wanted = ((radiance - truth[rows]) * apart).sum(1, keepdim=True)
        maps = torch.cat([wanted, apart.square().sum(1, keepdim=True)], 1)
        if (mask := dataset.mask(i)) is not None:
            maps = maps * mask.reshape(-1, 1).to(maps)[rows]
        sums, _ = raster.lift(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            camera.viewmats.to(g.means),
            camera.Ks.to(g.means),
            camera.width,
            camera.height,
            px.spread(maps, rows, camera.height, camera.width)[None],
            settings=scene.raster_settings(),
            backend=config.backend,
        )
        top, bottom = top + sums[:, :1], bottom + sums[:, 1:]
    share = (top / (bottom + FEW * bottom.mean()).clamp_min(1e-12)).clamp(0, 1)
    return replace(scene, mode_state={**scene.mode_state, "gaussian.progress": share})


def _exposed_alike(scene: Scene, start: Scene) -> Scene:
    """The scene with the exposures of the photographs that the run it started from has found, if it has none itself."""
    found = start.mode_state.get(EXPOSURES)
    if found is None or EXPOSURES in scene.mode_state or scene.names("train") != start.names("train"):
        return scene
    return replace(scene, mode_state={**scene.mode_state, EXPOSURES: found})
