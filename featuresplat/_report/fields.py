"""What the report shows of feature fields: their main directions, where prompts light up, the objects found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

import torch
from torch import Tensor

from featuresplat.fields.pictures import feature_colors, render_features
from featuresplat.io import html
from featuresplat.io.colormap import colormap
from featuresplat.io.images import to_bytes
from featuresplat.scene import Scene
from featuresplat.types import Cameras, FeatureField

VIEWS = 2
"""Views on the page per section."""
PROMPTS = 9
"""Phrases shown of a field that knows its own."""


Section = tuple[str, str]


def field_sections(scene: Scene, prompts: Sequence[str] = ()) -> list[Callable[[], list[Section]]]:
    """What makes each section, (title, HTML); none without fields. One that fails need not take the others along.

    They raise FeaturesplatError, e.g. for a prompt that the scene's field cannot answer.
    """
    if not scene.fields:
        return []
    cameras = _some_views(scene)

    def section(title: str, content: str) -> list[Section]:
        return [(title, content)] if content else []

    return [
        lambda: section("Feature fields", _fields(scene, cameras)),
        lambda: section("Prompts", _relevancy(scene, cameras, prompts)),
        lambda: section("Objects", _objects(scene, cameras, prompts)),
    ]


def overlay(rgb: Tensor, score: Tensor) -> Tensor:
    """uint8 [H, W, 3]: scores [H, W] in 0..1 as colours over the greyed render [H, W, 3]."""
    grey = rgb.clamp(0, 1).mean(-1, keepdim=True) * 255
    return (0.4 * grey + 0.6 * colormap(score).float()).round().to(torch.uint8)


def _some_views(scene: Scene) -> list[Cameras]:
    names = scene.names("test") or scene.names("train") or list(scene.cameras.names)
    chosen = [names[round((k + 0.5) * len(names) / VIEWS - 0.5)] for k in range(min(VIEWS, len(names)))]
    order = list(scene.cameras.names)
    return [scene.cameras[order.index(name)] for name in dict.fromkeys(chosen)]


def _fields(scene: Scene, cameras: Sequence[Cameras]) -> str:
    parts = [html.note("The three main directions of each field as red, green and blue, the same in every view.")]
    for camera in cameras:
        rgb = scene.render(camera, exposure=True).rgb
        assert rgb is not None
        pictures = [(to_bytes(rgb[0].clamp(0, 1)), "Render")]
        for name, field in scene.fields.items():
            shown = render_features(scene, camera, name, feature_colors(field))
            pictures.append((to_bytes(shown[0]), f"{name}: {_facts(field)}"))
        parts.append(html.row(str(camera.names[0]) or "a view", pictures))
    return "".join(parts)


def _facts(field: FeatureField) -> str:
    decoded = f" decoded to {field.out_dim}" if field.decoder is not None else ""
    method = field.info.get("method")
    return f"{field.dim} channels{decoded}" + (f", {method}" if method else "")


def _relevancy(scene: Scene, cameras: Sequence[Cameras], prompts: Sequence[str]) -> str:
    from featuresplat.prompts import text

    phrases = list(prompts)
    if not phrases:
        tables = [f.text.phrases for f in reversed(scene.fields.values()) if f.text is not None]
        phrases = [p for p in (tables[0] if tables else ()) if p != "background"][:PROMPTS]
    if not phrases:
        return ""
    query = text.ask(scene, phrases)
    parts = [
        html.note(f"Scores of prompts in the field '{query.field}', over the greyed render."),
        f'<div class="legends"><div>Score: 0 {html.ramp()} 1</div></div>',
    ]
    for camera in cameras:
        scores = query.view(scene, camera)
        rgb = scene.render(camera, exposure=True).rgb
        assert rgb is not None
        pictures = [(overlay(rgb[0].cpu(), score.cpu()), phrase) for phrase, score in zip(phrases, scores, strict=True)]
        parts.append(html.row(str(camera.names[0]) or "a view", pictures))
    return "".join(parts)


def _objects(scene: Scene, cameras: Sequence[Cameras], prompts: Sequence[str]) -> str:
    """Every object found, each in its colour over the greyed render."""
    from featuresplat.prompts import instances

    found = instances.find(scene, phrases=prompts)
    if not len(found):
        return ""
    chips = "".join(
        f'<div><span class="ramp" style="width:14px;background:rgb({r},{g},{b})"></span> {escape(name)}</div>'
        for name, (r, g, b) in zip(found.names, (found.colors * 255).int().tolist(), strict=True)
    )
    parts = [
        html.note(f"{len(found)} objects found in the scene, largest first."),
        f'<div class="legends">{chips}</div>',
    ]
    inside = (found.ids >= 0).float()
    colors = found.colors[found.ids.clamp_min(0)] * inside[:, None]
    pictures = []
    for camera in cameras:
        out = scene.render(camera, features=torch.cat([colors, inside[:, None]], dim=1), exposure=True)
        assert out.rgb is not None
        assert out.features is not None
        color, share = out.features[0, ..., :3], 0.65 * out.features[0, ..., 3:].clamp(0, 1)
        grey = out.rgb[0].clamp(0, 1).mean(-1, keepdim=True)
        pictures.append((to_bytes((0.65 * color + (1 - share) * grey).clamp(0, 1)), str(camera.names[0]) or "a view"))
    return "".join(parts) + html.row("Objects", pictures)
