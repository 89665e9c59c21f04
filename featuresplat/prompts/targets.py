"""How an edit says which Gaussians it means: plain data, resolved when the edit is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featuresplat.prompts.selection import Selection

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Target:
    """Which Gaussians an edit means; one of the ways is given, or none: all of them.

    Attributes:
        text: a phrase.
        field: the field that ``text`` asks; default the scene's last one that answers text.
        threshold: scores of ``text`` above are in; default as `text.TextQuery.masks`.
        view: name of the photograph that ``points`` and ``box`` lie in.
        points: (x, y, label) each, in pixels of the photograph's full size; label 1 = on the object, 0 = not.
        box: x0, y0, x1, y1 in the same pixels.
        gaussians: a stored selection, see `Target.of`.
    """

    text: str = ""
    field: str = ""
    threshold: float | None = None
    view: str = ""
    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    gaussians: str = ""

    @staticmethod
    def of(selection: Selection, scene: Scene) -> Target:
        """A selection itself, packed into one line of text that only fits ``scene``."""
        raise NotImplementedError

    def select(self, scene: Scene) -> Selection:
        """The Gaussians that are meant.

        Raises:
            FeaturesplatError: nothing is found, or what the prompt itself raises.
        """
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Only what is given; plain values."""
        raise NotImplementedError

    @staticmethod
    def from_dict(values: dict[str, Any] | str | None) -> Target:
        """From `to_dict`, or a phrase alone.

        Raises:
            FeaturesplatError: an unknown key or a value of the wrong kind.
        """
        raise NotImplementedError
