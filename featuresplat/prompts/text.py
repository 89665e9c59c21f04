"""Phrases -> scores in 0..1 per Gaussian or per pixel, and masks.

One formula serves every teacher: with s_p the similarity of a feature with phrase p, the score of prompt q is

    min over c of softmax(T [s_q, s_c])_0  =  sigmoid(T (s_q - max over c of s_c))

where c runs over what q has to beat: canonical phrases (the relevancy of LERF, Kerr et al. 2023, T = 10), or all
other labels of a closed vocabulary, so that a score above 0.5 means that q is the best of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class TextQuery:
    """Phrases made ready for one field of a scene; ask it for any number of Gaussians and views.

    Attributes:
        phrases: P prompts, as given.
        field: name of the field that is asked.
        closed: the field knows a fixed list of labels, and the prompts are some of them.
        prompts: [P, F] unit embeddings of the prompts.
        contrast: [C, F] unit embeddings of what a prompt has to beat.
        beats: bool [P, C], which of them each prompt has to beat.
        temperature: T.
    """

    phrases: tuple[str, ...]
    field: str
    closed: bool
    prompts: Tensor
    contrast: Tensor
    beats: Tensor
    temperature: float = 10.0

    def gaussians(self, scene: Scene) -> Tensor:
        """[P, N] scores in 0..1 of the scene's Gaussians."""
        raise NotImplementedError

    def view(self, scene: Scene, camera: Cameras) -> Tensor:
        """[P, H, W] scores in 0..1 of the pixels of one camera; 0 where nothing is."""
        raise NotImplementedError

    def masks(self, scores: Tensor, threshold: float | None = None) -> Tensor:
        """bool, the shape of ``scores`` [P, N] or [P, H, W]: what the prompts mean.

        Args:
            threshold: scores above are in; default: the best label wins in a closed vocabulary, else the rule of
                `relevancy_masks` for pixels and 0.5 for Gaussians.
        """
        raise NotImplementedError


def ask(
    scene: Scene,
    phrases: str | Sequence[str],
    field: str | None = None,
    negatives: Sequence[str] = (),
    compete: bool = False,
) -> TextQuery:
    """Make phrases ready for a field.

    Args:
        phrases: one or several prompts.
        field: name of the field; default the scene's last one that answers text.
        negatives: phrases that every prompt has to beat too.
        compete: every prompt has to beat the other prompts too.

    Raises:
        FeaturesplatError: no prompt or an empty one, no such field, a field without text, a phrase that its closed
            vocabulary lacks, a field and a teacher of different dimensions.
    """
    raise NotImplementedError


def score(
    scene: Scene, phrases: str | Sequence[str], field: str | None = None, negatives: Sequence[str] = ()
) -> Tensor:
    """[P, N] scores in 0..1 of the scene's Gaussians; see `ask`."""
    return ask(scene, phrases, field, negatives).gaussians(scene)


def score_view(
    scene: Scene,
    camera: Cameras,
    phrases: str | Sequence[str],
    field: str | None = None,
    negatives: Sequence[str] = (),
) -> Tensor:
    """[P, H, W] scores in 0..1 of one camera's pixels; see `ask`."""
    return ask(scene, phrases, field, negatives).view(scene, camera)


def relevancy_masks(scores: Tensor, level: float = 0.4) -> Tensor:
    """bool [P, H, W] of relevancies [P, H, W] as LangSplat (Qin et al. 2024) cuts them.

    The map averaged with its mean over 30x30 pixels, stretched from its minimum and maximum to -1..1, above
    ``level``.
    """
    raise NotImplementedError
