"""Days of use: what pictures and edits leave behind is bounded."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from toy import ball

from featuresplat.prompts.edits import Duplicate, Opacity, Recolor, Remove
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.raster import _pool
from featuresplat.scene import Scene
from featuresplat.viewer.cameras import Pose
from featuresplat.viewer.document import Document, Packed
from featuresplat.viewer.look import Look
from featuresplat.viewer.pictures import Overlay, picture


def test_pictures_of_ever_other_sizes_leave_little_behind(scene, monkeypatch):
    """While the view moves, a picture has as many pixels as the machine's speed allows: a new size each time."""
    pool = _pool.Pool()
    monkeypatch.setattr(_pool, "empty", pool.empty)
    pose = Pose((0.0, 0.0, -4.0), (1.0, 0.0, 0.0, 0.0), 0.8, 800, 600)
    pixels = range(100_000, 300_000, 2_000)
    for number in pixels:
        picture(scene, pose.camera(number), Look(), Overlay())
    assert 0 < pool.unused < 3 * 4 * sum(pixels) / 10


def test_a_long_day_of_edits_holds_few_scenes(scene):
    """All of it can be undone all the same, selections included."""
    document = Document(scene)
    document._edited.kept = 6 * sum(t.nbytes for t in scene.gaussians.tensors().values())
    made: list[weakref.ref[Scene]] = []
    document.listen(lambda state: made.append(weakref.ref(state.scene)))
    document.select(ball(0))
    document.keep("the red one")
    chosen = []
    for number in range(30):
        state = document.state
        chosen.append((state.selected, [k.mask for k in state.kept], len(state.scene.gaussians)))
        target = Target.of(Selection(document.kept("the red one").mask), state.scene)
        edits = (Recolor(target, hue=5.0), Duplicate(target), Remove(Target.of(selection(state), state.scene)))
        document.apply(edits[number % 3] if state.selected is not None else Opacity(target, factor=0.99))
    del state
    gc.collect()
    assert len({id(r()) for r in made if r() is not None}) <= 12
    for selected, kept, count in reversed(chosen):
        state = document.undo()
        assert len(state.scene.gaussians) == count
        assert (selected is None) == (state.selected is None)
        assert selected is None or torch.equal(selected, state.selected)
        assert all(torch.equal(a, b.mask) for a, b in zip(kept, state.kept, strict=True))
    assert not document.state.edits


def selection(state) -> Selection:
    return Selection(state.selected)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 1000])
def test_a_mask_at_rest_is_the_same_mask(count):
    mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) > 0.5
    assert torch.equal(Packed(mask).mask(), mask)
