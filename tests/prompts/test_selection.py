"""Sets of Gaussians: their algebra, their neighbourhood, their file."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.prompts.graph import build, graph_of
from featuresplat.prompts.selection import Selection, fingerprint


def chain(scene, xs):
    """The scene's first Gaussians in a row along x."""
    some = scene.rows(torch.arange(len(xs)))
    means = torch.zeros(len(xs), 3)
    means[:, 0] = torch.tensor(xs)
    return replace(some, gaussians=replace(some.gaussians, means=means))


def bits(text: str) -> torch.Tensor:
    return torch.tensor([c == "x" for c in text])


def text_of(selection: Selection) -> str:
    return "".join("x" if b else "." for b in selection.mask.tolist())


def test_sets_combine():
    a, b = Selection(bits("xx.."), "a"), Selection(bits("x.x."), "b")
    assert [text_of(s) for s in (a & b, a | b, a - b, a ^ b, ~a)] == ["x...", "xxx.", ".x..", ".xx.", "..xx"]
    assert (a & b).name == "a"
    assert len(a) == 4
    assert a.count == 2


def test_sets_of_two_scenes_do_not_combine():
    with pytest.raises(FeaturesplatError, match="4 and 3 Gaussians"):
        Selection(bits("xx..")) | Selection(bits("xx."))
    with pytest.raises(FeaturesplatError, match="bool"):
        Selection(torch.ones(3))


@pytest.fixture(scope="module")
def grid(world):
    """A 9 x 9 sheet of Gaussians, spacing 1."""
    scene = world[0].rows(torch.arange(81))
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(9.0), indexing="ij")
    means = torch.stack([x.flatten(), y.flatten(), torch.zeros(81)], 1)
    return replace(scene, gaussians=replace(scene.gaussians, means=means))


def test_growing_takes_the_neighbours_and_shrinking_gives_them_back(grid):
    middle = torch.zeros(9, 9, dtype=torch.bool)
    middle[4, 4] = True
    one = Selection(middle.flatten())
    grown = one.grow(grid)
    assert grown.count > 8
    ring = grown.mask.view(9, 9)
    assert bool(ring[3:6, 3:6].all())
    assert not bool(ring[0].any() or ring[8].any())
    assert one.grow(grid, 2).count > grown.count
    back = grown.shrink(grid)
    assert bool(back.mask.view(9, 9)[4, 4])
    assert back.count < grown.count
    assert Selection(torch.ones(81, dtype=torch.bool)).shrink(grid).count == 81


def test_cleaning_drops_strays_and_fills_holes(grid):
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[0:5] = True
    mask[2, 4] = False  # a hole
    mask[8, 8] = True  # a stray
    clean = Selection(mask.flatten(), "sheet").cleanup(grid).mask.view(9, 9)
    assert bool(clean[0:5].all())
    assert not bool(clean[5:].any())
    nothing = Selection(torch.zeros(81, dtype=torch.bool))
    assert nothing.cleanup(grid).count == 0


def test_what_is_far_is_no_neighbour(world):
    scene = chain(world[0], [float(i) for i in range(40)] + [1000.0, 1001.0])
    graph = build(scene.gaussians.means)
    assert not bool(((graph.rows < 40) & (graph.cols >= 40)).any())
    part, sizes = graph.parts(torch.ones(42, dtype=torch.bool).numpy())
    assert sizes.tolist()[0] == 40
    assert part[0] == 0


def test_the_graph_of_a_few():
    assert len(build(torch.zeros(1, 3)).rows) == 0
    assert build(torch.zeros(0, 3)).count == 0
    two = build(torch.tensor([[0.0, 0, 0], [1, 0, 0]]))
    assert (two.rows.tolist(), two.cols.tolist(), two.lengths.tolist()) == ([0], [1], [1.0])


def test_the_graph_is_remembered_as_long_as_its_tensor(grid):
    means = grid.gaussians.means
    assert graph_of(means) is graph_of(means)
    assert graph_of(means) is not graph_of(means.clone())


def test_a_file_gives_it_back(world, tmp_path):
    scene, labels = world
    before = Selection(labels == 2, "ball")
    before.save(tmp_path / "ball.safetensors", scene)
    after = Selection.load(tmp_path / "ball.safetensors", scene)
    assert torch.equal(before.mask, after.mask)
    assert after.name == "ball"


def test_a_file_of_another_scene_is_refused(world, tmp_path):
    scene, labels = world
    Selection(labels == 2).save(tmp_path / "s.safetensors", scene)
    moved = replace(scene, gaussians=replace(scene.gaussians, means=scene.gaussians.means + 1))
    assert fingerprint(moved) != fingerprint(scene)
    with pytest.raises(FeaturesplatError, match="another scene"):
        Selection.load(tmp_path / "s.safetensors", moved)
    with pytest.raises(FeaturesplatError, match="another scene"):
        Selection.load(tmp_path / "s.safetensors", scene.rows(labels == 1))
    with pytest.raises(FeaturesplatError, match="Gaussians, the scene"):
        Selection(labels == 2).save(tmp_path / "t.safetensors", scene.rows(labels == 1))


def test_files_that_are_none(world, tmp_path):
    scene = world[0]
    with pytest.raises(FeaturesplatError, match="no such file"):
        Selection.load(tmp_path / "none", scene)
    write_tensors(tmp_path / "x.safetensors", {"mask": torch.ones(3)})
    with pytest.raises(FeaturesplatError, match="no selection"):
        Selection.load(tmp_path / "x.safetensors", scene)
    Selection(torch.ones(len(scene.gaussians), dtype=torch.bool)).save(tmp_path / "y.safetensors", scene)
    assert read_tensors(tmp_path / "y.safetensors")[1]["scene"] == fingerprint(scene)
    whole = (tmp_path / "y.safetensors").read_bytes()
    (tmp_path / "y.safetensors").write_bytes(whole[:-10])
    with pytest.raises(FeaturesplatError, match="truncated"):
        Selection.load(tmp_path / "y.safetensors", scene)
