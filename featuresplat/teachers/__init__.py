"""Feature teachers: what looks at a photograph and answers with a map of features. One file, one teacher.

A teacher module has a class ``Teacher(config, device)`` with the members of :class:`Teacher` below, and of
:class:`TextTeacher` and :class:`MaskTeacher` where it can. A teacher that answers text also has a function
``text_side(settings)`` in its module, which gives the answering half alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from featuresplat import registry
from featuresplat.errors import FeaturesplatError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from featuresplat.config_fields import TeacherConfig

CANONICAL = ("object", "things", "stuff", "texture")
"""The phrases a prompt has to beat (LERF, Kerr et al. 2023, section 3.4)."""


class Teacher(Protocol):
    """What the extraction and the lift ask of a teacher.

    Attributes:
        name: registry name, e.g. ``clip``.
        dim: F, the number of channels of a map.
        settings: plain JSON values that decide the maps, weights included: the key of the cache of maps, and
            what :func:`text_side` needs to answer text later.
    """

    name: str
    dim: int
    settings: dict[str, Any]

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] RGB in 0..1 to a map [h, w, F], float32 on the CPU.

        Cell (i, j) stands for the image rectangle [j W/w, (j+1) W/w] x [i H/h, (i+1) H/h]; ``name`` is the
        photograph's file name, which only teachers with maps on disk need.
        """
        ...


class TextSide(Protocol):
    """The half of a teacher that answers text.

    Attributes:
        canonical: phrases a prompt has to beat (:data:`CANONICAL`); empty: only a closed vocabulary makes sense.
        about: one honest sentence on what it can and cannot do.
    """

    canonical: tuple[str, ...]
    about: str

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, F] in the space of the maps, unit length where that space is compared by cosine."""
        ...


class TextTeacher(Teacher, TextSide, Protocol):
    """A teacher whose maps can be asked by text."""


@runtime_checkable
class MaskTeacher(Protocol):
    """A teacher that cuts a photograph into class-agnostic masks of its own."""

    def masks(self, image: Tensor) -> list[Tensor]:
        """[H, W, 3] in 0..1 to boolean [H, W] masks, which may overlap, largest first."""
        ...


def make_teacher(name: str, config: TeacherConfig | None = None, device: str | torch.device = "cpu") -> Teacher:
    """The teacher ``name`` with its weights loaded.

    Raises:
        FeaturesplatError: no such teacher, its package or weights are missing, or ``config`` does not suit it.
    """
    if config is None:
        from featuresplat.config_fields import TeacherConfig

        config = TeacherConfig(name=name)
    return registry.load("teachers", name).Teacher(config, device)


def masks_of(teacher: Teacher | None, image: Tensor) -> list[Tensor]:
    """Class-agnostic boolean [H, W] masks of an image [H, W, 3] in 0..1: the teacher's own, else colour segments.

    Raises:
        FeaturesplatError: scikit-image, which cuts the segments, is missing.
    """
    if isinstance(teacher, MaskTeacher):
        return teacher.masks(image)
    from featuresplat.teachers._segments import segments

    return segments(image)


def text_side(name: str, settings: Mapping[str, Any]) -> TextSide:
    """The answering half of a teacher from the ``settings`` it had: no image weights where that is possible.

    Raises:
        FeaturesplatError: no such teacher, or one that knows no text.
    """
    module = registry.load("teachers", name)
    if not hasattr(module, "text_side"):
        raise FeaturesplatError(
            f"teacher '{name}' makes features that text cannot ask for",
            f"Ask by point or box, or add a field of one of: {', '.join(text_teachers())}.",
        )
    return module.text_side(dict(settings))


def text_teachers() -> tuple[str, ...]:
    """Names of the teachers that ship with the package and answer text."""
    return ("clip", "lseg", "offline", "precomputed")
