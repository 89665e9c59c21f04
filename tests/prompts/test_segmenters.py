"""Views that vote on an object, by segmenters that are stand-ins here: the wiring, not the networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from table_scene import iou, true_mask

from featuresplat.prompts import regions, segmenters, spatial
from featuresplat.types import FeatureField


def middle(mask: torch.Tensor) -> tuple[float, float]:
    at = mask.nonzero().float()
    y, x = at[(at - at.mean(0)).norm(dim=1).argmin()].tolist()
    return x + 0.5, y + 0.5


class Oracle:
    """Knows the truth, and cuts out what most of its points, or the middle of its box, are on."""

    def __init__(self, scene, labels):
        self.scene, self.labels, self.calls = scene, labels, []

    def __call__(self, camera, points, labels, box):
        masks = torch.stack([true_mask(self.scene, self.labels, camera, k) for k in range(5)])
        self.calls.append((camera, points, labels, box))
        if len(points):
            x, y = points[labels == 1][0].long().tolist()
        else:
            x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
        return masks[int(masks[:, y, x].float().argmax())].float()


@pytest.mark.parametrize("boxed", [False, True])
def test_what_views_agree_on_is_selected(world, monkeypatch, boxed):
    scene, labels = world
    oracle = Oracle(scene, labels)
    monkeypatch.setattr(segmenters, "of_sam", lambda *_: oracle)
    camera = scene.cameras[0]
    mask = true_mask(scene, labels, camera, 2)
    if boxed:
        rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
        prompt = {"box": (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)}
    else:
        prompt = {"points": [middle(mask)]}
    found = spatial.select_points(scene, camera, views=4, **prompt)
    for i in (1, 4, 7):
        assert iou(found.masks(scene.cameras[i]), true_mask(scene, labels, scene.cameras[i], 2)) > 0.8
    assert 2 <= len(oracle.calls) <= 5
    assert all((call[3] is not None) == boxed for call in oracle.calls)


def test_views_that_do_not_see_the_point_do_not_vote(world):
    """A point on the far side of the ball, as camera 5 sees it from the front."""
    scene, labels = world
    oracle = Oracle(scene, labels)
    camera = scene.cameras[5]
    ball = scene.gaussians.means[labels == 2].double()
    hidden = ball[(ball @ camera.viewmats[0, 2, :3]).argmax()].numpy()
    settings = scene.raster_settings()
    sums, weights = segmenters._cast(scene.gaussians, camera, hidden[None], [1], None, oracle, settings)
    assert float(weights.sum()) == 0
    assert not oracle.calls
    sums, weights = segmenters._cast(
        scene.gaussians,
        camera,
        ball[(ball @ camera.viewmats[0, 2, :3]).argmin()].numpy()[None],
        [1],
        None,
        oracle,
        settings,
    )
    assert float(sums[labels == 2].sum()) > 0.8 * float(sums.sum()) > 0


def test_sam_decodes_what_the_field_renders(world, monkeypatch):
    scene, labels = world
    seen = []

    class Sam:
        def predict(self, features, size, points, marks, box):
            seen.append((tuple(features.shape), size, points, marks, box))
            return (features[..., 0] > 0.5).float()

    asked_for = []
    monkeypatch.setattr(segmenters, "_sam", lambda model, weights: asked_for.append((model, weights)) or Sam())
    codes = torch.nn.functional.one_hot((labels == 2).long()).float().flip(1).contiguous()
    field = FeatureField(codes, "sam", info={"teacher": {"model": "vit_b", "weights": "/w.pth"}})
    with_sam = replace(scene, fields={"sam": field})
    camera = scene.cameras[0]
    mask = true_mask(scene, labels, camera, 2)
    found = spatial.select_points(with_sam, camera, [middle(mask), (2.0, 90.0)], [1, 0], views=2)
    assert asked_for == [("vit_b", "/w.pth")]
    shape, size, points, marks, box = seen[0]
    assert shape == (96, 128, 2)
    assert size == (96, 128)
    assert points[0].tolist() == pytest.approx(middle(mask), abs=1e-2)
    assert marks.tolist() == [1, 0]
    assert box is None
    assert iou(found.masks(camera), mask) > 0.9


def test_sam_without_weights_is_left_alone(world, tmp_path, monkeypatch):
    scene, labels = world
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    segmenters._sam.cache_clear()
    for settings in ({}, {"weights": str(tmp_path / "gone.pth")}):
        field = FeatureField(torch.zeros(len(labels), 4), "sam", info={"teacher": settings})
        assert segmenters.of_sam(replace(scene, fields={"sam": field}), scene.gaussians) is None
    segmenters._sam.cache_clear()
    assert segmenters.of_sam(scene, scene.gaussians) is None


def test_grabcut_cuts_the_ball_out(world, monkeypatch):
    pytest.importorskip("cv2")
    pytest.importorskip("skimage")
    scene, labels = world
    monkeypatch.setattr(spatial, "_by_pieces", lambda *_: None)
    camera = scene.cameras[0]
    mask = true_mask(scene, labels, camera, 2)
    names = []
    found = spatial.select_points(scene, camera, [middle(mask)], views=2, photograph=lambda n: names.append(n))
    assert iou(found.masks(camera), mask) > 0.8
    assert "view_00.png" in names


def test_without_its_packages_there_is_no_grabcut(world, monkeypatch):
    monkeypatch.setattr(segmenters.importlib.util, "find_spec", lambda name: None)
    assert segmenters.of_grabcut(world[0], world[0].gaussians) is None


def test_a_region_without_opposition_is_what_hangs_together(world):
    """No pieces, no segmenter: the ball alone, hanging in the air, is one region."""
    scene, labels = world
    apart = scene.rows(labels != 1)
    place = apart.gaussians.means[labels[labels != 1] == 2].mean(0).double().numpy()[None] + [[0.0, 0.0, 0.33]]
    values = regions.grow(apart, apart.gaussians, place, place[:0])
    truth = labels[labels != 1] == 2
    found = values > 0.5
    assert float((found & truth).sum() / (found | truth).sum()) > 0.9
