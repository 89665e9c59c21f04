"""Points, boxes and strokes: the right object, in every view; and what cannot be pointed at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from table_scene import NAMES, iou, make_world, true_mask

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import pieces, spatial
from featuresplat.prompts.selection import Selection
from featuresplat.types import Cameras

OBJECTS = range(2, len(NAMES))


def middle(mask: torch.Tensor) -> tuple[float, float]:
    """A pixel of a mask near its middle."""
    at = mask.nonzero().float()
    y, x = at[(at - at.mean(0)).norm(dim=1).argmin()].tolist()
    return x + 0.5, y + 0.5


def around(mask: torch.Tensor) -> tuple[float, float, float, float]:
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(cols[0]), float(rows[0]), float(cols[-1]) + 1, float(rows[-1]) + 1


def test_the_pieces_are_the_objects(world):
    scene, labels = world
    found = pieces.pieces_of(scene, scene.gaussians)
    assert found.plane is not None
    assert abs(float(found.plane[0][2])) > 0.99  # the table is level
    assert abs(float(found.plane[1][2])) < 0.05
    assert len(found.objects) == 3
    seen, above = found.ids, scene.gaussians.means[:, 2] > 0.03  # what lies in the table's top is as good as hidden
    for label in OBJECTS:
        ids = seen[(labels == label) & above]
        most = ids.mode().values
        assert int(most) in found.objects
        assert float((ids == most).float().mean()) > 0.9
    assert float((seen[labels == 1] == 0).float().mean()) > 0.85
    assert pieces.pieces_of(scene, scene.gaussians) is found


def test_pieces_follow_an_edit(world):
    scene = world[0]
    before = pieces.pieces_of(scene, scene.gaussians)
    keep = torch.arange(len(scene.gaussians)) % 2 == 0
    fewer = scene.rows(keep)
    pieces.inherit(scene.gaussians.means, fewer.gaussians.means, keep)
    after = pieces.pieces_of(fewer, fewer.gaussians)
    assert torch.equal(after.scores, before.scores[keep])


def test_a_scene_without_a_support_falls_apart_by_itself(world):
    scene, labels = world
    floating = scene.rows(labels > 1)
    found = pieces.pieces_of(floating, floating.gaussians)
    assert not found.found
    ids = found.ids
    names = {int(ids[labels[labels > 1] == label].mode().values) for label in OBJECTS}
    assert len(names) == 3


def test_almost_nothing_is_one_piece(world):
    few = world[0].rows(torch.arange(1700, 1705))
    found = pieces.pieces_of(few, few.gaussians)
    assert found.ids.tolist() == [1] * 5


@pytest.mark.parametrize("label", OBJECTS)
def test_a_click_is_the_object_in_all_views(world, label):
    scene, labels = world
    camera = scene.cameras[0]
    found = spatial.select_points(scene, camera, [middle(true_mask(scene, labels, camera, label))])
    assert isinstance(found.selection, Selection)
    assert found.scores.shape == (len(labels),)
    for i in range(1, 10, 2):
        truth = true_mask(scene, labels, scene.cameras[i], label)
        assert iou(found.masks(scene.cameras[i]), truth) > 0.8
    assert float((found.points[0] - scene.gaussians.means[labels == label].mean(0)).norm()) < 0.6


@pytest.mark.parametrize("label", OBJECTS)
def test_a_box_is_the_object_in_it(world, label):
    scene, labels = world
    camera = scene.cameras[3]
    found = spatial.select_points(scene, camera, box=around(true_mask(scene, labels, camera, label)))
    above = scene.gaussians.means[:, 2] > 0.03
    mask, truth = found.selection.mask & above, (labels == label) & above
    assert float((mask & truth).sum() / (mask | truth).sum()) > 0.85


def test_the_table_can_be_clicked_too(world):
    scene, labels = world
    camera = scene.cameras[0]
    found = spatial.select_points(scene, camera, [middle(true_mask(scene, labels, camera, 1))])
    assert iou(found.masks(camera), true_mask(scene, labels, camera, 1)) > 0.8


def test_points_add_and_subtract(world):
    scene, labels = world
    camera = scene.cameras[0]
    masks = {k: true_mask(scene, labels, camera, k) for k in OBJECTS}
    both = spatial.select_points(scene, camera, [middle(masks[2]), middle(masks[3])]).selection
    assert iou(spatial.mask_of(scene, camera, both), masks[2] | masks[3]) > 0.8
    less = spatial.select_points(
        scene, camera, [middle(masks[2]), middle(masks[3])], [0, 1], box=around(masks[2] | masks[3])
    ).selection
    assert iou(spatial.mask_of(scene, camera, less), masks[3]) > 0.8


def test_pixels_are_those_of_the_camera_given(world):
    """The same place named in an image of twice the size."""
    scene, labels = world
    camera = scene.cameras[0]
    x, y = middle(true_mask(scene, labels, camera, 2))
    large = camera.resized(2 * camera.width, 2 * camera.height)
    a = spatial.select_points(scene, camera, [(x, y)]).selection
    b = spatial.select_points(scene, large, [(2 * x, 2 * y)]).selection
    assert torch.equal(a.mask, b.mask)
    assert spatial.mask_of(scene, large, a).shape == (2 * camera.height, 2 * camera.width)


def test_a_point_within_one_piece_and_one_outside_split_it(world, monkeypatch):
    """Where pieces leave it open, the graph of Gaussians decides between what is meant and what is not."""
    scene, labels = world
    monkeypatch.setattr(spatial, "_by_pieces", lambda *_: None)
    camera = scene.cameras[0]
    ball, box = (middle(true_mask(scene, labels, camera, k)) for k in (2, 3))
    table = middle(true_mask(scene, labels, camera, 1))
    found = spatial.select_points(scene, camera, [ball, box, table], [1, 0, 0]).selection.mask
    truth = labels == 2
    assert float((found & truth).sum() / (found | truth).sum()) > 0.7


def test_picking_finds_the_surface(world):
    scene, labels = world
    camera = scene.cameras[0]
    x, y = middle(true_mask(scene, labels, camera, 2))
    place = spatial.pick(scene, camera, x, y).double()
    assert abs(float((place - torch.tensor([-0.6, 0.1, 0.33])).norm()) - 0.33) < 0.08
    local = camera.viewmats[0, :3, :3] @ place + camera.viewmats[0, :3, 3]
    pixel = camera.Ks[0] @ (local / local[2])
    assert pixel[:2].tolist() == pytest.approx([x, y], abs=1e-3)


def test_a_stroke_takes_what_shows_under_it_and_nothing_behind(world):
    scene, labels = world
    camera = scene.cameras[0]
    mask = true_mask(scene, labels, camera, 2)
    found = spatial.brush(scene, camera, mask).selection.mask
    assert float((labels[found] == 2).float().mean()) > 0.9
    # Only the side that is turned to the camera.
    means = scene.gaussians.means.double()
    depth = (means @ camera.viewmats[0, 2, :3])[found]
    ball = means[labels == 2] @ camera.viewmats[0, 2, :3]
    assert float(depth[labels[found] == 2].mean()) < float(ball.mean())
    assert iou(spatial.mask_of(scene, camera, Selection(found)), mask) > 0.8


def test_haze_before_a_lens_hides_nothing(world):
    """A huge faint Gaussian right before one camera, as training leaves them where no other view looks."""
    scene, labels = world
    camera = scene.cameras[0]
    g = scene.gaussians
    eye, forward = camera.positions[0], camera.viewmats[0, 2, :3]
    haze = g[torch.zeros(1, dtype=torch.long)]
    haze = replace(
        haze,
        means=(eye + 0.4 * forward).float()[None],
        log_scales=torch.tensor([[0.5, 0.5, 0.5]]).log(),
        logit_opacities=torch.tensor([1.0]),
    )
    hazy = replace(scene, gaussians=type(g).cat([g, haze]))
    x, y = middle(true_mask(scene, labels, camera, 2))
    there = spatial.pick(scene, camera, x, y)
    assert float((spatial.pick(hazy, camera, x, y) - there).norm()) < 0.02
    mask = torch.cat([labels == 2, torch.tensor([False])])
    clear = spatial.mask_of(scene, camera, Selection(labels == 2))
    assert iou(spatial.mask_of(hazy, camera, Selection(mask)), clear) > 0.98


@pytest.mark.parametrize(
    ("points", "labels", "box", "said"),
    [
        ([], None, None, "no point on the object and no box"),
        ([(5, 5)], [0], None, "no point on the object and no box"),
        ([(5, 5), (6, 6)], [1], None, "0 or 1 for each of 2 points"),
        ([(5, 5)], [7], None, "0 or 1 for each of 1 points"),
        ([(128, 5)], None, None, "outside the image of 128 x 96"),
        ([(5, -1)], None, None, "outside the image"),
        ([(float("nan"), 5)], None, None, "outside the image"),
        ([], None, (5, 5, 5, 50), "covers nothing"),
        ([], None, (500, 500, 600, 600), "covers nothing"),
    ],
)
def test_what_is_no_prompt(world, points, labels, box, said):
    with pytest.raises(FeaturesplatError, match=said):
        spatial.select_points(world[0], world[0].cameras[0], points, labels, box)


def test_nothing_is_there(world):
    scene = world[0]
    camera = scene.cameras[0]
    away = replace(scene, gaussians=replace(scene.gaussians, means=scene.gaussians.means + 1000))
    with pytest.raises(FeaturesplatError, match="the scene is empty at"):
        spatial.pick(away, camera, 64, 48)
    with pytest.raises(FeaturesplatError, match="empty there"):
        spatial.brush(away, camera, torch.ones(96, 128, dtype=torch.bool))


def test_strokes_and_selections_that_do_not_fit(world):
    scene = world[0]
    with pytest.raises(FeaturesplatError, match="the mask is of size"):
        spatial.brush(scene, scene.cameras[0], torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(FeaturesplatError, match="the mask is empty"):
        spatial.brush(scene, scene.cameras[0], torch.zeros(96, 128, dtype=torch.bool))
    with pytest.raises(FeaturesplatError, match="3 Gaussians"):
        spatial.mask_of(scene, scene.cameras[0], torch.ones(3))
    with pytest.raises(FeaturesplatError, match="expected one"):
        spatial.pick(scene, scene.cameras, 5, 5)


def test_views_of_another_time_and_size_are_no_trouble():
    """Cameras of odd sizes and of a time."""
    scene, labels = make_world(sh_degree=0, size=(75, 61))
    cameras = scene.cameras
    timed = Cameras(
        cameras.viewmats, cameras.Ks, cameras.widths, cameras.heights, torch.linspace(0, 1, 10), cameras.names
    )
    scene = replace(scene, cameras=timed)
    camera = timed[0]
    found = spatial.select_points(scene, camera, [middle(true_mask(scene, labels, camera, 2))])
    assert iou(found.masks(timed[4]), true_mask(scene, labels, timed[4], 2)) > 0.7
