"""A finished scene that moves: what it answers, and edits in time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.export import export_run
from featuresplat.modes import dynamic
from featuresplat.modes._motion.codes import carried_by_nodes, on_nodes
from featuresplat.modes._motion.edits import Echo, Freeze, Retime, understands
from featuresplat.modes._motion.trace import carry
from featuresplat.modes._motion.whole import read_whole, write_whole
from featuresplat.points import gaussians_from_points
from featuresplat.prompts.edit_files import edit_from_dict
from featuresplat.prompts.edits import Insert, Transform, known_kinds
from featuresplat.prompts.pieces import Pieces, _with_still_parts
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.scene import RenderRequest, Scene
from featuresplat.types import Cameras, FeatureField, PointCloud

TIMES = torch.linspace(0, 1, 5)


def turn(angle):
    return torch.stack([(angle / 2).cos(), 0 * angle, 0 * angle, (angle / 2).sin()], dim=-1)


def make_scene() -> Scene:
    """Four Gaussians: two hold still, one slides along x by 1, one turns about z by a quarter around the origin."""
    xyz = torch.tensor([[0.0, 0, 5], [1, 1, 5], [0, -1, 4], [1, 0, 4]])
    rgb = torch.tensor([[0.2, 0.2, 0.2], [0.4, 0.4, 0.4], [1, 0, 0], [0, 0, 1.0]])
    slide = torch.tensor([0.0, -1, 4]) + TIMES[:, None] * torch.tensor([1.0, 0, 0])
    angle = TIMES * math.pi / 2
    around = torch.stack([angle.cos(), angle.sin(), torch.full((5,), 4.0)], dim=1)
    quats = torch.stack([turn(0 * angle), turn(angle)])
    state = {
        "nodes.times": TIMES,
        "nodes.positions": torch.stack([slide, around]),
        "nodes.quats": quats,
        "nodes.log_radii": torch.zeros(2),
        "nodes.rest": torch.tensor([0]),
        "gaussian.nodes": torch.tensor([[0], [0], [1], [2]], dtype=torch.int32),
        "gaussian.weights": torch.tensor([[0.0], [0], [1], [1]]),
    }
    K = torch.tensor([[40.0, 0, 20], [0, 40, 15], [0, 0, 1]])
    cameras = Cameras(torch.eye(4)[None].repeat(2, 1, 1), K[None].repeat(2, 1, 1), 40, 30, torch.tensor([0.0, 1.0]))
    gaussians = gaussians_from_points(PointCloud(xyz, rgb), opacity=0.9)
    gaussians = replace(gaussians, log_scales=torch.full((4, 3), math.log(0.1)))
    return Scene(gaussians, cameras, mode="dynamic", mode_state=state)


def only(scene: Scene, *rows: int) -> Target:
    mask = torch.zeros(len(scene.gaussians), dtype=torch.bool)
    mask[list(rows)] = True
    return Target.of(Selection(mask), scene)


def test_still_ones_stay_and_moving_ones_follow_their_node():
    scene = make_scene()
    later = scene.at(0.5)
    assert torch.equal(later.means[:2], scene.gaussians.means[:2])
    assert torch.allclose(later.means[2], torch.tensor([0.5, -1, 4]), atol=1e-6)
    half = math.sqrt(0.5)
    assert torch.allclose(later.means[3], torch.tensor([half, half, 4]), atol=1e-6)
    assert torch.allclose(later.quats[3], turn(torch.tensor(math.pi / 4)), atol=1e-6)
    assert scene.at(None) is scene.gaussians


def test_between_frames_and_past_the_ends():
    scene = make_scene()
    assert torch.allclose(scene.at(0.3).means[2], torch.tensor([0.3, -1, 4]), atol=1e-6)
    # A turn stays on its circle between frames.
    assert float(scene.at(0.31).means[3, :2].norm()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(scene.at(7.0).means, scene.at(1.0).means)


def test_each_camera_is_rendered_at_its_own_time():
    scene = make_scene()
    both = scene.render(scene.cameras)
    alone = scene.render(replace(scene.cameras[0], times=torch.tensor([1.0])))
    assert torch.allclose(both.rgb[1], alone.rgb[0])
    assert not torch.allclose(both.rgb[0], both.rgb[1])


def test_a_finished_scene_comes_back_from_disk(tmp_path):
    scene = make_scene()
    scene.save(tmp_path / "run")
    again = Scene.load(tmp_path / "run")
    assert torch.allclose(again.at(0.6).means, scene.at(0.6).means, atol=1e-6)


def test_points_ride_on_what_moves():
    scene = make_scene()
    points = torch.tensor([[0.0, -1, 4], [1.1, 0, 4], [0, 0, 5]])
    paths = carry(scene, points, 0.0, [0.0, 1.0])
    assert torch.allclose(paths[:, 0], points, atol=1e-6)
    # The second lies 0.1 outside of the Gaussian that turns by a quarter.
    assert torch.allclose(paths[:, 1], torch.tensor([[1.0, -1, 4], [0, 1.1, 4], [0, 0, 5]]), atol=1e-5)


def test_freeze_holds_one_thing_and_lets_the_others_go():
    scene = make_scene()
    frozen = Freeze(only(scene, 2), time=0.5).apply(scene)
    for time in (0.0, 0.7, 1.0):
        assert torch.allclose(frozen.at(time).means[2], scene.at(0.5).means[2], atol=1e-6)
        assert torch.allclose(frozen.at(time).means[3], scene.at(time).means[3], atol=1e-6)
    assert torch.equal(scene.at(1.0).means, make_scene().at(1.0).means)  # the old one is untouched


def test_retime_turns_the_clock_and_clocks_add_up():
    scene = make_scene()
    back = Retime(only(scene, 2), speed=-1.0, offset=1.0).apply(scene)
    assert torch.allclose(back.at(0.25).means[2], scene.at(0.75).means[2], atol=1e-6)
    again = Retime(only(back, 2), speed=-1.0, offset=1.0).apply(back)
    assert torch.allclose(again.at(0.25).means, scene.at(0.25).means, atol=1e-6)
    slow = Retime(Target(), speed=0.5).apply(scene)
    assert torch.allclose(slow.at(1.0).means[2:], scene.at(0.5).means[2:], atol=1e-6)


def test_echo_is_a_copy_that_does_the_same_later_somewhere_else():
    scene = make_scene()
    both = Echo(only(scene, 2), translate=(0.0, 0.0, 1.0), delay=0.25).apply(scene)
    assert len(both.gaussians) == 5
    up = torch.tensor([0.0, 0, 1])
    assert torch.allclose(both.at(0.75).means[4], scene.at(0.5).means[2] + up, atol=1e-5)
    assert torch.allclose(both.at(0.75).means[:4], scene.at(0.75).means, atol=1e-6)


def test_a_move_is_the_same_move_at_every_time():
    """x(t) becomes A x(t): the turned, scaled and shifted picture of the whole motion."""
    scene = make_scene()
    half = math.sqrt(0.5)
    edit = Transform(
        only(scene, 3), translate=(0.0, 2.0, 0.0), rotate=(half, half, 0, 0), scale=2.0, pivot=(0.0, 0.0, 4.0)
    )
    moved = edit.apply(scene)
    R = torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    pivot, shift = torch.tensor([0.0, 0, 4]), torch.tensor([0.0, 2, 0])
    for time in (0.0, 0.4, 1.0):
        want = 2 * (scene.at(time).means[3] - pivot) @ R.T + pivot + shift
        assert torch.allclose(moved.at(time).means[3], want, atol=1e-5)
    twice = Transform(only(moved, 3), translate=(1.0, 0.0, 0.0)).apply(moved)
    assert torch.allclose(twice.at(0.4).means[3], moved.at(0.4).means[3] + torch.tensor([1.0, 0, 0]), atol=1e-5)
    assert torch.allclose(twice.at(0.4).quats[3], moved.at(0.4).quats[3], atol=1e-6)


def test_what_is_inserted_into_a_moving_scene_keeps_its_own_motion(tmp_path):
    scene, other = make_scene(), make_scene()
    other.mode_state["nodes.positions"] = other.mode_state["nodes.positions"] + torch.tensor([0.0, 3.0, 0.0])
    other = replace(other, gaussians=replace(other.gaussians, means=other.gaussians.means + torch.tensor([0, 3.0, 0])))
    other.save(tmp_path / "other")
    both = Insert(source=str(tmp_path / "other")).apply(scene)
    assert torch.allclose(both.at(0.6).means[:4], scene.at(0.6).means, atol=1e-6)
    assert torch.allclose(both.at(0.6).means[4:], other.at(0.6).means, atol=1e-5)


def test_rows_follow_and_a_scene_of_still_things_is_fine():
    scene = make_scene().rows(torch.tensor([0, 1]))
    assert torch.equal(scene.at(0.5).means, scene.gaussians.means)
    with pytest.raises(FeaturesplatError, match="holds still"):
        Freeze().apply(scene)


def test_time_out_of_range_and_the_wrong_kind_of_scene_are_refused():
    with pytest.raises(FeaturesplatError, match=r"0\.\.1"):
        Freeze(time=2.0).apply(make_scene())
    with pytest.raises(FeaturesplatError, match="no motion"):
        Retime().apply(replace(make_scene(), mode="static", mode_state={}))


def test_edits_in_time_are_data():
    assert {"freeze", "retime", "echo"} <= set(known_kinds())
    edit = Retime(Target(text="duck"), speed=2.0)
    assert edit_from_dict(edit.to_dict()) == edit


@pytest.mark.parametrize(
    ("said", "edit"),
    [
        ("freeze the duck", Freeze(Target(text="duck"))),
        ("Stop the rubber duck at 0.5", Freeze(Target(text="rubber duck"), time=0.5)),
        ("play the box backwards", Retime(Target(text="box"), speed=-1.0, offset=1.0)),
        ("make the duck twice as fast", Retime(Target(text="duck"), speed=2.0)),
        ("run the duck 3 times as fast", Retime(Target(text="duck"), speed=3.0)),
        ("delay the duck by .2", Retime(Target(text="duck"), offset=-0.2)),
        ("repeat the duck 0.3 later", Echo(Target(text="duck"), delay=0.3)),
        ("remove the duck", None),
        ("make the duck blue", None),
    ],
)
def test_sentences_about_time(said, edit):
    assert understands(said, make_scene()) == edit


def test_pictures_of_motion():
    scene = make_scene()
    trails = dynamic.picture(scene, scene.cameras, "trails", RenderRequest())
    speed = dynamic.picture(scene, scene.cameras, "motion", RenderRequest())
    assert trails.shape == speed.shape == (2, 30, 40, 3)
    plain = scene.render(scene.cameras).rgb.clamp(0, 1)
    assert float((trails[0] - plain[0]).abs().max()) < 0.01  # at time 0 nothing has moved yet
    assert float((trails[1] - plain[1]).abs().max()) > 0.2


def test_the_report_has_a_section_over_time():
    (title, page), *more = dynamic.report(replace(make_scene(), info={"split": {"train": ["", ""]}}))
    assert title == "Over time"
    assert not more
    assert page.count("<img") == 6


def with_field(scene: Scene) -> Scene:
    codes = torch.tensor([[1.0, 0], [0, 1], [2, 3], [4, 5]])
    return replace(scene, fields={"words": FeatureField(codes, "precomputed")})


def test_codes_on_nodes_are_the_gaussians_own_where_each_has_its_node():
    scene = with_field(make_scene())
    field = scene.fields["words"]
    assert torch.allclose(on_nodes(scene, field), field.codes[2:], atol=1e-2)
    carried = carried_by_nodes(scene, field)
    assert torch.equal(carried.codes[:2], field.codes[:2])
    assert torch.allclose(carried.codes, field.codes, atol=1e-2)


def test_a_node_without_any_gaussian_takes_the_mean():
    scene = with_field(make_scene())
    scene.mode_state["gaussian.nodes"] = torch.tensor([[0], [0], [1], [1]], dtype=torch.int32)
    codes = on_nodes(scene, scene.fields["words"])
    assert torch.allclose(codes[0], torch.tensor([3.0, 4]), atol=1e-2)
    assert torch.allclose(codes[1], torch.tensor([3.0, 4]), atol=1e-2)


def test_the_whole_motion_in_one_file(tmp_path):
    scene = with_field(Retime(Target(), speed=-1.0, offset=1.0).apply(make_scene()))
    scene.save(tmp_path / "run")
    assert export_run(tmp_path / "run", tmp_path / "all.motion.safetensors") == 4
    again = read_whole(tmp_path / "all.motion.safetensors", like=make_scene())
    assert torch.allclose(again.at(0.3).means, scene.at(0.3).means)
    assert torch.allclose(again.fields["words"].codes, scene.fields["words"].codes, atol=1e-2)


def test_a_sequence_of_files_and_one_time(tmp_path):
    scene = make_scene()
    scene.save(tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "walk.ply", frames=3)
    middle = Scene.load(tmp_path / "walk_0001.ply").gaussians
    assert torch.allclose(middle.means, scene.at(0.5).means, atol=1e-6)
    assert sorted(p.name for p in tmp_path.glob("walk_*.ply")) == ["walk_0000.ply", "walk_0001.ply", "walk_0002.ply"]
    export_run(tmp_path / "run", tmp_path / "end.ply", time=1.0)
    assert torch.allclose(Scene.load(tmp_path / "end.ply").gaussians.means, scene.at(1.0).means, atol=1e-6)
    for time in (1.5, -0.1, float("nan")):
        with pytest.raises(FeaturesplatError, match=r"expected 0\.\.1"):
            export_run(tmp_path / "run", tmp_path / "never.ply", time=time)
    assert not (tmp_path / "never.ply").exists()


def test_a_still_scene_has_no_motion_to_write(tmp_path):
    with pytest.raises(FeaturesplatError, match="no nodes"):
        write_whole(replace(make_scene(), mode="static", mode_state={}), tmp_path / "x.motion.safetensors")
    make_scene().save(tmp_path / "run")
    with pytest.raises(FeaturesplatError, match="frames"):
        export_run(tmp_path / "run", tmp_path / "x.ply", frames=1)
    replace(make_scene(), mode="static", mode_state={}).save(tmp_path / "still")
    for asked in ({"time": 0.5}, {"frames": 3}):
        with pytest.raises(FeaturesplatError, match="holds still, it has no times"):
            export_run(tmp_path / "still", tmp_path / "x.ply", **asked)
    assert not list(tmp_path.glob("x*"))


def test_what_moves_as_one_is_one_body():
    scene = make_scene()
    away = TIMES[:, None] * torch.tensor([-5.0, 0, 0])
    scene.mode_state["nodes.positions"][1] += away
    assert dynamic.bodies(scene).tolist() == [-1, -1, 0, 1]
    scene.mode_state["nodes.positions"][1] = scene.mode_state["nodes.positions"][0] + torch.tensor([0.5, 0, 0])
    assert dynamic.bodies(scene).tolist() == [-1, -1, 0, 0]


def test_the_foot_that_holds_still_belongs_to_what_moves():
    """Piece 1 holds three that move as body 0 and one that holds still; piece 2 holds two bodies and a still one."""
    ids = torch.tensor([1, 1, 1, 1, 2, 2, 2, 0])
    pieces = Pieces(torch.nn.functional.one_hot(ids, 4).float(), torch.tensor([9, 4, 3, 1]), None)
    bodies = torch.tensor([0, 0, 0, -1, 1, 2, -1, -1])
    assert _with_still_parts(bodies, 3, pieces).tolist() == [0, 0, 0, 0, 1, 2, -1, -1]


def test_a_still_part_that_is_large_is_a_thing_of_its_own():
    """Three that move on two that hold still: a cover that opens, and its book."""
    ids = torch.tensor([1, 1, 1, 1, 1, 0])
    pieces = Pieces(torch.nn.functional.one_hot(ids, 3).float(), torch.tensor([9, 5, 1]), None)
    assert _with_still_parts(torch.tensor([0, 0, 0, -1, -1, -1]), 1, pieces).tolist() == [0, 0, 0, -1, -1, -1]
