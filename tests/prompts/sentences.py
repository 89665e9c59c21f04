"""What the tests of sentences share."""

from __future__ import annotations

from featuresplat.prompts.language import parse
from featuresplat.prompts.targets import Target


def t(text: str) -> Target:
    return Target(text=text)


def edits(sentence: str, scene=None):
    """The edits that a sentence is understood as."""
    return [plan.edit for plan in parse(sentence, scene)]
