"""Edits, by button, by gizmo and in plain words; the list of them, undo and redo."""

from __future__ import annotations

from typing import Any

from featuresplat.controls import Button, Buttons, Check, Color, Group, Note, Number, Panel, Slider, Text
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import language
from featuresplat.prompts.edit_files import load_edits
from featuresplat.prompts.edits import (
    Duplicate,
    Edit,
    Extract,
    Insert,
    Opacity,
    Recolor,
    Remove,
    Transform,
)
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target

from ..takeaway import export_edits

COLOR, HUE, FADE, SCALE, SENTENCE, SOURCE, FILE = "color", "hue", "fade", "scale", "sentence", "source", "edit file"


def panel(app: Any) -> Panel:
    return Panel(
        "Edit",
        [
            Note(_waiting, strong=True, when=lambda s: bool(_waiting(s))),
            Buttons("History", ("Undo", "Redo"), _history),
            Note(_target),
            Button("Remove", lambda s: do(s, Remove(target(s))), icon="trash", color="red", enabled=_selected),
            Button("Keep only this", lambda s: do(s, Extract(target(s))), icon="crop", enabled=_selected),
            Button("Duplicate", _duplicate, icon="copy", enabled=_selected, hint="The copy is selected: move it away"),
            Check("Move and turn", lambda s: s.pointer.gizmo.shown, lambda s, v: s.pointer.gizmo.show(v),
                  enabled=_selected, hint="Drag the arrows and rings at the selection"),
            Group("Scale, colour, opacity", [
                Number("Scale by", _get(SCALE, 1.0), _set(SCALE), low=0.01, high=100.0, step=0.05),
                Button("Scale", _scale, icon="resize", enabled=_selected),
                Color("Colour", _get(COLOR, (0.2, 0.45, 0.9)), _set(COLOR)),
                Button("Give it this colour", _recolor, icon="palette", enabled=_selected),
                Slider("Turn the hue", -180, 180, 5, _get(HUE, 60), _set(HUE)),
                Button("Shift the hue", _turn_hue, icon="color-swatch", enabled=_selected),
                Slider("Opacity times", 0.0, 2.0, 0.05, _get(FADE, 0.5), _set(FADE)),
                Button("Change the opacity", _fade, icon="droplet-half-2", enabled=_selected),
            ], open=False),
            Group("In words", [
                Text("Say it", _get(SENTENCE, ""), _set(SENTENCE), pause=0.2,
                     hint="e.g. remove the mug and make the duck blue"),
                Note(_understood),
                Button("Do it", say, icon="message-bolt"),
            ]),
            Group("Insert another scene", [
                Text("Run or file", _get(SOURCE, ""), _set(SOURCE), pause=0.2,
                     hint="On the machine that the viewer runs on: a run folder, .ply, .splat or .spz"),
                Button("Insert", _insert, icon="file-import"),
            ], open=False),
            Group("List of edits", [
                Note(_list),
                Text("File name", _get(FILE, "edits"), _set(FILE), pause=0.2),
                Buttons("", ("Save list", "Load list"), _file),
            ]),
        ],
        icon="edit",
        order=40,
    )  # fmt: skip


def _value(s: Any, key: str, default: Any) -> Any:
    return s.look.extra.get(key, default)


def _get(key: str, default: Any) -> Any:
    return lambda s: s.look.extra.get(key, default)


def _set(key: str) -> Any:
    return lambda s, value: s.look.extra.update({key: value})


def _selected(s: Any) -> bool:
    return s.state.selected is not None


def target(s: Any) -> Target:
    """The active selection, as an edit names it."""
    state = s.state
    if state.selected is None:
        raise FeaturesplatError("edit: nothing is selected.", "Click something, or ask for it, first.")
    return Target.of(Selection(state.selected), state.scene)


def do(s: Any, edit: Edit) -> None:
    """Do an edit; the prompt's points and the gizmo belong to the scene before it."""
    s.pointer.forget_points()
    if s.pointer.gizmo.shown:
        s.pointer.gizmo.show(False)
    s.edit(edit)


def _history(s: Any, word: str) -> None:
    if s.pointer.gizmo.shown:
        s.pointer.gizmo.show(False)
    s.work(word, s.document.undo if word == "Undo" else s.document.redo)


def _duplicate(s: Any) -> None:
    right = s.app.extent * 0.15
    pose = s.pose()
    axis = pose.camera().viewmats[0, 0, :3].tolist() if pose else [1.0, 0.0, 0.0]
    do(s, Duplicate(target(s), translate=(axis[0] * right, axis[1] * right, axis[2] * right)))


def _scale(s: Any) -> None:
    do(s, Transform(target(s), scale=float(_value(s, SCALE, 1.0))))


def _recolor(s: Any) -> None:
    r, g, b = (round(255 * v) for v in _value(s, COLOR, (0.2, 0.45, 0.9)))
    do(s, Recolor(target(s), color=f"#{r:02x}{g:02x}{b:02x}"))


def _turn_hue(s: Any) -> None:
    do(s, Recolor(target(s), hue=float(_value(s, HUE, 60))))


def _fade(s: Any) -> None:
    do(s, Opacity(target(s), factor=float(_value(s, FADE, 0.5))))


def _insert(s: Any) -> None:
    source = str(_value(s, SOURCE, "")).strip()
    if not source:
        raise FeaturesplatError("insert: expected a run folder or a file, got nothing.", "Type where it lies.")
    do(s, Insert(Target(), source=source))


def _understood(s: Any) -> str:
    sentence = str(_value(s, SENTENCE, "")).strip()
    if not sentence:
        return ""
    try:
        return "Understood: " + "; ".join(str(plan) for plan in language.parse(sentence, s.scene))
    except FeaturesplatError as error:
        return f"{error.message.rstrip('.')}. {error.hint}"


def say(s: Any) -> None:
    """Do what the sentence says, one edit after the other."""
    plans = language.parse(str(_value(s, SENTENCE, "")), s.scene)
    for plan in plans:
        do(s, plan.edit)


def _target(s: Any) -> str:
    selected = s.state.selected  # read once: others may change it meanwhile
    if selected is None:
        return "Select something first: by words in Ask, by pointing in Select."
    return f"On the selection: {int(selected.sum()):,} Gaussians."


def _list(s: Any) -> str:
    lines = [f"{i + 1}. {edit.describe()}" for i, edit in enumerate(s.state.edits)]
    lines += [f"(undone) {edit.describe()}" for edit in s.state.undone]
    return "\n".join(lines) or "No edits yet."


def _waiting(s: Any) -> str:
    count = len(s.state.waiting)
    if count:
        return f"{count} edit{'s' if count > 1 else ''} wait for the training's pause."
    return "The training is running: edits wait for a pause." if s.document.busy() else ""


def _file(s: Any, word: str) -> None:
    name = str(_value(s, FILE, "edits"))
    if word == "Save list":
        path = export_edits(s.app, name)
        s.say("Edits saved", f"{path}\nfeaturesplat edit RUN {path.name} does them again.")
        return
    s.work("Loading edits", lambda: load(s, name))


def load(s: Any, name: str) -> None:
    """Do the edits of a list that lies in the folder of exports."""
    from pathlib import Path

    from ..takeaway import checked_file_name

    folder = (s.app.folder or Path.cwd()) / "exports"
    edits = load_edits(folder / f"{checked_file_name(name.removesuffix('.yaml'))}.yaml")
    for edit in edits:
        s.document.apply(edit)
    s.say("Edits done", f"{len(edits)} edits of {name}")
