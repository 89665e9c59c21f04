"""Plain-language edits: sentences -> edits, by rules; nothing is ever evaluated.

Understood are sentences such as "remove the mug and make the duck blue", "keep only the bowl", "move the ball up by
0.2", "turn the pan by 90 degrees", "make the box twice as large", "duplicate the duck to the left", "fade the bowl".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featuresplat.prompts.edits import Edit

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Plan:
    """One thing that a sentence asks for.

    Attributes:
        said: the part of the sentence.
        edit: what it was understood as.
    """

    said: str
    edit: Edit

    def __str__(self) -> str:
        return f"{self.said} -> {self.edit.describe()}"


def parse(sentence: str, scene: Scene | None = None) -> list[Plan]:
    """What a sentence asks for.

    Args:
        sentence: English, any case; parts joined by "and", "then", commas or full stops.
        scene: gives directions a meaning (up, left, ... as its cameras see them) and sizes a unit; without it a
            sentence with a direction is refused.

    Raises:
        FeaturesplatError: nothing, or a part that is not understood (it is named, with examples of what is).
    """
    raise NotImplementedError
