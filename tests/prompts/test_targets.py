"""What an edit is aimed at: stored selections, places in a photograph, words for whole objects."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from table_scene import BOX, NAMES, make_world, with_field

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Remove
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target, select_text


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


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_of_things_that_hang_together_only_the_one_that_is_meant(asked, world, share):
    """The ball's piece holds two things: the field denies one side of it."""
    labels = world[1]
    field = asked.fields["truth"]
    ball = labels == 2
    side = asked.gaussians.means[:, 0]
    other = ball & (side < torch.quantile(side[ball], 1 - share))
    codes = field.codes.clone()
    codes[other] = field.text.vectors[3]
    mixed = replace(asked, fields={"truth": replace(field, codes=codes)})
    found = select_text(mixed, "red ball").mask
    assert float(found[ball & ~other].float().mean()) > 0.9
    assert float(found[other].float().mean()) < 0.1
    unseen = codes.clone()
    unseen[other] = 0  # says nothing, and denies nothing
    whole = select_text(replace(asked, fields={"truth": replace(field, codes=unseen)}), "red ball").mask
    assert float(whole[ball].float().mean()) > 0.95


def test_nothing_of_it_is_there(asked):
    with pytest.raises(FeaturesplatError, match="nothing of it is found"):
        Target(text="background").select(asked)
    with pytest.raises(FeaturesplatError, match="none called 'x'"):
        Target(view="x", box=(1.0, 2.0, 30.0, 40.0)).select(asked)


def test_names_are_distinct():
    assert len(set(NAMES)) == len(NAMES)
    scene, labels = make_world(sh_degree=0, size=(32, 24))
    assert with_field(scene, labels).fields["truth"].text is not None
