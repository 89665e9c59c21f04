"""What is known about the frames of a film beside their colours: depth, flow, motion masks, point tracks.

Each comes from files where the user has them (learned priors from anywhere), else from OpenCV, which needs no weights:
dense optical flow, tracks chained from it, and masks of what moves from the errors against the epipolar geometry, or
against the depth maps where there are some.
"""

from __future__ import annotations

from featuresplat.priors.film import Film, film_of
from featuresplat.priors.motion import moving_masks
from featuresplat.priors.tracks import Tracks, read_tracks, track

__all__ = ["Film", "Tracks", "film_of", "moving_masks", "read_tracks", "track"]
