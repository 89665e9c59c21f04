"""Edits: what each does to renders and Gaussians, undo and redo to the bit, files, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from table_scene import NAMES, make_world, with_field
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat, sh_bases
from featuresplat.prompts import _colors, _spherical, edits
from featuresplat.prompts.edit_files import edit_from_dict, load_edits, save_edits
from featuresplat.prompts.edits import (
    Duplicate,
    Edit,
    Edited,
    Extract,
    Insert,
    Opacity,
    Recolor,
    Remove,
    Transform,
)
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target, select_text
from featuresplat.scene import Scene
from featuresplat.types import Cameras

BALL, BOX = Target(text="red ball"), Target(text="blue box")


def rgb(scene: Scene, camera: Cameras) -> Tensor:
    out = scene.render(camera, backend="reference").rgb
    assert out is not None
    return out[0]


def same(a: Scene, b: Scene) -> bool:
    """Bit-identical Gaussians, fields and state."""
    tensors = [(x, y) for x, y in zip(a.gaussians.tensors().values(), b.gaussians.tensors().values(), strict=True)]
    tensors += [(a.fields[k].codes, b.fields[k].codes) for k in a.fields]
    return all(torch.equal(x, y) for x, y in tensors)


def test_remove_takes_the_object_and_nothing_else(asked, world):
    labels = world[1]
    before = {k: v.clone() for k, v in asked.gaussians.tensors().items()}
    after = Remove(BALL).apply(asked)
    gone = len(asked.gaussians) - len(after.gaussians)
    assert abs(gone - int((labels == 2).sum())) < 30
    assert len(after.fields["truth"].codes) == len(after.gaussians)
    assert all(torch.equal(v, asked.gaussians.tensors()[k]) for k, v in before.items())  # the scene itself is untouched


def test_extract_keeps_nothing_else(asked, world):
    after = Extract(Target(text="green ball")).apply(asked)
    assert abs(len(after.gaussians) - int((world[1] == 4).sum())) < 30
    mean = after.gaussians.colors.mean(0)
    assert float(mean[1]) > float(mean[0]) + 0.3


def test_removing_everything_is_refused(asked):
    with pytest.raises(FeaturesplatError, match="whole scene"):
        Remove().apply(asked)


def test_undo_and_redo_are_bit_identical(asked):
    done = Edited(asked)
    steps = [
        Recolor(BALL, hue=40.0),
        Transform(BALL, translate=(0.1, 0.2, 0.3), rotate=(0.9, 0.1, 0.2, 0.3), scale=1.2),
        Duplicate(BOX, translate=(0.0, 0.0, 1.0)),
        Opacity(BOX, factor=0.3),
        Remove(BALL),
    ]
    seen = [asked] + [done.apply(e) for e in steps]
    kept = [replace(s, gaussians=s.gaussians.map(torch.clone)) for s in seen]
    assert done.edits == tuple(steps)
    for k in range(len(steps), 0, -1):
        assert same(done.undo(), kept[k - 1])
        assert done.undone[0] == steps[k - 1]
    assert done.scene is asked
    for k in range(len(steps)):
        assert same(done.redo(), kept[k + 1])
    with pytest.raises(FeaturesplatError, match="nothing has been undone"):
        done.redo()
    done.undo()
    done.apply(Opacity(BOX, factor=2.0))
    assert done.undone == ()
    for _ in range(5):
        done.undo()
    with pytest.raises(FeaturesplatError, match="nothing has been done"):
        done.undo()


def test_an_edit_that_fails_changes_nothing(asked):
    done = Edited(asked)
    done.apply(Remove(BALL))
    with pytest.raises(FeaturesplatError):
        done.apply(Remove())
    assert done.edits == (Remove(BALL),)


def test_what_is_not_changed_is_shared(asked):
    after = Recolor(BALL, color="blue").apply(asked)
    assert after.gaussians.means is asked.gaussians.means
    assert after.fields is asked.fields or after.fields["truth"].codes is asked.fields["truth"].codes


# Transform


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_turning_a_whole_scene_is_turning_the_cameras_the_other_way(degree):
    """Rendered: view-dependent colours, shapes and places turn together."""
    scene, _ = make_world(sh_degree=degree, size=(64, 48))
    g = torch.Generator().manual_seed(degree)
    scene = replace(
        scene, gaussians=replace(scene.gaussians, shN=0.2 * torch.randn(scene.gaussians.shN.shape, generator=g))
    )
    rotation, pivot, move, scale = (0.8, 0.3, -0.4, 0.2), (0.2, -0.1, 0.3), (0.3, 0.1, -0.2), 1.3
    after = Transform(translate=move, rotate=rotation, scale=scale, pivot=pivot).apply(scene)
    R = quat_to_rotmat(torch.tensor(rotation).double())
    p, t = torch.tensor(pivot).double(), torch.tensor(move).double()
    # A point x goes to s R (x - p) + p + t; a camera that goes along sees the same, s times as far.
    camera = scene.cameras[2]
    c2w = camera.c2w[0]
    moved = torch.eye(4).double()
    moved[:3, :3] = R @ c2w[:3, :3]
    moved[:3, 3] = scale * R @ (c2w[:3, 3] - p) + p + t
    along = replace(camera, viewmats=torch.linalg.inv(moved)[None])
    assert torch.allclose(rgb(after, along), rgb(scene, camera), atol=2e-3)
    assert not torch.allclose(rgb(after, camera), rgb(scene, camera), atol=2e-2)


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_turned_harmonics_are_the_function_turned(degree):
    g = torch.Generator().manual_seed(0)
    R = quat_to_rotmat(torch.randn(4, generator=g, dtype=torch.float64))
    coefficients = torch.randn((degree + 1) ** 2, generator=g, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=g, dtype=torch.float64), dim=1)
    turned = _spherical.rotation_of_bands(R, degree) @ coefficients
    assert torch.allclose(sh_bases(directions @ R.T, degree) @ turned, sh_bases(directions, degree) @ coefficients)


def test_a_turn_about_itself_stays_in_place(asked, world):
    ball = world[1] == 2
    target = Target.of(Selection(ball), asked)
    after = Transform(target, rotate=(math.cos(0.4), 0.0, 0.0, math.sin(0.4))).apply(asked)
    middle = after.gaussians.means[ball].mean(0) - asked.gaussians.means[ball].mean(0)
    assert float(middle.abs().max()) < 1e-5
    assert torch.equal(after.gaussians.means[~ball], asked.gaussians.means[~ball])
    assert float((after.gaussians.means[ball] - asked.gaussians.means[ball]).norm(dim=1).max()) > 0.1


def test_scaling_scales_places_and_sizes(asked, world):
    ball = world[1] == 2
    after = Transform(Target.of(Selection(ball), asked), scale=2.0).apply(asked)
    spread = after.gaussians.means[ball].std(0) / asked.gaussians.means[ball].std(0)
    assert torch.allclose(spread, torch.full((3,), 2.0), atol=1e-3)
    assert torch.allclose(after.gaussians.scales[ball], 2 * asked.gaussians.scales[ball], rtol=1e-5)


@pytest.mark.parametrize("edit", [Transform(scale=0.0), Transform(scale=-1.0), Transform(rotate=(0.0, 0.0, 0.0, 0.0))])
def test_a_transform_that_makes_no_sense(asked, edit):
    with pytest.raises(FeaturesplatError, match="positive factor"):
        edit.apply(asked)


# Colour


def test_a_colour_map_holds_in_every_view(world):
    """Affine maps commute with blending: the render of the edited scene is the edited render (where nothing clips)."""
    scene = world[0]
    edit = Recolor(hue=30.0, saturation=0.7, lightness=0.9, shift=(0.02, 0.0, -0.02))
    matrix, offset = edit.color_map(scene.gaussians.colors.clamp(0, 1), scene.gaussians.opacities)
    after = edit.apply(scene)
    alpha = scene.render(scene.cameras[1], backend="reference").alpha[0]
    expected = rgb(scene, scene.cameras[1]) @ matrix.T + offset * alpha
    inside = ((expected > 0.02) & (expected < 0.98)).all(-1)
    assert float(inside.float().mean()) > 0.3
    assert float((rgb(after, scene.cameras[1]) - expected).abs()[inside].mean()) < 5e-3


def test_hues_turn_and_lightness_stays():
    red = torch.tensor([0.8, 0.2, 0.2])
    third = _colors.hue_matrix(120.0) @ red
    assert int(third.argmax()) == 1
    for degrees in (30.0, 120.0, 200.0):
        assert float(_colors.LUMA @ (_colors.hue_matrix(degrees) @ red)) == pytest.approx(float(_colors.LUMA @ red))
        assert torch.allclose(_colors.hue_matrix(degrees) @ torch.ones(3), torch.ones(3), atol=1e-6)
    assert torch.allclose(_colors.hue_matrix(360.0), torch.eye(3), atol=1e-5)
    assert torch.allclose(_colors.saturation_matrix(0.0) @ red, torch.full((3,), float(_colors.LUMA @ red)))


def test_a_given_colour_is_met_on_average_and_shading_stays(asked, world):
    ball = world[1] == 2
    after = Recolor(Target.of(Selection(ball), asked), color="#2040c0").apply(asked)
    mean = after.gaussians.colors[ball].mean(0)
    assert mean.tolist() == pytest.approx([0x20 / 255, 0x40 / 255, 0xC0 / 255], abs=0.02)
    assert torch.equal(after.gaussians.sh0[~ball], asked.gaussians.sh0[~ball])
    luma = asked.gaussians.colors[ball].clamp(0, 1) @ _colors.LUMA
    assert float(torch.corrcoef(torch.stack([luma, after.gaussians.colors[ball] @ _colors.LUMA]))[0, 1]) > 0.95


def test_half_a_change_is_half_the_way(asked):
    whole, half = (Recolor(BALL, color="blue", strength=s).apply(asked).gaussians.sh0 for s in (1.0, 0.5))
    assert torch.allclose(half, (whole + asked.gaussians.sh0) / 2, atol=1e-5)
    assert torch.allclose(
        Recolor(BALL, color="blue", strength=0.0).apply(asked).gaussians.sh0, asked.gaussians.sh0, atol=1e-6
    )


def test_colours_by_name():
    assert _colors.color_of("dark blue").tolist() == pytest.approx([0, 0, 139 / 255])
    assert _colors.color_of("#f80").tolist() == pytest.approx([1, 136 / 255, 0])
    assert not _colors.is_color("mug")
    with pytest.raises(FeaturesplatError, match="none called 'bleu'"):
        _colors.color_of("bleu")


# Copies and others


def test_a_duplicate_stands_beside(asked, world):
    ball = world[1] == 2
    after = Duplicate(Target.of(Selection(ball), asked), translate=(0.0, 0.0, 1.0)).apply(asked)
    count = int(ball.sum())
    assert len(after.gaussians) == len(asked.gaussians) + count
    moved = after.gaussians.means[-count:] - asked.gaussians.means[ball]
    assert torch.allclose(moved, torch.tensor([0.0, 0.0, 1.0]).expand_as(moved), atol=1e-5)
    assert torch.equal(after.fields["truth"].codes[-count:], asked.fields["truth"].codes[ball])
    assert torch.equal(after.gaussians.means[:-count], asked.gaussians.means)


def test_inserting_another_run_and_a_file(asked, world, tmp_path):
    asked.save(tmp_path / "other")
    after = Insert(Target(text="green ball"), source=str(tmp_path / "other"), translate=(0.0, 0.0, 2.0)).apply(asked)
    fresh = len(after.gaussians) - len(asked.gaussians)
    assert abs(fresh - int((world[1] == 4).sum())) < 30
    assert float(after.gaussians.means[-fresh:, 2].mean()) > 1.8
    # It can be asked for, as its field says the same.
    assert select_text(after, "green ball", whole=False).count > 1.8 * int((world[1] == 4).sum())
    whole = Insert(source=str(tmp_path / "other" / "gaussians.ply")).apply(asked)
    assert len(whole.gaussians) == 2 * len(asked.gaussians)
    assert float(whole.fields["truth"].codes[-1].abs().max()) == 0


def test_inserting_nothing(asked, tmp_path):
    with pytest.raises(FeaturesplatError, match="got none"):
        Insert().apply(asked)
    with pytest.raises(FeaturesplatError, match="no run folder or file"):
        Insert(source=str(tmp_path / "none.ply")).apply(asked)


def test_opacity(asked, world):
    ball = world[1] == 2
    target = Target.of(Selection(ball), asked)
    fainter = Opacity(target, factor=0.5).apply(asked).gaussians.opacities
    assert torch.allclose(fainter[ball], 0.5 * asked.gaussians.opacities[ball], atol=1e-5)
    assert torch.equal(fainter[~ball], asked.gaussians.opacities[~ball])
    gone = Opacity(target, factor=0.0).apply(asked).gaussians.opacities
    assert float(gone[ball].max()) < 1e-5
    assert float(Opacity(target, factor=100.0).apply(asked).gaussians.opacities[ball].min()) > 0.999
    with pytest.raises(FeaturesplatError, match="at least 0"):
        Opacity(target, factor=-1.0).apply(asked)


# Files


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
    assert same(edits.apply_all(asked, load_edits(tmp_path / "e.yaml")), done.scene)


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


# Targets


def test_a_stored_selection_fits_its_scene_only(asked, world):
    target = Target.of(Selection(world[1] == 2), asked)
    assert torch.equal(target.select(asked).mask, world[1] == 2)
    assert Target.from_dict(target.to_dict()) == target
    other = Remove(BOX).apply(asked)
    with pytest.raises(FeaturesplatError, match="another scene"):
        target.select(other)
    for damaged in ("x", "5:abc:!!", target.gaussians[:-20], target.gaussians.replace(":", ";")):
        with pytest.raises(FeaturesplatError, match=r"damaged|another scene"):
            Target(gaussians=damaged).select(asked)


def test_a_target_in_a_photograph_counts_in_its_full_size(asked, world):
    """The fixture's photographs are twice as large as its cameras."""
    camera = asked.cameras[0]
    at = (asked.gaussians.means[world[1] == 2].mean(0).double() + torch.tensor([0, 0, 0.1])) @ camera.viewmats[
        0, :3, :3
    ].T
    pixel = camera.Ks[0] @ ((at + camera.viewmats[0, :3, 3]) / (at + camera.viewmats[0, :3, 3])[2])
    x, y = (2 * pixel[:2]).tolist()
    for name in ("view_00.png", "view_00"):
        found = Target(view=name, points=((x, y, 1),)).select(asked).mask
        assert float((world[1][found] == 2).float().mean()) > 0.9


def test_text_finds_whole_objects(asked, world):
    """A field that is wrong for a third of an object still means all of it."""
    labels = world[1]
    field = asked.fields["truth"]
    codes = field.codes.clone()
    ball = (labels == 2).nonzero()[:, 0]
    codes[ball[::3]] = field.text.vectors[1]
    wrong = replace(asked, fields={"truth": replace(field, codes=codes)})
    whole, parts = (select_text(wrong, "red ball", whole=w).mask for w in (True, False))
    assert float(whole[ball].float().mean()) > 0.95
    assert float(parts[ball].float().mean()) < 0.75


def test_text_finds_the_large_thing_that_it_finds_a_third_of(asked, world):
    """Not the small one that it mistakes for it."""
    scene, labels = world
    taken = torch.where((labels == 4) | ((labels == 1) & (torch.arange(len(labels)) % 5 < 2)), 1, 0)
    found = select_text(with_field(replace(scene, fields={}), taken), NAMES[1])
    flat = labels == 1
    assert float(found.mask[flat].float().mean()) > 0.85
    assert float(found.mask[labels == 4].float().mean()) < 0.2
    few = torch.where((labels == 1) & (torch.arange(len(labels)) % 10 == 0), 1, 0)
    alone = select_text(with_field(replace(scene, fields={}), few), NAMES[1])
    assert float(alone.mask[flat].float().mean()) < 0.3  # a tenth is no table


def test_nothing_of_it_is_there(asked):
    with pytest.raises(FeaturesplatError, match="nothing of it is found"):
        Target(text="background").select(asked)
    with pytest.raises(FeaturesplatError, match="none called 'x'"):
        Target(view="x", box=(1.0, 2.0, 30.0, 40.0)).select(asked)


def test_names_are_distinct():
    assert len(set(NAMES)) == len(NAMES)
    scene, labels = make_world(sh_degree=0, size=(32, 24))
    assert with_field(scene, labels).fields["truth"].text is not None
