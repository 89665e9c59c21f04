"""The one exception a user is meant to see."""

from __future__ import annotations


class FeaturesplatError(Exception):
    """Something a user can fix: one sentence on what is wrong, one on what to do.

    Args:
        message: what was expected and what came, e.g. ``quats: expected [N, 4], got (512, 3)``.
        hint: the remedy. May be empty only where the message already is the remedy.

    The command line prints both and exits with code 2; the Python API raises it.
    """

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message
