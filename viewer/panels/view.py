"""What is shown, and how."""

from __future__ import annotations

import math
from typing import Any

import torch

from featuresplat.controls import Button, Check, Choice, Color, Group, Note, Panel, Ramp, Slider, Swatches

from ..cameras import bounds
from ..pictures import kinds_of
from .select import find

DRAW = {"auto": "Automatic", "splats": "Splats, by the browser", "render": "Renders, by the engine"}
FLY, ORBIT = "Fly", "Orbit"
AXES = "xyz"
UPS = {"As photographed": None} | {
    f"{sign}{axis}": tuple(float(f"{sign}1") * (axis == a) for a in AXES) for axis in AXES for sign in "+-"
}
"""What may be up, and where it points."""


def panel(app: Any) -> Panel:
    low, high = rounded(*(t.tolist() for t in bounds(app.document.scene)))
    crop = []
    for axis in range(3):
        for end, word in ((0, "from"), (1, "to")):
            crop.append(_crop_slider(axis, end, f"{AXES[axis]} {word}", low, high))
    return Panel(
        "View",
        [
            Note(_summary),
            Choice("Show", lambda s: kinds_of(s.scene).values(), get=_kind, set=_set_kind),
            Choice(
                "Field", lambda s: tuple(s.scene.fields), get=lambda s: s.look.field or _last_field(s),
                set=lambda s, name: s.show(field=name), when=lambda s: s.look.kind == "features",
            ),
            Choice(
                "Prompt", _prompt_names, get=_prompt, set=_set_prompt, when=lambda s: s.look.kind == "relevancy",
                hint="One prompt as a heat map, or all of them in their colours",
            ),
            Ramp(_ramp, when=lambda s: s.look.kind == "depth" or (s.look.kind == "relevancy" and s.look.prompt >= 0)),
            Swatches(_swatches, when=lambda s: bool(_swatches(s))),
            Note("Right red, up green, towards you blue.", when=lambda s: s.look.kind == "normals"),
            Note("The field's three main directions.", when=lambda s: s.look.kind == "features"),
            Check("Selections", lambda s: s.look.outlines, lambda s, v: s.show(outlines=v),
                  hint="Tint and outline what is selected"),
            Button("Home", lambda s: s.go_home(), icon="home", hint="Back to where you started (H)"),
            Group("Drawing", [
                Choice("Drawn as", tuple(DRAW.values()), get=lambda s: DRAW[s.look.draw], set=_set_draw,
                       hint="Automatic: the browser draws while you move, the engine when you rest"),
                Slider("Detail", 0.25, 1.0, 0.05, lambda s: s.look.detail, lambda s, v: s.show(detail=v),
                       hint="Size of the engine's pictures, as a share of the window"),
                Slider("Splat size", 0.05, 2.0, 0.05, lambda s: s.look.size, lambda s, v: s.show(size=v)),
                Color("Background", lambda s: s.look.background, lambda s, v: s.show(background=v)),
                Note(_speed),
            ], open=False),
            Group("Lens", [
                Slider("Field of view", 10, 120, 1, _fov, _set_fov, hint="Vertical, degrees"),
                Choice("Mouse", (ORBIT, FLY), lambda s: FLY if s.look.fly else ORBIT,
                       lambda s, mouse: s.steer(mouse == FLY),
                       hint="Orbit turns around the scene; Fly turns on the spot"),
                Choice("Up", tuple(UPS), _up, lambda s, word: s.turn_up(UPS[word]),
                       hint="Which way is up, where the photographs' cameras do not say"),
                Note("W A S D move, Q and E go down and up."),
            ], open=False),
            Group("Crop box", [
                Check("Crop", lambda s: s.look.crop is not None,
                      lambda s, v: s.show(crop=(tuple(low), tuple(high)) if v else None),
                      hint="Only what is inside is shown"),
                *crop,
            ], open=False),
        ],
        icon="eye",
        order=0,
    )  # fmt: skip


def _summary(s: Any) -> str:
    state = s.state
    words = f"{len(state.scene.gaussians):,} Gaussians"
    if state.scene.fields:
        words += f" - fields: {', '.join(state.scene.fields)}"
    if state.edits:
        words += f" - {len(state.edits)} edit{'s' if len(state.edits) > 1 else ''}"
    if s.app.splat_budget < len(state.scene.gaussians) and s.canvas.showing == "splats":
        words += f" - the browser draws the {s.app.splat_budget:,} largest; rest the mouse to see all"
    return words


def _kind(s: Any) -> str:
    return kinds_of(s.scene).get(s.look.kind, "Colour")


def _set_kind(s: Any, label: str) -> None:
    kind = next((k for k, v in kinds_of(s.scene).items() if v == label), "rgb")
    if kind == "features":
        s.scene.field(s.look.field or None)
    if kind == "relevancy" and not s.state.prompts:
        s.say("Nothing is asked yet", "Type what to look for in the panel Ask.")
        return
    if kind == "instances":
        find(s)
        return
    s.show(kind=kind)


def _last_field(s: Any) -> str:
    return next(reversed(s.scene.fields), "")


def _prompt_names(s: Any) -> tuple[str, ...]:
    return ("All", *(f"{i + 1}: {p.text}" for i, p in enumerate(s.state.prompts)))


def _prompt(s: Any) -> str:
    names = _prompt_names(s)
    return names[s.look.prompt + 1] if -1 <= s.look.prompt < len(names) - 1 else names[0]


def _set_prompt(s: Any, name: str) -> None:
    names = _prompt_names(s)
    s.show(prompt=names.index(name) - 1 if name in names else -1)


def _ramp(s: Any) -> tuple[str, str]:
    return ("far", "near") if s.look.kind == "depth" else ("0 no match", "1 match")


def _swatches(s: Any) -> list:
    if s.look.kind == "relevancy" and s.look.prompt < 0:
        return [(p.color, p.text) for p in s.state.prompts]
    if s.look.kind == "instances":
        found = s.app.insight.known_instances(s.scene)
        if found is not None:
            return [(c.tolist(), n) for c, n in zip(found.colors[:24], found.names[:24], strict=True)]
    return []


def _set_draw(s: Any, label: str) -> None:
    s.show(draw=next((k for k, v in DRAW.items() if v == label), "auto"))


def _speed(s: Any) -> str:
    canvas = s.canvas
    if not canvas.stream.frames:
        return ""
    return f"Shown: {canvas.showing or 'nothing'}. Last picture {1000 * canvas.stream.frame_seconds:.0f} ms."


def _up(s: Any) -> str:
    return next((word for word, up in UPS.items() if up == s.look.up), next(iter(UPS)))


def _fov(s: Any) -> float:
    pose = s.pose()
    return round(math.degrees(pose.fov)) if pose else 50


def _set_fov(s: Any, degrees: float) -> None:
    s.client.camera.fov = math.radians(degrees)


def rounded(low: list[float], high: list[float]) -> tuple[list[float], list[float]]:
    """The corners of a box, a little further apart: in numbers of few digits, as people read them."""
    sides = [max(b - a, 1e-6) for a, b in zip(low, high, strict=True)]
    digits = [1 - math.floor(math.log10(side)) for side in sides]
    grid = [10.0**-d for d in digits]
    lower = [round(math.floor(x / g) * g, max(d, 0)) for x, g, d in zip(low, grid, digits, strict=True)]
    upper = [round(math.ceil(x / g) * g, max(d, 0)) for x, g, d in zip(high, grid, digits, strict=True)]
    return lower, upper


def _crop_slider(axis: int, end: int, label: str, low: list[float], high: list[float]) -> Slider:
    side = high[axis] - low[axis]
    step = 10.0 ** math.floor(math.log10(side / 100))

    def get(s: Any) -> float:
        return s.look.crop[end][axis] if s.look.crop else (low, high)[end][axis]

    def set(s: Any, value: float) -> None:
        corners = [list(c) for c in (s.look.crop or (low, high))]
        corners[end][axis] = value
        box = torch.tensor(corners).sort(dim=0).values.tolist()
        s.show(crop=(tuple(box[0]), tuple(box[1])))

    return Slider(label, low[axis], high[axis], step, get, set, enabled=lambda s: s.look.crop is not None)
