"""Changes to a scene as plain data: applied, undone, redone, written to YAML and replayed.

An edit is a frozen dataclass; ``apply`` gives a new scene that shares what has not changed. A mode module may offer
further kinds in a dict ``EDITS`` {kind: class}.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from featuresplat.prompts.targets import Target

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Edit:
    """One change. ``kind`` is its name in files."""

    kind: ClassVar[str] = ""
    target: Target = field(default_factory=Target)

    def apply(self, scene: Scene) -> Scene:
        """The changed scene; ``scene`` itself stays as it is.

        Raises:
            FeaturesplatError: the target is not found, or a value makes no sense.
        """
        raise NotImplementedError

    def describe(self) -> str:
        """In words, e.g. ``remove 'the mug'``."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"kind": ..., "target": {...}, ...}`` without what is at its default."""
        raise NotImplementedError


@dataclass(frozen=True)
class Remove(Edit):
    """Take Gaussians away.

    Attributes:
        fill: fit the hole again from the views that see behind it.
    """

    kind: ClassVar[str] = "remove"
    fill: bool = False


@dataclass(frozen=True)
class Extract(Edit):
    """Keep nothing but the target."""

    kind: ClassVar[str] = "extract"


@dataclass(frozen=True)
class Recolor(Edit):
    """Another colour; light and shade stay.

    Attributes:
        color: name or ``#rrggbb``: take its hue and saturation, and its lightness on average.
        hue: degrees to turn the hue by.
        saturation: factor.
        lightness: factor.
        shift: added to red, green and blue, -1..1.
        strength: 0..1, how much of the change.
    """

    kind: ClassVar[str] = "recolor"
    color: str = ""
    hue: float = 0.0
    saturation: float = 1.0
    lightness: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    strength: float = 1.0


@dataclass(frozen=True)
class Transform(Edit):
    """Move, turn and scale about the target's middle; colours that depend on the view turn with it.

    Attributes:
        translate: world units.
        rotate: quaternion wxyz.
        scale: factor, positive.
        pivot: world point that stays; default: the opacity-weighted mean of the target.
    """

    kind: ClassVar[str] = "transform"
    translate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    scale: float = 1.0
    pivot: tuple[float, float, float] | None = None


@dataclass(frozen=True)
class Duplicate(Transform):
    """As `Transform`, of a copy."""

    kind: ClassVar[str] = "duplicate"


@dataclass(frozen=True)
class Insert(Transform):
    """Add Gaussians of another run or file; ``target`` chooses among the other's Gaussians.

    Attributes:
        source: run folder, or a file of Gaussians.
    """

    kind: ClassVar[str] = "insert"
    source: str = ""


@dataclass(frozen=True)
class Opacity(Edit):
    """More or less see-through.

    Attributes:
        factor: on the opacities, result clamped to 0..1.
    """

    kind: ClassVar[str] = "opacity"
    factor: float = 0.5


KINDS: dict[str, type[Edit]] = {c.kind: c for c in (Remove, Extract, Recolor, Transform, Duplicate, Insert, Opacity)}


def edit_from_dict(values: dict[str, Any]) -> Edit:
    """The edit of `Edit.to_dict`.

    Raises:
        FeaturesplatError: an unknown kind or key, or a value of the wrong type.
    """
    raise NotImplementedError


class Edited:
    """A scene and the edits done to it. Undo and redo give back the very same tensors."""

    def __init__(self, scene: Scene):
        raise NotImplementedError

    @property
    def scene(self) -> Scene:
        """As it is now."""
        raise NotImplementedError

    @property
    def original(self) -> Scene:
        """As it was given."""
        raise NotImplementedError

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was done and not undone, in order."""
        raise NotImplementedError

    @property
    def undone(self) -> tuple[Edit, ...]:
        """What `redo` would do, next first."""
        raise NotImplementedError

    def apply(self, edit: Edit) -> Scene:
        """Do an edit; what was undone is forgotten. Unchanged when the edit raises."""
        raise NotImplementedError

    def undo(self) -> Scene:
        """Take the last edit back.

        Raises:
            FeaturesplatError: there is none.
        """
        raise NotImplementedError

    def redo(self) -> Scene:
        """Do again what was undone last.

        Raises:
            FeaturesplatError: there is none.
        """
        raise NotImplementedError


def save_edits(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write edits as a YAML file."""
    raise NotImplementedError


def load_edits(path: str | Path) -> list[Edit]:
    """Read what `save_edits`, or a person, wrote.

    Raises:
        FeaturesplatError: missing, no YAML, or not edits.
    """
    raise NotImplementedError
