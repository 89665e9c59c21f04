"""The viewer's panels of light and materials, for scenes of the mode `inverse`."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.controls import (
    Button,
    Buttons,
    Check,
    Choice,
    Color,
    Group,
    Note,
    Number,
    Panel,
    Slider,
    Swatches,
    Text,
)
from featuresplat.errors import FeaturesplatError
from featuresplat.paths import up_axis
from featuresplat.prompts.materials import MATERIALS, Material, has_materials
from featuresplat.prompts.targets import Target
from featuresplat.shading import presets, tone
from featuresplat.shading.asking import light_of
from featuresplat.shading.light import Lamp, Light

OWN, FILE = "Its own", "A file"
KEEP = "Keep"
QUICK = ("Gold", "Chrome", "Matte", "Glossy")
_MAPS: OrderedDict[tuple[str, int, tuple], Tensor] = OrderedDict()
_KEPT = 8
"""Maps that are remembered: a scene is prepared for a light as an object, not for what it holds."""


def panel(app: Any) -> list[Panel] | None:
    """Light: which map, turned how far, how bright; a point light. Material: what the selection is made of."""
    if not has_materials(app.document.scene):
        return None
    return [_light_panel(), _material_panel()]


# Light

LIGHT = {
    "map": OWN, "file": "", "turn": 0.0, "gain": 1.0, "behind": False, "on": False, "at": None,
    "color": (1.0, 1.0, 1.0), "power": 1.0,
}  # fmt: skip
"""What the panel begins with; ``at`` None is over the middle of the scene, ``power`` in squares of its extent."""


def _light_panel() -> Panel:
    lit = [
        Choice("Map", lambda s: _map_names(), get=_get("map"), set=_set("map"), hint="Which light falls on the scene"),
        Text("File", _get("file"), _set("file"), when=lambda s: _own(s)["map"] == FILE,
             hint="On the machine that the viewer runs on: .hdr, .exr or .npy"),
        Slider("Turn", -180.0, 180.0, 5.0, _get("turn"), _set("turn"), hint="Degrees, about the vertical"),
        Slider("Intensity", 0.0, 4.0, 0.05, _get("gain"), _set("gain")),
        Check("Show it behind", _get("behind"), _set("behind")),
        Button("Back to its own", _back, icon="arrow-back-up"),
    ]  # fmt: skip
    lamp = [
        Check("On", _get("on"), _set("on")),
        Button("Put it where I am", _here, icon="map-pin"),
        *(Number("xyz"[k], _place(k), _set_place(k), step=0.1) for k in range(3)),
        Color("Colour", _get("color"), _set("color")),
        Slider("Brightness", 0.0, 10.0, 0.1, _get("power"), _set("power")),
    ]
    note = Note("Under another light the picture is the physical model alone.", when=lambda s: s.look.light is not None)
    return Panel("Light", [*lit, Group("Point light", lamp, open=False), note], icon="bulb", order=12)


def _map_names() -> tuple[str, ...]:
    return (OWN, *(name.capitalize() for name in presets.PRESETS), FILE)


def _own(session: Any) -> dict[str, Any]:
    return {**LIGHT, **session.look.extra.get("light", {})}


def _get(key: str) -> Any:
    return lambda s: _own(s)[key]


def _set(key: str) -> Any:
    return lambda s, value: _keep(s, **{key: value})


def _keep(session: Any, **values: Any) -> None:
    """Remember values, and show the scene under the light that they make."""
    wishes = {**_own(session), **values}
    session.show(extra={**session.look.extra, "light": wishes}, light=asked(session.scene, wishes))


def asked(scene: Any, wishes: dict[str, Any]) -> Light | None:
    """The light that the panel's values ask for; None is the scene's own as it is.

    Raises:
        FeaturesplatError: a file that cannot be read.
    """
    up = _up(scene)
    environment = _environment(scene, wishes, up)
    lamps = (_lamp(scene, wishes),) if wishes["on"] else ()
    plain = environment is None and not wishes["turn"] and wishes["gain"] == 1 and not lamps and not wishes["behind"]
    if plain:
        return None
    return Light(environment, lamps, float(wishes["turn"]), up, float(wishes["gain"]), behind=bool(wishes["behind"]))


def _up(scene: Any) -> tuple[float, float, float]:
    """The vertical: an axis of the world where it is one, nearly; maps have their zenith there."""
    found = up_axis(scene.cameras) if len(scene.cameras) else torch.tensor([0.0, 0.0, 1.0])
    place = int(found.abs().argmax())
    if abs(float(found[place])) > 0.95:
        found = torch.zeros(3).index_fill(0, torch.tensor(place), float(found[place].sign()))
    x, y, z = (float(v) for v in found)
    return x, y, z


def _environment(scene: Any, wishes: dict[str, Any], up: tuple[float, float, float]) -> Tensor | None:
    """The chosen map as a cubemap, the same tensor each time, or None for the scene's own."""
    name, file = str(wishes["map"]), str(wishes["file"]).strip()
    if name == OWN or (name == FILE and not file):
        return None
    source = file if name == FILE else name.lower()
    if name == FILE and not Path(source).is_file():
        raise FeaturesplatError(f"light: there is no file {source}.", "Give an .hdr, .exr or .npy file.")
    size = int(scene.mode_state["light"].shape[1])
    stamp = Path(source).stat().st_mtime_ns if name == FILE else 0
    key = (source, size, (stamp, *up))
    if key not in _MAPS:
        light = light_of(source, up=up, size=size)
        assert light is not None
        assert light.environment is not None
        _MAPS[key] = light.environment
        while len(_MAPS) > _KEPT:
            _MAPS.popitem(last=False)
    return _MAPS[key]


def _middle(scene: Any) -> tuple[Tensor, float]:
    """Centre [3] and reach of the scene."""
    means = scene.gaussians.means
    centre = means.median(0).values
    return centre, float((means - centre).norm(dim=1).quantile(0.8)) if len(means) < 1 << 24 else 1.0


def _lamp(scene: Any, wishes: dict[str, Any]) -> Lamp:
    x, y, z = _lamp_place(scene, wishes)
    reach = _middle(scene)[1]
    # At a distance of the scene's reach, brightness 1 is as bright as a surface under an even sky of radiance 1.
    r, g, b = (
        float(wishes["power"]) * torch.pi * reach**2 * float(v) for v in tone.linear(torch.tensor(wishes["color"]))
    )
    return Lamp((x, y, z), (r, g, b))


def _lamp_place(scene: Any, wishes: dict[str, Any]) -> tuple[float, float, float]:
    if wishes["at"] is not None:
        x, y, z = wishes["at"]
        return x, y, z
    centre, reach = _middle(scene)
    x, y, z = (centre.cpu() + 1.5 * reach * torch.tensor(_up(scene))).tolist()
    return x, y, z


def _place(axis: int) -> Any:
    return lambda s: round(_lamp_place(s.scene, _own(s))[axis], 3)


def _set_place(axis: int) -> Any:
    def set(session: Any, value: float) -> None:
        place = list(_lamp_place(session.scene, _own(session)))
        place[axis] = float(value)
        _keep(session, at=tuple(place), on=True)

    return set


def _here(session: Any) -> None:
    pose = session.pose()
    if pose is None:
        raise FeaturesplatError("light: the view is not known yet.", "Move the mouse in the picture first.")
    x, y, z = (float(v) for v in pose.position)
    _keep(session, at=(x, y, z), on=True)


def _back(session: Any) -> None:
    _keep(session, **LIGHT)


# Material

MATERIAL = {"name": KEEP, "color": (0.5, 0.5, 0.5), "tint": False, "roughness": 0.3, "metallic": 0.0}


def _material_panel() -> Panel:
    names = (KEEP, *(name.capitalize() for name in MATERIALS))
    return Panel(
        "Material",
        [
            Note(_told),
            Swatches(_swatches),
            Buttons("Make it", QUICK, _quick),
            Choice("Made of", names, _mine("name"), _set_name, hint="Fills in the values below"),
            Check("Another colour", _mine("tint"), _put("tint")),
            Color("Colour", _mine("color"), _put("color"), when=lambda s: _values(s)["tint"]),
            Slider("Roughness", 0.0, 1.0, 0.01, _mine("roughness"), _put("roughness"), hint="0 a mirror, 1 chalk"),
            Slider("Metallic", 0.0, 1.0, 0.01, _mine("metallic"), _put("metallic")),
            Button("Give it this material", _apply, color="blue", enabled=lambda s: s.selection is not None),
            Note("Sentences do it too, in Edit: make the mug brushed copper."),
        ],
        icon="palette",
        order=13,
    )


def _values(session: Any) -> dict[str, Any]:
    return {**MATERIAL, **session.look.extra.get("material", {})}


def _mine(key: str) -> Any:
    return lambda s: _values(s)[key]


def _put(key: str) -> Any:
    return lambda s, value: _store(s, **{key: value})


def _store(session: Any, **values: Any) -> None:
    session.show(extra={**session.look.extra, "material": {**_values(session), **values}})


def _set_name(session: Any, name: str) -> None:
    if name == KEEP:
        _store(session, name=KEEP)
        return
    found = MATERIALS[name.lower()]
    values: dict[str, Any] = {"name": name, "roughness": found.roughness, "metallic": found.metallic}
    if found.color is not None:
        r, g, b = tone.srgb(torch.tensor(found.color)).clamp(0, 1).tolist()
        values |= {"color": (r, g, b), "tint": True}
    _store(session, **values)


def _selected(session: Any) -> Target:
    if session.selection is None:
        raise FeaturesplatError("material: nothing is selected.", "Click something, or ask for it, first.")
    return Target.of(session.selection, session.scene)


def _quick(session: Any, word: str) -> None:
    finish = {"Matte": 0.9, "Glossy": 0.15}
    target = _selected(session)
    edit = Material(target, roughness=finish[word]) if word in finish else Material(target, word.lower())
    session.edit(edit)


def _apply(session: Any) -> None:
    v = _values(session)
    r, g, b = (round(255 * float(c)) for c in v["color"])
    color = f"#{r:02x}{g:02x}{b:02x}" if v["tint"] else ""
    session.edit(
        Material(_selected(session), color=color, roughness=float(v["roughness"]), metallic=float(v["metallic"]))
    )


def _means(session: Any) -> tuple[Tensor, float, float, float] | None:
    """Mean base colour, roughness, metallic and progress of the selection, weighted by opacity."""
    selection, scene = session.selection, session.scene
    if selection is None or not has_materials(scene) or len(selection.mask) != len(scene.gaussians):
        return None
    weight = scene.gaussians.opacities[selection.mask][:, None]
    total = weight.sum().clamp_min(1e-9)
    names = ("base_color", "roughness", "metallic", "progress")
    c, r, m, a = ((scene.mode_state[f"gaussian.{n}"][selection.mask] * weight).sum(0) / total for n in names)
    return c, float(r), float(m), float(a)


def _told(session: Any) -> str:
    found = _means(session)
    if found is None:
        return "Select something first: by words in Ask, by pointing in Select."
    _, rough, metal, progress = found
    return f"Selected: roughness {rough:.2f}, metallic {metal:.2f}; {100 * progress:.0f} % explained by them."


def _swatches(session: Any) -> list:
    found = _means(session)
    return [] if found is None else [(tuple(tone.srgb(found[0]).clamp(0, 1).tolist()), "base colour")]
