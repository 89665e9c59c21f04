"""Edits: what each does to renders and Gaussians, undo and redo to the bit, files, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from table_scene import BALL, BOX, make_world, same_scene
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat, sh_bases
from featuresplat.prompts import _colors, _spherical
from featuresplat.prompts.edits import Duplicate, Edited, Extract, Insert, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target, select_text
from featuresplat.scene import Scene
from featuresplat.types import Cameras


def rgb(scene: Scene, camera: Cameras) -> Tensor:
    out = scene.render(camera, backend="reference").rgb
    assert out is not None
    return out[0]


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
        assert same_scene(done.undo(), kept[k - 1])
        assert done.undone[0] == steps[k - 1]
    assert done.scene is asked
    for k in range(len(steps)):
        assert same_scene(done.redo(), kept[k + 1])
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
