"""Selections: by pointing, by object, and what is done to them."""

from __future__ import annotations

from typing import Any

from featuresplat.controls import Button, Buttons, Check, Choice, Control, Group, Note, Panel, Slider, Text, Varying
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.selection import Selection

from ..markup import shortened
from ..pointer import HOW

TOOLS = {"off": "Off: the mouse moves the view", "point": "Point", "box": "Box", "brush": "Brush"}
HOW_WORDS = dict(zip(HOW, ("Make a new selection", "Add to it", "Take from it", "Keep what is in both"), strict=True))
ADVICE = {
    "off": "Choose a tool to select in the picture.",
    "point": "Click the object. More clicks make it better; Shift-click marks what is not part of it.",
    "box": "Drag a box around the object.",
    "brush": "Paint over what you want, as it shows from here.",
}
NAME, OBJECT = "selection name", "-"
LABEL = 24
"""Characters of a name that find room beside a box to tick."""


def panel(app: Any) -> Panel:
    return Panel(
        "Select",
        [
            Choice("Tool", tuple(TOOLS.values()), lambda s: TOOLS[s.pointer.tool], _tool),
            Note(lambda s: ADVICE[s.pointer.tool]),
            Check("On the object", lambda s: s.pointer.positive,
                  lambda s, v: setattr(s.pointer, "positive", v), when=lambda s: s.pointer.tool == "point",
                  hint="Off: clicks mark what is not part of it"),
            Button("New object", lambda s: s.pointer.forget_points(), icon="plus",
                   when=lambda s: bool(s.pointer.points), hint="The next click begins anew"),
            Slider("Brush size", 0.005, 0.1, 0.005, lambda s: s.pointer.radius,
                   lambda s, v: setattr(s.pointer, "radius", v), when=lambda s: s.pointer.tool == "brush"),
            Choice("Prompts", tuple(HOW_WORDS.values()), lambda s: HOW_WORDS[s.pointer.how], _how),
            Note(_count, strong=True),
            Buttons("Border", ("Grow", "Shrink"), _border, when=_selected),
            Buttons("All of it", ("Invert", "Clean up", "Clear"), _whole, when=_selected),
            Group("Keep", [
                Text("Name", lambda s: s.look.extra.get(NAME, "object"), _name, pause=0.2),
                Button("Keep selection", keep, icon="bookmark", enabled=_selected),
                Varying(lambda s: tuple((k.name, k.color) for k in s.state.kept), _list),
            ]),
            Group("Objects", [
                Note("All objects at once, where the scene's field or its shapes tell them apart."),
                Button("Find all objects", find, icon="box-multiple"),
                Choice("Select", _objects, get=lambda s: OBJECT, set=_object, when=lambda s: len(_objects(s)) > 1),
            ], open=False),
        ],
        icon="pointer",
        order=30,
    )  # fmt: skip


def _selected(s: Any) -> bool:
    return s.state.selected is not None


def _tool(s: Any, label: str) -> None:
    s.pointer.use(next((k for k, v in TOOLS.items() if v == label), "off"))


def _how(s: Any, label: str) -> None:
    s.pointer.how = next((k for k, v in HOW_WORDS.items() if v == label), "replace")


def _count(s: Any) -> str:
    selected = s.state.selected  # read once: others may change it meanwhile
    if selected is None:
        return "Nothing is selected."
    return f"Selected: {int(selected.sum()):,} of {len(selected):,} Gaussians."


def _changed(s: Any, title: str, change: Any) -> None:
    """Replace the active selection by what ``change(selection, scene)`` makes of it."""

    def work() -> None:
        state = s.state
        if state.selected is None:
            raise FeaturesplatError("selection: nothing is selected.", "Click something, or ask for it, first.")
        s.document.select(change(Selection(state.selected), state.scene).mask)

    s.work(title, work)


def _border(s: Any, label: str) -> None:
    grow = label == "Grow"
    _changed(s, label, lambda selection, scene: selection.grow(scene) if grow else selection.shrink(scene))


def _whole(s: Any, label: str) -> None:
    if label == "Clear":
        s.pointer.clear()
    elif label == "Invert":
        _changed(s, label, lambda selection, scene: ~selection)
    else:
        _changed(s, label, lambda selection, scene: selection.cleanup(scene))


def _name(s: Any, name: str) -> None:
    s.look.extra[NAME] = name


def keep(s: Any) -> None:
    """Put the selection into the list under the typed name; a name that is taken gets a number."""
    name = str(s.look.extra.get(NAME, "object")).strip() or "object"
    taken = {k.name for k in s.state.kept}
    number = 2
    while (name if number == 2 else f"{name} {number - 1}") in taken:
        number += 1
    s.document.keep(name if number == 2 else f"{name} {number - 1}")


def _list(s: Any) -> list[Control]:
    """The kept selections: shown or not, used, combined, forgotten."""
    rows: list[Control] = []
    for kept in s.state.kept:
        name = kept.name
        rows.append(
            Check(shortened(name, LABEL), lambda s, n=name: s.document.kept(n).visible,
                  lambda s, v, n=name: s.document.update_kept(n, visible=v),
                  hint="Show its outline" if len(name) <= LABEL else f"Show the outline of {name}")
        )  # fmt: skip
        rows.append(Buttons("", ("Use", "Add", "Minus", "Delete"), lambda s, word, n=name: _use(s, n, word)))
    return rows


def _use(s: Any, name: str, word: str) -> None:
    if word == "Delete":
        s.document.forget(name)
        return
    s.pointer.forget_points()
    s.document.select(s.document.kept(name).mask, {"Use": "replace", "Add": "add", "Minus": "subtract"}[word])


def find(s: Any) -> None:
    """Look for all objects and show them in their colours."""

    def work() -> None:
        found = s.app.insight.instances(s.scene)
        if len(found) == 0 or bool((found.ids == found.ids[0]).all()):  # one that is everything is none
            raise FeaturesplatError("objects: none can be told apart.", "Select by pointing.")
        s.show(kind="instances")

    s.work("Finding objects", work)


def _objects(s: Any) -> tuple[str, ...]:
    found = s.app.insight.known_instances(s.scene)
    names = () if found is None else tuple(f"{i + 1}: {n}" for i, n in enumerate(found.names))
    return (OBJECT, *names)


def _object(s: Any, label: str) -> None:
    names = _objects(s)
    if label in names[1:]:
        found = s.app.insight.instances(s.scene)
        s.pointer.forget_points()
        s.document.select(found.selection(names.index(label) - 1).mask)
