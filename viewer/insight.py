"""What is worked out once about a scene and looked at often: feature colours, scores of prompts, objects.

Results are kept by the identity of what they were made from (scenes are never changed in place), a few at a time, and
made by one thread at a time.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featuresplat.fields.pictures import feature_colors
from featuresplat.prompts import instances, text
from featuresplat.scene import Scene

from .document import Document, State
from .look import Look
from .pictures import Mark, Overlay
from .splats import important

SELECTED = (1.0, 0.85, 0.1)
"""Colour of the active selection."""
MATCH = (1.0, 1.0, 1.0)
"""Colour of the line around what a prompt matches."""
KEPT_RESULTS = 6


class Memo:
    """The last few results, by what they were made from: tensors and scenes by identity, everything else by value."""

    def __init__(self, size: int = KEPT_RESULTS):
        self._guard = threading.Lock()
        self._locks: dict[Any, threading.RLock] = {}
        self._results: deque[tuple[tuple, Any]] = deque(maxlen=size)

    def __call__(self, make: Callable[[], Any], *key: Any) -> Any:
        """The result for ``key``, whose first part names its kind; where there is none ``make`` is called, one at a
        time of each kind. An exception is not remembered.
        """
        found = self._find(key)
        if found:
            return found[0]
        with self._guard:
            lock = self._locks.setdefault(key[0], threading.RLock())
        with lock:
            found = self._find(key)
            if found:
                return found[0]
            value = make()
            self._results.append((key, value))
            return value

    def clear(self) -> None:
        self._results.clear()

    def known(self, *key: Any) -> Any:
        """The result for ``key`` if there is one, else None; never waits."""
        found = self._find(key)
        return found[0] if found else None

    def _find(self, key: tuple) -> tuple[Any] | None:
        for known, value in list(self._results):
            if len(known) == len(key) and all(_same(a, b) for a, b in zip(known, key, strict=True)):
                return (value,)
        return None


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, (str, int, float, tuple, type(None))) and type(a) is type(b) and a == b)


def _question(state: State) -> tuple:
    """What the scores of a state depend on."""
    return "scores", state.scene, tuple(p.text for p in state.prompts), state.negatives, state.field


@dataclass(frozen=True)
class Scores:
    """[P, N] in 0..1 of the document's prompts, the query they came from, and [P, N] what each prompt selects."""

    query: text.TextQuery
    values: Tensor
    masks: Tensor


class Insight:
    """Answers about the document's scene; may be asked from any thread."""

    def __init__(self, document: Document):
        self.document = document
        self._memo = Memo()
        self._base = document.scene
        document.listen(self._forget)

    def _forget(self, state: State) -> None:
        """Let go of results about scenes that no undo leads back to: each would keep its scene alive."""
        if state.scene is not self._base and not state.edits and not state.undone:
            self._base = state.scene
            self._memo.clear()

    @torch.no_grad()
    def feature_colors(self, scene: Scene, field: str) -> Tensor:
        """[N, 3] in 0..1. Raises FeaturesplatError where there is no such field."""
        _, found = scene.field(field or None)
        return self._memo(lambda: feature_colors(found)(found.codes), "features", found.codes)

    @torch.no_grad()
    def scores(self, state: State) -> Scores | None:
        """How the scene answers the state's prompts; None where there are none.

        Raises:
            FeaturesplatError: the scene cannot answer text, or not these phrases.
        """
        if not state.prompts:
            return None
        query, values = self._memo(lambda: self._ask(state), *_question(state))
        masks = self._memo(lambda: query.masks(values, state.threshold), "masks", values, state.threshold)
        return Scores(query, values, masks)

    def known_question(self, state: State) -> bool:
        """Whether the scores are there, whatever the threshold."""
        return bool(state.prompts) and self._memo.known(*_question(state)) is not None

    def known_scores(self, state: State) -> Scores | None:
        """What `scores` has found already; never waits for it."""
        found = self._memo.known(*_question(state)) if state.prompts else None
        masks = None if found is None else self._memo.known("masks", found[1], state.threshold)
        return None if found is None or masks is None else Scores(found[0], found[1], masks)

    @staticmethod
    def _ask(state: State) -> tuple[text.TextQuery, Tensor]:
        phrases = [p.text for p in state.prompts]
        query = text.ask(state.scene, phrases, state.field or None, state.negatives, compete=len(phrases) > 1)
        return query, query.gaussians(state.scene)

    def instances(self, scene: Scene) -> instances.Instances:
        """All objects; looked for when first asked."""
        return self._memo(lambda: instances.find(scene), "instances", scene)

    def known_instances(self, scene: Scene) -> instances.Instances | None:
        """What `instances` has found already; never waits for it."""
        return self._memo.known("instances", scene)

    def sketch(self, scene: Scene, count: int) -> tuple[Scene, Tensor] | None:
        """The ``count`` Gaussians of a scene that cover most, and which they are; None when it has no more."""
        if len(scene.gaussians) <= count:
            return None

        def choose() -> tuple[Scene, Tensor]:
            index = important(scene.gaussians.scales, scene.gaussians.opacities, count)
            assert index is not None  # there are more than that
            return scene.rows(index), index

        return self._memo(choose, "sketch", scene, count)

    def overlay(self, state: State, look: Look) -> Overlay:
        """What the document adds to a look: selections, and the values of its kind.

        Raises:
            FeaturesplatError: the kind cannot be shown of this scene.
        """
        marks = [Mark(k.mask, k.color) for k in state.kept if k.visible]
        if state.selected is not None:
            marks.append(Mark(state.selected, SELECTED))
        if look.kind == "features":
            return Overlay(marks, self.feature_colors(state.scene, look.field))
        if look.kind == "instances":
            return Overlay(marks, self._instance_colors(state.scene))
        if look.kind == "relevancy":
            scores = self.scores(state)
            if scores is not None:
                colors = [p.color for p in state.prompts]
                threshold = 0.5 if state.threshold is None else state.threshold
                if 0 <= look.prompt < len(scores.masks):
                    marks.append(Mark(scores.masks[look.prompt], MATCH, line=True))
                return Overlay(marks, scores.values.T, colors, threshold)
        return Overlay(marks)

    def _instance_colors(self, scene: Scene) -> Tensor:
        found = self.instances(scene)

        def paint() -> Tensor:
            grey = found.colors.new_full((1, 3), 0.25)
            return torch.cat([found.colors, grey])[found.ids.clamp_min(-1)]  # -1 is the last row

        return self._memo(paint, "instance colors", found.ids)
