"""Edits as files: there and back, replayed, written by hand, and what cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from table_scene import BALL, BOX, same_scene

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import edits
from featuresplat.prompts.edit_files import edit_from_dict, load_edits, save_edits
from featuresplat.prompts.edits import Duplicate, Edit, Edited, Extract, Insert, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target

EVERY = [
    Remove(BALL),
    Remove(BALL, fill=True),
    Extract(Target(text="bowl", field="clip", threshold=0.7, whole=False)),
    Recolor(Target(view="a.png", points=((1.0, 2.5, 1), (3.0, 4.0, 0))), color="blue", shift=(0.1, 0.0, 0.0)),
    Transform(Target(view="a.png", box=(1.0, 2.0, 3.0, 4.0)), translate=(1.0, 2.0, 3.0), pivot=(0.0, 0.0, 1.0)),
    Duplicate(rotate=(0.0, 1.0, 0.0, 0.0), scale=0.5),
    Insert(source="runs/x"),
    Opacity(factor=0.25),
]


def test_edits_come_back_from_a_file(tmp_path):
    save_edits(tmp_path / "edits.yaml", EVERY)
    assert load_edits(tmp_path / "edits.yaml") == EVERY
    assert {e.kind for e in EVERY} == set(edits.KINDS)
    assert all(e.describe().startswith(e.kind) for e in EVERY)


def test_replaying_a_file_gives_the_same_scene(asked, world, tmp_path):
    stored = Target.of(Selection(world[1] == 4, "green"), asked)
    steps = [Remove(BALL), Recolor(BOX, hue=90.0)]
    steps.insert(0, Opacity(stored, factor=0.5))
    done = Edited(asked)
    for step in steps:
        done.apply(step)
    save_edits(tmp_path / "e.yaml", done.edits)
    assert same_scene(edits.apply_all(asked, load_edits(tmp_path / "e.yaml")), done.scene)


def test_a_file_as_a_person_writes_it(tmp_path):
    (tmp_path / "e.yaml").write_text(
        "- {kind: remove, target: the mug}\n"
        "- kind: transform\n  target: {text: duck}\n  translate: [0, 0, 1]\n  scale: 2\n"
    )
    assert load_edits(tmp_path / "e.yaml") == [
        Remove(Target(text="the mug")),
        Transform(Target(text="duck"), translate=(0.0, 0.0, 1.0), scale=2.0),
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no YAML"),
        ("a: 1", "no list of edits"),
        ("[]", "no list of edits"),
        ("format: 99\nedits: [{kind: remove}]", "of format 99"),
        ("- 3", "entries with a kind"),
        ("- {kind: remov}", "no kind 'remov'"),
        ("- {kind: remove, fil: true}", "has no 'fil'"),
        ("- {kind: remove, fill: 3}", "fill: expected bool"),
        ("- {kind: transform, scale: big}", "scale: expected number"),
        ("- {kind: transform, translate: [1, 2]}", "translate: expected"),
        ("- {kind: transform, translate: [1, 2, .nan]}", "translate: expected"),
        ("- {kind: recolor, color: 7}", "color: expected str"),
        ("- {kind: remove, target: {txt: a}}", "cannot read txt"),
        ("- {kind: remove, target: 3}", "cannot read 3"),
        ("- {kind: remove, target: {text: [1]}}", "text cannot be"),
        ("- {kind: remove, target: {points: [[1, 2]]}}", "none is named"),
        ("- {kind: remove, target: {box: [1, 2, 3], view: a}}", "box cannot be"),
        ("- {kind: remove, target: {text: a, box: [1, 2, 3, 4], view: a}}", "one way"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ],
)
def test_files_that_are_none(tmp_path, content, said):
    (tmp_path / "e.yaml").write_text(content)
    with pytest.raises(FeaturesplatError, match=said):
        load_edits(tmp_path / "e.yaml")


def test_no_file(tmp_path):
    with pytest.raises(FeaturesplatError, match="no such file"):
        load_edits(tmp_path / "none.yaml")


def test_modes_bring_kinds_of_their_own(asked, monkeypatch):
    """A mode's module may have EDITS, and say how its own tensors move."""

    @dataclass(frozen=True)
    class Freeze(Edit):
        kind: ClassVar[str] = "freeze"
        time: float = 0.0

        def apply(self, scene):
            return replace(scene, info={**scene.info, "frozen": self.time})

    static = registry.load("modes", "static")
    monkeypatch.setattr(static, "EDITS", {"freeze": Freeze}, raising=False)
    monkeypatch.setattr(static, "moved", lambda *a: {"gaussian.seen": a[1].float()}, raising=False)
    edit = edit_from_dict({"kind": "freeze", "time": 0.5})
    assert edit.apply(asked).info["frozen"] == 0.5
    moved = Transform(BALL, translate=(1.0, 0.0, 0.0)).apply(asked)
    assert float(moved.mode_state["gaussian.seen"].sum()) > 600
