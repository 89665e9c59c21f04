"""All objects at once, by pieces and by an affinity field."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from table_scene import NAMES, iou, true_mask

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import affinity, instances, spatial


def purity(ids: torch.Tensor, labels: torch.Tensor, label: int) -> float:
    """Intersection over union of a label with the instance that holds most of it."""
    inside = ids[labels == label]
    best = inside[inside >= 0].mode().values
    return float(((ids == best) & (labels == label)).sum() / ((ids == best) | (labels == label)).sum())


def test_every_object_is_found(world):
    scene, labels = world
    found = instances.find(scene)
    assert len(found) == 4  # the table is one too
    assert found.names == ("object 1", "object 2", "object 3", "object 4")
    assert found.colors.shape == (4, 3)
    sizes = found.ids[found.ids >= 0].bincount()
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    for label in range(1, 5):
        assert purity(found.ids, labels, label) > 0.75
    assert found.selection(1).name == "object 2"
    with pytest.raises(FeaturesplatError, match="no object 9"):
        found.selection(9)


def test_a_field_names_them(asked):
    found = instances.find(asked)
    assert set(found.names) == set(NAMES[1:])
    chosen = instances.find(asked, phrases=("red ball", "blue box"))
    assert {"red ball", "blue box"} <= set(chosen.names)


def test_colours_differ():
    colors = instances.palette(12)
    apart = torch.cdist(colors, colors) + torch.eye(12)
    assert float(apart.min()) > 0.15
    assert instances.palette(0).shape == (0, 3)


@pytest.fixture(scope="module")
def learned(world):
    scene, labels = world
    told = []

    def masks(name):
        camera = scene.cameras[list(scene.cameras.names).index(name)]
        return [true_mask(scene, labels, camera, k) for k in range(1, 5)]

    field = affinity.train(scene, masks, dim=8, steps=60, progress=lambda *at: told.append(at))
    assert told[-1] == (60, 60)
    return field


def test_an_affinity_field_brings_an_object_together_and_keeps_two_apart(world, learned):
    labels = world[1]
    assert torch.allclose(learned.codes.norm(dim=1), torch.ones(len(labels)), atol=1e-5)
    means = torch.stack([learned.codes[labels == k].mean(0) for k in range(1, 5)])
    assert float(means.norm(dim=1).min()) > 0.8
    unit = torch.nn.functional.normalize(means, dim=1)
    assert float((unit @ unit.T - torch.eye(4)).max()) < 0.6
    score = affinity.alike(learned, labels == 3)
    assert float(score[labels == 3].mean()) > float(score[labels != 3].mean()) + 0.4


def test_its_clusters_are_the_objects(world, learned):
    scene, labels = world
    found = instances.find(replace(scene, fields={"affinity": learned}))
    for label in range(1, 5):
        assert purity(found.ids, labels, label) > 0.75


def test_what_cannot_be_learned_or_found(world, asked):
    scene = world[0]
    with pytest.raises(FeaturesplatError, match="two masks"):
        affinity.train(scene, lambda name: [], steps=2)
    for size in ({"dim": 0}, {"steps": 0}, {"dim": -1}):
        with pytest.raises(FeaturesplatError, match="dim and steps of at least 1"):
            affinity.train(scene, lambda name: [], **size)
    with pytest.raises(FeaturesplatError, match="none of affinity"):
        instances.find(asked, field="truth")


def test_clicks_go_by_affinity_where_pieces_leave_it_open(world, learned, monkeypatch):
    scene, labels = world
    monkeypatch.setattr(spatial, "_by_pieces", lambda *_: None)
    with_field = replace(scene, fields={"affinity": learned})
    camera = scene.cameras[0]
    mask = true_mask(scene, labels, camera, 3)
    at = mask.nonzero().float()
    y, x = at[(at - at.mean(0)).norm(dim=1).argmin()].tolist()
    found = spatial.select_points(with_field, camera, [(x + 0.5, y + 0.5)])
    assert iou(found.masks(scene.cameras[5]), true_mask(scene, labels, scene.cameras[5], 3)) > 0.7
    rows, cols = mask.any(1).nonzero(), mask.any(0).nonzero()
    box = (int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1)
    assert iou(spatial.select_points(with_field, camera, box=box).masks(camera), mask) > 0.7
