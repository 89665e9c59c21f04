"""Days of use: what pictures and edits leave behind is bounded."""

from __future__ import annotations

from featuresplat.raster import _pool
from featuresplat.viewer.cameras import Pose
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
