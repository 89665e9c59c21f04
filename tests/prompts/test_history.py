"""Undo in bounded memory: what was let go of is worked out again, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from table_scene import same_scene

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Duplicate, Edit, Edited, Extract, Insert, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.targets import Target
from featuresplat.scene import Scene

BALL, BOX = Target(text="red ball"), Target(text="blue box")
STEPS = [
    Recolor(BALL, hue=40.0),
    Transform(BALL, translate=(0.1, 0.2, 0.3), rotate=(0.9, 0.1, 0.2, 0.3), scale=1.2),
    Duplicate(BOX, translate=(0.0, 0.0, 1.0)),
    Opacity(BOX, factor=0.3),
    Remove(BALL),
    Extract(BOX),
]


def copied(scene: Scene) -> Scene:
    return replace(scene, gaussians=scene.gaussians.map(torch.clone))


@pytest.mark.parametrize("scenes", [0, 1.5, 3])
def test_what_was_let_go_of_comes_back_bit_by_bit(asked, scenes):
    one = sum(t.nbytes for t in (*asked.gaussians.tensors().values(), asked.fields["truth"].codes))
    done = Edited(asked, kept=int(scenes * one))
    seen = [copied(asked)]
    for edit in STEPS:
        seen.append(copied(done.apply(edit)))
        assert done.bytes <= done.kept
    assert done.edits == tuple(STEPS)  # in the words that they were given in
    for _ in range(2):
        for k in range(len(STEPS), 0, -1):
            assert same_scene(done.undo(), seen[k - 1])
            assert done.bytes <= done.kept
        assert done.scene is asked
        for k in range(len(STEPS)):
            assert same_scene(done.redo(), seen[k + 1])
            assert done.bytes <= done.kept


def test_what_is_near_gives_back_the_very_same_tensors(asked):
    done = Edited(asked)
    made = [done.apply(edit) for edit in STEPS]
    assert all(done.undo() is scene for scene in (*made[-2::-1], asked))
    assert all(done.redo() is scene for scene in made)


def test_history_takes_no_more_however_long_it_is(asked):
    """Fifty edits of everything: every one makes new colours of all Gaussians."""
    done = Edited(asked, kept=4 * asked.gaussians.shN.nbytes + 4 * asked.gaussians.sh0.nbytes)
    for _ in range(50):
        done.apply(Recolor(hue=7.0))
        assert done.bytes <= done.kept
    assert sum(s is not None for s in done._scenes) < 12
    for _ in range(50):
        done.undo()
        assert done.bytes <= done.kept
    assert done.scene is asked


def test_a_change_of_course_forgets_what_was_undone(asked):
    done = Edited(asked, kept=0)
    for edit in STEPS[:4]:
        done.apply(edit)
    done.undo()
    done.undo()
    other = copied(done.apply(Remove(BOX)))
    assert done.undone == ()
    done.undo()
    assert same_scene(done.redo(), other)


def test_what_takes_long_to_make_again_stays_longest(asked, tmp_path):
    """A guest's file may be gone when it is wanted again."""
    Extract(BALL).apply(asked).save(tmp_path / "ball.ply")
    one = sum(t.nbytes for t in asked.gaussians.tensors().values()) + asked.fields["truth"].codes.nbytes
    done = Edited(asked, kept=2 * one)
    done.apply(Insert(source=str(tmp_path / "ball.ply"), translate=(0.0, 0.0, 1.0)))
    guest = copied(done.scene)
    for _ in range(3):
        done.apply(Transform(translate=(0.0, 0.0, 0.1)))
    (tmp_path / "ball.ply").unlink()
    for _ in range(3):
        done.undo()
    assert same_scene(done.scene, guest)


def test_undo_that_cannot_be_worked_out_changes_nothing(asked, tmp_path):
    Extract(BALL).apply(asked).save(tmp_path / "ball.ply")
    done = Edited(asked, kept=0)
    done.apply(Insert(source=str(tmp_path / "ball.ply")))
    done.apply(Opacity(BOX, factor=0.5))
    now = done.apply(Opacity(BOX, factor=0.5))
    (tmp_path / "ball.ply").unlink()
    with pytest.raises(FeaturesplatError, match="no run folder or file"):
        done.undo()
    assert done.scene is now
    assert len(done.edits) == 3


@pytest.mark.parametrize("edit", STEPS, ids=lambda e: e.kind)
def test_settled_means_the_same_gaussians(asked, edit: Edit):
    settled = edit.settled(asked)
    assert settled.target.gaussians
    assert not settled.target.text
    assert same_scene(settled.apply(asked), edit.apply(asked))
    assert Recolor(hue=7.0).settled(asked) == Recolor(hue=7.0)
