"""A scene and what was done to it, step by step, in a bounded amount of memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from featuresplat.errors import FeaturesplatError

if TYPE_CHECKING:
    from featuresplat.prompts.edits import Edit
    from featuresplat.scene import Scene

KEPT = 1 << 30
"""Bytes of tensors kept at most for undo and redo, beside the scene as it was given and as it is now."""


class Edited:
    """A scene and the edits done to it. Undo and redo give back the very same tensors, as far as ``kept`` bytes go.

    What lies further away is worked out again when it is wanted, from the nearest scene before it that is still there:
    the same numbers, as long as what an edit reads beside the scene (a file, photographs) has stayed as it was.
    """

    def __init__(self, scene: Scene, kept: int = KEPT):
        self.kept = kept
        self._scenes: list[Scene | None] = [scene]
        self._edits: list[Edit] = []
        self._again: list[Edit] = []  # what does the same when the scene is not as well known as it was
        self._done, self._scene = 0, scene
        self._original = scene

    @property
    def scene(self) -> Scene:
        """As it is now."""
        return self._scene

    @property
    def original(self) -> Scene:
        """As it was given."""
        return self._original

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was done and not undone, in order."""
        return tuple(self._edits[: self._done])

    @property
    def undone(self) -> tuple[Edit, ...]:
        """What `redo` would do, next first."""
        return tuple(self._edits[self._done :])

    @property
    def bytes(self) -> int:
        """Of the tensors that only undo and redo need."""
        needed = _memory((self._original, self._scene))
        return sum(size for place, size in _memory(self._scenes).items() if place not in needed)

    def apply(self, edit: Edit) -> Scene:
        """Do an edit; what was undone is forgotten. Unchanged when the edit raises."""
        scene = edit.apply(self._scene)
        self._edits, self._again = [*self.edits, edit], [*self._again[: self._done], edit]
        self._scenes = [*self._scenes[: self._done + 1], scene]
        return self._now(self._done + 1, scene)

    def undo(self) -> Scene:
        """Take the last edit back.

        Raises:
            FeaturesplatError: there is none; or, unchanged, what an edit before it raises when it is done again.
        """
        if self._done == 0:
            raise FeaturesplatError("undo: nothing has been done", "Edit something first.")
        return self._now(self._done - 1, self._made(self._done - 1))

    def redo(self) -> Scene:
        """Do again what was undone last.

        Raises:
            FeaturesplatError: there is none; or, unchanged, what the edit raises when it is done again.
        """
        if self._done == len(self._edits):
            raise FeaturesplatError("redo: nothing has been undone", "Undo something first.")
        return self._now(self._done + 1, self._made(self._done + 1))

    def _now(self, step: int, scene: Scene) -> Scene:
        self._done, self._scene = step, scene
        self._forget(step)
        return scene

    def _made(self, step: int) -> Scene:
        """The scene after some edits; those on the way to it stay, as far as there is room."""
        begin = next(i for i in range(step, -1, -1) if self._scenes[i] is not None)
        scene = self._scenes[begin]
        assert scene is not None  # it is the one just found; the first is never let go
        for i in range(begin, step):
            scene = self._scenes[i + 1] = self._again[i].apply(scene)
            self._forget(step)
        return scene

    def _forget(self, step: int) -> None:
        """Let go of scenes until the rest is small enough: the furthest first, those that are dear last."""
        there = [i for i in range(1, len(self._scenes)) if self._scenes[i] is not None]
        there = [i for i in there if i not in (step, self._done)]
        for i in sorted(there, key=lambda i: (self._edits[i - 1].dear, -abs(i - step))):
            if self.bytes <= self.kept:
                return
            scene, self._scenes[i] = self._scenes[i], None
            if scene is not None and i < len(self._edits):
                self._again[i] = self._again[i].settled(scene)


def _memory(scenes: Iterable[Scene | None]) -> dict[int, int]:
    """Bytes of the tensors' memory by its address: what scenes share counts once."""
    out: dict[int, int] = {}
    for scene in (s for s in scenes if s is not None):
        fields = [t for f in scene.fields.values() for t in (f.codes, f.confidence) if t is not None]
        for tensor in (*scene.gaussians.tensors().values(), *fields, *scene.mode_state.values()):
            memory = tensor.untyped_storage()
            out[memory.data_ptr()] = memory.nbytes()
    return out
