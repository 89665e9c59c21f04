"""The report's pictures of a scene of materials: what it is made of, its light, and other lights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat.io import html
from featuresplat.io.images import to_bytes
from featuresplat.modes import _inverse_scene as finished
from featuresplat.scene import RenderRequest
from featuresplat.shading import cubemap, presets, tone
from featuresplat.shading.asking import light_of

if TYPE_CHECKING:
    from featuresplat.scene import Scene

KINDS = ("albedo", "normal", "roughness", "metallic", "progress", "diffuse", "specular", "radiance")
LIGHTS = ("noon", "evening", "studio", "colours")
SHOWN = 3
"""Views."""
SKY = 128
"""Rows of the picture of the light."""


def report(scene: Scene, dataset: Any = None) -> list[tuple[str, str]]:
    """Sections: materials of some views, the light that was found, the first view under other lights."""
    views = scene.part("test") if scene.names("test") else scene.part("train")
    if not len(views):
        return []
    chosen = [round(k * (len(views) - 1) / max(SHOWN - 1, 1)) for k in range(min(SHOWN, len(views)))]
    return [
        ("Materials", _materials(scene, views, list(dict.fromkeys(chosen)))),
        ("Light", _light(scene, views)),
        ("Under other lights", _relit(scene, views)),
    ]


def sky_picture(cube: Tensor, height: int = SKY) -> Tensor:
    """uint8 [height, 2 height, 3]: a light as a latitude-longitude picture, its 90th percentile at 0.8."""
    sky = cubemap.to_equirect(cube.cpu(), height, 2 * height)
    level = float(sky.amax(-1).quantile(0.9).clamp_min(1e-6))
    return to_bytes(tone.srgb(0.6 * sky / level).clamp(0, 1))


def _shown(scene: Scene, camera: Any, kind: str) -> Tensor:
    image = finished.picture(scene, camera, kind, RenderRequest())[0]
    return to_bytes(image.clamp(0, 1).expand(-1, -1, 3))


def _materials(scene: Scene, views: Any, chosen: list[int]) -> str:
    parts = [
        html.note(
            "Base colour; normals, world axes as red, green and blue; roughness and metal, bright is more; progress, "
            "how much of the image the physical model explains; its diffuse and its specular part; and the radiance "
            "that makes up for the rest."
        )
    ]
    for i in chosen:
        camera = views[i]
        row = [(_shown(scene, camera, kind), kind.capitalize()) for kind in KINDS]
        parts.append(html.row(str(camera.names[0]) or "a view", row))
    return "".join(parts)


def _light(scene: Scene, views: Any) -> str:
    light = scene.mode_state["light"]
    area = cubemap.solid_angles(light.shape[1]).to(light)
    mean = (light * area[None, ..., None]).sum((0, 1, 2)) / (area.sum() * 6)
    r, g, b = (float(v) for v in mean)
    note = (
        f"All directions, +z up, the middle is +x. Mean radiance {r:.2f}, {g:.2f}, {b:.2f}; largest "
        f"{float(light.max()):.1f}. Where no view looks and nothing glossy reflects, it is a guess."
    )
    return html.note(note) + html.row("The light that was found", [(sky_picture(light), "Latitude and longitude")])


def _relit(scene: Scene, views: Any) -> str:
    size = int(scene.mode_state["light"].shape[1])
    pictures = []
    for name in LIGHTS:
        light = light_of(name, size=size)
        with torch.no_grad():
            rgb = scene.render(views[0], light=light).rgb
        assert rgb is not None  # scenes have colours
        pictures.append((to_bytes(rgb[0].clamp(0, 1)), name.capitalize()))
    skies = [(sky_picture(cubemap.from_equirect(presets.environment(n, 64), 64), 64), "") for n in LIGHTS]
    return (
        html.note("The physical model alone; lights of ours: featuresplat render RUN --light evening.")
        + html.row("Relit", pictures)
        + html.row("The lights", skies)
    )
