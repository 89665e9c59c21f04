"""A finished scene of the mode `inverse`: its pictures, under its own light or another."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from featuresplat import raster
from featuresplat.errors import FeaturesplatError
from featuresplat.modes import _inverse_pixels as px
from featuresplat.modes import _inverse_radiance as radiance
from featuresplat.modes._inverse_curvature import curvature
from featuresplat.modes._inverse_solve import neighbours
from featuresplat.shading import cubemap, monte_carlo, occlusion, tone, transfer
from featuresplat.shading.deferred import Lighting, Received, shade
from featuresplat.shading.light import Light
from featuresplat.shading.prefilter import Prefilter
from featuresplat.types import SH_C0, Cameras, RenderOutput

if TYPE_CHECKING:
    from featuresplat.scene import RenderRequest, Scene

KINDS = ("albedo", "roughness", "metallic", "normal", "diffuse", "specular", "progress", "physical", "radiance")
BOUNCES = 2
NAMES = ("base_color", "roughness", "metallic", "progress", "normal", "direct", "reflected", "openness", "shown")
"""Tensors per Gaussian in the mode's state, under ``gaussian.``."""


@dataclass
class Stage:
    """A scene made ready for one light: what does not depend on the camera.

    Attributes:
        features: [N, CHANNELS - 3] to be splatted, all but what depends on the camera.
        lighting: for shading.
        cube: [6, S, S, 3] the environment.
        light: what was asked for; None is the scene's own light.
    """

    features: Tensor
    lighting: Lighting
    cube: Tensor
    light: Light | None


_STAGES: OrderedDict[tuple, tuple[Stage, object]] = OrderedDict()
_BAKES: OrderedDict[tuple, tuple[tuple[occlusion.Occluders, transfer.Transfer], object]] = OrderedDict()
_BENDS: OrderedDict[tuple, tuple[Tensor, object]] = OrderedDict()
_FILTERS: dict[tuple[int, torch.device], Prefilter] = {}
KEPT = 4
"""Lights, bakes and radiance fields that are remembered."""


def material(scene: Scene, name: str) -> Tensor:
    """[N, C] or [N, 1] a tensor of the mode's state."""
    value = scene.mode_state[f"gaussian.{name}"]
    return value[:, None] if value.ndim == 1 else value


def staged(scene: Scene, value) -> Stage:
    """The scene under a light (None: its own); remembered, so that a path of cameras prepares it once."""
    own = scene.mode_state["light"]
    light = None if value is None else Light.of(value, own.shape[1])
    parts = (scene.gaussians.means, scene.gaussians.sh0, *(scene.mode_state[f"gaussian.{n}"] for n in NAMES), own)
    key = (*map(id, parts), None if light is None else _light_key(light))
    if key not in _STAGES:
        remember(_STAGES, key, _stage(scene, light), (parts, light))
    _STAGES.move_to_end(key)
    return _STAGES[key][0]


def _light_key(light: Light) -> tuple:
    """By what the environment holds: whoever gives an array or a file for each camera gives the same light."""
    held = light.environment
    return (
        None if held is None else hashlib.blake2b(held.cpu().numpy().tobytes(), digest_size=16).digest(),
        tuple(light.lamps),
        light.turn,
        tuple(light.up),
        light.gain,
        light.samples,
        light.behind,
    )


def remember(store: OrderedDict, key: tuple, value, alive) -> None:
    """Keep a value with what its key's ids belong to, so that no id is used twice; forget the oldest."""
    store[key] = (value, alive)
    while len(store) > KEPT:
        store.popitem(last=False)


def prefilter_for(size: int, device: torch.device) -> Prefilter:
    if (size, device) not in _FILTERS:
        _FILTERS[size, device] = Prefilter(size, device)
    return _FILTERS[size, device]


def baked(scene: Scene) -> tuple[occlusion.Occluders, transfer.Transfer]:
    """Occluders and transfer of the Gaussians as they are, edits included."""
    g = scene.gaussians
    normal, shown = material(scene, "normal"), scene.mode_state["gaussian.shown"]
    parts = (g.means, g.quats, g.log_scales, g.logit_opacities, normal, shown)
    key = tuple(map(id, (g.means, g.quats, g.log_scales, g.logit_opacities, scene.mode_state["gaussian.normal"])))
    if key not in _BAKES:
        occluders = occlusion.build(g.means, g.quats, g.scales, g.opacities, shown, normals=normal)
        moved = transfer.bake(g.means, normal, occluders, neighbours(g.means, normal))
        remember(_BAKES, key, (occluders, moved), (parts, scene.mode_state))
    return _BAKES[key][0]


def bent(scene: Scene) -> Tensor:
    """[N, 6] how the normals turn, edits included."""
    g, normal = scene.gaussians, scene.mode_state["gaussian.normal"]
    parts = (g.means, g.log_scales, normal)
    key = tuple(map(id, parts))
    if key not in _BENDS:
        remember(_BENDS, key, curvature(g.means, normal, g.scales), parts)
    return _BENDS[key][0]


def _stage(scene: Scene, light: Light | None) -> Stage:
    own = scene.mode_state["light"]
    size, g = own.shape[1], scene.gaussians
    materials = [material(scene, n) for n in ("base_color", "roughness", "metallic", "progress", "normal")]
    shadows = scene.config is None or scene.config.inverse.shadows
    filters = prefilter_for(size, own.device)
    cube = own if light is None else light.cube(own, size)
    lighting = Lighting(filters, filters.atlas(cube))
    if not shadows:
        small = cubemap.shrink(cube, size // transfer.SIZE).reshape(-1, 3)
        direct = transfer.open_sky(materials[4]) @ small
        received = [direct, torch.zeros_like(direct), torch.ones_like(direct[:, :1])]
        return Stage(torch.cat([*materials, *received, bent(scene)], 1), lighting, cube, light)
    occluders, moved = baked(scene)
    lighting.occluders = occluders
    if light is None:
        received = [material(scene, n) for n in ("direct", "reflected", "openness")]
        lighting.cells = occluders.means_of(tone.linear((0.5 + SH_C0 * g.sh0[:, 0]).clamp(0, 1)))
    else:
        c, m = materials[0], materials[2]
        # A metal's reflection stands in for the diffuse part that it has not: what it sends out, roughly, at large.
        total, lighting.cells = moved.total(cube, c * (1 - m) + c * m, occluders, BOUNCES)
        direct = moved.direct(cube)
        received = [direct, total - direct, moved.sky.sum(1, keepdim=True)]
    return Stage(torch.cat([*materials, *received, bent(scene)], 1), lighting, cube, light)


@dataclass
class Frame:
    """One camera's image of a staged scene.

    Attributes:
        out: what was splatted; ``features`` [1, H, W, CHANNELS + codes].
        pixels: the shaded pixels.
        diffuse, specular: [P, 3] linear.
        rays: [H, W, 3].
    """

    out: RenderOutput
    pixels: px.Pixels
    diffuse: Tensor
    specular: Tensor
    rays: Tensor


def frame(scene: Scene, stage: Stage, camera: Cameras, request: RenderRequest) -> Frame:
    """Splat and shade one camera."""
    g = scene.gaussians
    viewmat, K = camera.viewmats.to(g.means), camera.Ks.to(g.means)
    codes = scene.values(request.features)
    centre, rays = px.view_rays(viewmat[0], K[0], camera.width, camera.height)
    features = torch.cat([stage.features, g.means - centre, *([] if codes is None else [codes])], 1)
    out = raster.rasterize(
        g.means,
        g.quats,
        g.scales,
        g.opacities,
        g.sh,
        viewmat,
        K,
        camera.width,
        camera.height,
        features=features,
        sh_degree=g.sh_degree,
        settings=scene.raster_settings(),
        backend=request.backend,
    )
    assert out.features is not None
    pixels = px.pixels_of(out.features[0, ..., : px.CHANNELS], out.alpha[0], out.depth[0], centre, rays)
    pixels.surface.normal = px.towards_view(pixels.surface.normal, pixels.surface.view)
    light = stage.light
    if light is not None and light.samples:
        diffuse, specular = _sampled(pixels, stage, light.samples), torch.zeros_like(pixels.surface.base_color)
    else:
        diffuse, specular = shade(pixels.surface, pixels.received, stage.lighting)
    if light is not None and light.lamps:
        diffuse = diffuse + _lamps(pixels, stage, light)
    return Frame(out, pixels, diffuse, specular, rays)


def _sampled(pixels: px.Pixels, stage: Stage, samples: int) -> Tensor:
    """[P, 3] by Monte Carlo, with shadows; pixels in parts, so that memory stays small."""
    sampler = monte_carlo.LightSampler(stage.cube)
    generator = torch.Generator().manual_seed(0)
    lighting = stage.lighting

    def incoming(surface: monte_carlo.Surface, dirs: Tensor) -> Tensor:
        sky = cubemap.sample(stage.cube, dirs)
        if lighting.occluders is None or lighting.cells is None or surface.position is None:
            return sky
        count = dirs.shape[1]
        points, normals = (t.repeat_interleave(count, 0) for t in (surface.position, surface.normal))
        hit = lighting.occluders.trace(points, normals, dirs.reshape(-1, 3))
        return torch.where((hit >= 0)[:, None], lighting.cells[hit.clamp_min(0)], sky.reshape(-1, 3)).reshape(sky.shape)

    step = max(1, (1 << 18) // (3 * samples))
    parts = []
    for k in range(0, len(pixels.rows), step):
        part = pixels.surface[slice(k, k + step)]
        parts.append(monte_carlo.shade(part, incoming, samples, sampler, generator))
    return torch.cat(parts) if parts else torch.zeros_like(pixels.surface.base_color)


def _lamps(pixels: px.Pixels, stage: Stage, light: Light) -> Tensor:
    """[P, 3] what lamps add, with their shadows."""
    s, total = pixels.surface, torch.zeros_like(pixels.surface.base_color)
    assert s.position is not None
    for lamp in light.lamps:
        to = torch.tensor(lamp.position).to(s.position) - s.position
        distance = to.norm(dim=1).clamp_min(1e-6)
        way = to / distance[:, None]
        cosine = (s.normal * way).sum(1).clamp_min(0)
        arrives = torch.tensor(lamp.power).to(to) * (cosine / distance**2)[:, None]
        if stage.lighting.occluders is not None:
            hit = stage.lighting.occluders.trace(s.position, s.normal, way, distance)
            arrives = torch.where((hit >= 0)[:, None], 0, arrives)
        total = total + s.brdf(way[:, None])[:, 0] * arrives
    return total


def render(scene: Scene, cameras: Cameras, request: RenderRequest) -> RenderOutput:
    """The image: physics and radiance as the progress says under the scene's own light, physics alone under another."""
    check(scene)
    stage = staged(scene, request.light)
    outs = [_render(scene, stage, cameras[i], request) for i in range(len(cameras))]
    if len(outs) == 1:
        return outs[0]
    from featuresplat.scene import joined

    return joined(outs)


def _render(scene: Scene, stage: Stage, camera: Cameras, request: RenderRequest) -> RenderOutput:
    f = frame(scene, stage, camera, request)
    out, shape = f.out, (camera.height, camera.width)
    assert out.features is not None
    if stage.light is None:
        physical, rgb = both(scene, stage, f, camera, request)
        share = f.pixels.progress * (physical - rgb.reshape(-1, 3)[f.pixels.rows])
        rgb = rgb + px.spread(share, f.pixels.rows, *shape)
    else:
        behind = _behind(scene, stage, f.rays, request)
        rgb = (1 - out.alpha[0]) * behind
        rgb.reshape(-1, 3)[f.pixels.rows] = _physical(scene, f, behind, request)
    codes = out.features[..., px.CHANNELS :]
    return replace(out, rgb=rgb[None], features=codes if codes.shape[-1] else None)


def both(scene: Scene, stage: Stage, f: Frame, camera: Cameras, request: RenderRequest) -> tuple[Tensor, Tensor]:
    """What the physical model shows at the frame's pixels [P, 3], and what the radiance shows [H, W, 3]."""
    behind = _behind(scene, stage, f.rays, request)
    raw = radiance.image(scene, f, camera, request, behind)
    return _physical(scene, f, behind, request), raw


def _physical(scene: Scene, f: Frame, behind: Tensor, request: RenderRequest) -> Tensor:
    """[P, 3] the physical model at the frame's pixels, before what lies behind [H, W, 3]."""
    shown, alpha = f.diffuse + f.specular, f.pixels.alpha
    shown = shown if request.linear else tone.display(shown, tone_of(scene))
    return alpha * shown + (1 - alpha) * behind.reshape(-1, 3)[f.pixels.rows]


def _behind(scene: Scene, stage: Stage, rays: Tensor, request: RenderRequest) -> Tensor:
    """[H, W, 3] behind the Gaussians: what was asked for, else the environment, else the scene's own background."""
    color = request.backgrounds
    wanted = stage.light is not None and stage.light.behind
    if wanted or (color is None and bool(scene.mode_state["environment"])):
        sky = cubemap.sample(stage.cube, rays)
        return sky if request.linear else tone.display(sky, tone_of(scene))
    color = torch.tensor(scene.info.get("background") or (0.0, 0.0, 0.0)) if color is None else color.reshape(-1, 3)[0]
    color = color.to(rays)
    return (tone.linear(color) if request.linear else color).expand_as(rays)


def tone_of(scene: Scene) -> str:
    return scene.config.inverse.tone if scene.config is not None else "none"


def check(scene: Scene) -> None:
    """Raise when the scene's state is not one of this mode."""
    needed = ["light", "environment", *(f"gaussian.{n}" for n in NAMES)]
    missing = [n for n in needed if n not in scene.mode_state]
    if missing:
        raise FeaturesplatError(f"this scene lacks '{missing[0]}' of the mode inverse", "Train it again.")


_LAST: list[tuple[tuple, Frame, Stage]] = []


def picture(scene: Scene, cameras: Cameras, kind: str, request: RenderRequest) -> Tensor:
    """[C, H, W, 3 or 1] of one of KINDS, over black.

    For the eye, 0..1: colours by the sRGB curve, normals as (n + 1) / 2. With ``request.linear`` the values
    themselves: base colour, roughness, metallic and progress, unit normals in the world frame, radiance.

    Raises:
        FeaturesplatError: an unknown kind, or a scene without materials.
    """
    check(scene)
    if kind not in KINDS:
        raise FeaturesplatError(f"what: cannot render '{kind}'.", f"Known here: {', '.join(KINDS)}.")
    return torch.stack([_picture(scene, cameras[i], kind, request) for i in range(len(cameras))])


def _picture(scene: Scene, camera: Cameras, kind: str, request: RenderRequest) -> Tensor:
    stage = staged(scene, request.light)
    f = _frame_of(scene, stage, camera, replace(request, features=None))
    shape, s = (camera.height, camera.width), f.pixels.surface
    if kind == "radiance":
        black = torch.zeros(3)
        return radiance.image(scene, f, camera, replace(request, backgrounds=black), black.to(f.rays))
    values = {
        "albedo": s.base_color,
        "roughness": s.roughness[:, None],
        "metallic": s.metallic[:, None],
        "normal": s.normal,
        "progress": f.pixels.progress,
        "diffuse": f.diffuse,
        "specular": f.specular,
        "physical": f.diffuse + f.specular,
    }[kind]
    if kind == "normal" and not request.linear:
        values = (values + 1) / 2
    elif kind == "albedo" and not request.linear:
        values = tone.srgb(values)
    elif kind in ("diffuse", "specular", "physical") and not request.linear:
        values = tone.display(values, tone_of(scene))
    if kind != "normal" or not request.linear:
        values = values * f.pixels.alpha
    return px.spread(values, f.pixels.rows, *shape)


def _frame_of(scene: Scene, stage: Stage, camera: Cameras, request: RenderRequest) -> Frame:
    """`frame`, remembered for the next kind of the same view."""
    key = (id(stage), camera.viewmats.double().numpy().tobytes(), camera.Ks.double().numpy().tobytes(), camera.sizes[0])
    if not _LAST or _LAST[0][0] != key:
        with torch.no_grad():
            _LAST[:] = [(key, frame(scene, stage, camera, request), stage)]
    return _LAST[0][1]


__all__ = ["KINDS", "Received", "picture", "render", "staged"]
