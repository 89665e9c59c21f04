"""Points, a box or a brush stroke in one view -> a selection of Gaussians, seen from everywhere.

Coordinates are pixels of the camera that is given, centres at +0.5; a camera for another image size is
``cameras.resized(width, height)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from featuresplat.prompts.selection import Selection
from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.scene import Scene

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


@dataclass(frozen=True)
class Prompted:
    """What a prompt in one view means.

    Attributes:
        selection: the Gaussians.
        scores: [N] in 0..1, how surely each Gaussian belongs; the selection is what lies above 0.5, cleaned up.
        points: [K, 3] where the prompt's points lie in the scene.
        masks: camera -> bool [H, W], the object in any view.
    """

    selection: Selection
    scores: Tensor
    points: Tensor
    masks: Callable[[Cameras], Tensor]


def select_points(
    scene: Scene,
    camera: Cameras,
    points: Sequence[Sequence[float]] = (),
    labels: Sequence[int] | None = None,
    box: Box | None = None,
    *,
    photograph: Callable[[str], Tensor | None] | None = None,
    views: int = 12,
) -> Prompted:
    """The object under points, or in a box, of one view; carried through the scene to all views.

    Args:
        scene: with or without feature fields.
        camera: one camera.
        points: x, y each.
        labels: 1 = on the object, 0 = not on it, one per point; default all 1.
        box: around the object.
        photograph: image name -> [H, W, 3] in 0..1 or None; views whose photograph is given are segmented on it,
            others on their render.
        views: how many of the scene's own views vote.

    Raises:
        FeaturesplatError: no prompt, a point outside the image or where the scene is empty, an empty box, labels
            that do not fit the points.
    """
    raise NotImplementedError


def brush(scene: Scene, camera: Cameras, mask: Tensor) -> Prompted:
    """The Gaussians that show under a painted mask [H, W] in one view: nothing behind them, nothing beside.

    Raises:
        FeaturesplatError: a mask of another size, or an empty one.
    """
    raise NotImplementedError


def mask_of(scene: Scene, camera: Cameras, selection: Selection | Tensor) -> Tensor:
    """bool [H, W]: where a selection, or scores [N], makes up at least half of what one camera sees."""
    raise NotImplementedError


def pick(scene: Scene, camera: Cameras, x: float, y: float) -> Tensor:
    """[3] the point of the scene's surface under a pixel, world frame.

    Raises:
        FeaturesplatError: the pixel is outside the image, or nothing is there.
    """
    raise NotImplementedError
