"""What all browsers share: the scene with its edits, the prompts and the selections.

All of it is one frozen `State`, replaced as a whole under one lock: whoever reads takes ``document.state`` and has a
consistent picture for as long as it likes, and nobody waits for a render. Edits are done one at a time, outside of
that lock; the last thing an edit does is to swap the state.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Edit, Edited
from featuresplat.prompts.selection import Selection
from featuresplat.scene import Scene

log = logging.getLogger("featuresplat.viewer")

ROWS = "gaussian.viewer_row"
"""Name of the per-Gaussian number that edits carry along, so that selections survive them."""
LONGEST_PROMPT = 200
LONGEST_NAME = 60
MOST_PROMPTS = 12

RGB = tuple[float, float, float]
PALETTE: tuple[RGB, ...] = (
    (1.00, 0.62, 0.10),
    (0.20, 0.75, 1.00),
    (0.95, 0.35, 0.75),
    (0.45, 0.90, 0.35),
    (0.72, 0.55, 1.00),
    (1.00, 0.90, 0.25),
    (0.10, 0.85, 0.70),
    (1.00, 0.45, 0.40),
)


@dataclass(frozen=True)
class Prompt:
    """A phrase and its colour; ``against`` are what it has to beat beside the teacher's own phrases."""

    text: str
    color: RGB


@dataclass(frozen=True, eq=False)
class Kept:
    """A named selection of the list."""

    name: str
    mask: Tensor  # bool [N] of the state's scene
    color: RGB
    visible: bool = True


class Packed:
    """A mask bool [N] at rest: a bit for each Gaussian, and less where they lie in runs."""

    def __init__(self, mask: Tensor):
        self._count, self._device = len(mask), mask.device
        self._bits = zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), 1)

    def mask(self) -> Tensor:
        """bool [N], on its device."""
        bits = np.frombuffer(zlib.decompress(self._bits), np.uint8)
        return torch.from_numpy(np.unpackbits(bits, count=self._count).astype(bool)).to(self._device)


@dataclass(frozen=True)
class State:
    """Everything shared, at one moment.

    Attributes:
        version: rises with every change.
        scene: with all edits.
        edits, undone: what was done, and what redo would do next, first.
        prompts: asked for, each with its colour.
        negatives: phrases that every prompt has to beat.
        threshold: scores above are selected; None leaves it to the field.
        field: the field that is asked; "" is the last one that answers text.
        selected: bool [N], the active selection, or None.
        kept: named selections.
        waiting: edits that wait for the training's pause.
    """

    version: int
    scene: Scene
    edits: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()
    prompts: tuple[Prompt, ...] = ()
    negatives: tuple[str, ...] = ()
    threshold: float | None = None
    field: str = ""
    selected: Tensor | None = None
    kept: tuple[Kept, ...] = ()
    waiting: tuple[Edit, ...] = ()

    @property
    def selection(self) -> Selection | None:
        return None if self.selected is None else Selection(self.selected, "selection")


Listener = Callable[[State], None]


class Document:
    """The shared state and what may be done to it; every method may be called from any thread."""

    def __init__(self, scene: Scene):
        self._lock = threading.Lock()
        self._editing = threading.RLock()
        self._edited = Edited(_numbered(scene))
        self._before: list[tuple[Packed | None, tuple[tuple[Kept, Packed], ...]]] = []
        self._state = State(0, self._edited.scene)
        self._listeners: list[Listener] = []
        self.busy: Callable[[], bool] = lambda: False
        """True while edits have to wait: a training runs."""

    @property
    def state(self) -> State:
        return self._state

    @property
    def scene(self) -> Scene:
        return self._state.scene

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with the new state after each change; the answer stops that."""
        with self._lock:
            self._listeners = [*self._listeners, listener]

        def stop() -> None:
            with self._lock:
                self._listeners = [x for x in self._listeners if x is not listener]

        return stop

    def change(self, **changes) -> State:
        """Replace parts of the state and tell everybody."""
        return self._mutate(lambda state: changes)

    def _mutate(self, changes: Callable[[State], dict]) -> State:
        """Replace what ``changes`` of the state says, then, outside of the lock, tell everybody."""
        with self._lock:
            self._state = replace(self._state, version=self._state.version + 1, **changes(self._state))
            state, listeners = self._state, self._listeners
        for listener in listeners:
            try:
                listener(state)
            except Exception:
                log.exception("a listener failed")
        return state

    # Asking

    def ask(self, phrases: Sequence[str], negatives: Sequence[str] | None = None) -> State:
        """Set the prompts; colours stay with their phrases.

        Raises:
            FeaturesplatError: a phrase that is too long, or too many of them.
        """
        texts = list(dict.fromkeys(checked_phrase(p) for p in phrases if p.strip()))
        against = None if negatives is None else tuple(checked_phrase(p) for p in negatives if p.strip())
        if len(texts) > MOST_PROMPTS:
            raise FeaturesplatError(
                f"prompts: expected at most {MOST_PROMPTS}, got {len(texts)}.", "Take some of them away."
            )

        def changes(state: State) -> dict:
            old = {p.text: p.color for p in state.prompts}
            free = [c for c in PALETTE if c not in {old[t] for t in texts if t in old}]
            prompts = [Prompt(t, old[t] if t in old else free.pop(0) if free else PALETTE[0]) for t in texts]
            return {"prompts": tuple(prompts), "negatives": state.negatives if against is None else against}

        return self._mutate(changes)

    # Selecting

    def select(self, mask: Tensor | None, how: str = "replace") -> State:
        """Set the active selection, or combine it: ``replace``, ``add``, ``subtract``, ``intersect``.

        Raises:
            FeaturesplatError: the mask belongs to another scene.
        """

        def changes(state: State) -> dict:
            new = mask
            if new is not None and len(new) != len(state.scene.gaussians):
                raise FeaturesplatError(
                    f"selection: it counts {len(new)} Gaussians, the scene has {len(state.scene.gaussians)} by now.",
                    "Select again.",
                )
            old = torch.zeros_like(new) if new is not None and state.selected is None else state.selected
            if new is not None and old is not None and how != "replace":
                new = {"add": old | new, "subtract": old & ~new, "intersect": old & new}[how]
            return {"selected": new if new is not None and bool(new.any()) else None}

        return self._mutate(changes)

    def keep(self, name: str) -> State:
        """Put the active selection into the list under a name; one of that name is replaced.

        Raises:
            FeaturesplatError: nothing is selected, or an empty or overlong name.
        """
        name = checked_name(name)

        def changes(state: State) -> dict:
            if state.selected is None:
                raise FeaturesplatError("selection: nothing is selected.", "Click something, or ask for it, first.")
            used = {k.color for k in state.kept if k.name != name}
            color = next((c for c in PALETTE[1:] if c not in used), PALETTE[1])
            kept = Kept(name, state.selected, color)
            others = tuple(kept if k.name == name else k for k in state.kept)
            return {"kept": others if kept in others else (*others, kept)}

        return self._mutate(changes)

    def update_kept(self, name: str, **values) -> State:
        """Change one of the list: ``visible``, ``color``, ``name``."""
        return self._mutate(
            lambda state: {"kept": tuple(replace(k, **values) if k.name == name else k for k in state.kept)}
        )

    def forget(self, name: str) -> State:
        """Take one out of the list."""
        return self._mutate(lambda state: {"kept": tuple(k for k in state.kept if k.name != name)})

    def kept(self, name: str) -> Kept:
        """Raises FeaturesplatError when there is none of that name."""
        for k in self._state.kept:
            if k.name == name:
                return k
        raise FeaturesplatError(f"selection: there is none called '{name}'.", "Choose one of the list.")

    # Editing

    def apply(self, edit: Edit) -> State:
        """Do an edit; while a training runs it waits for the pause.

        Raises:
            FeaturesplatError: as the edit does.
        """
        with self._editing:
            if self.busy():
                return self._mutate(lambda state: {"waiting": (*state.waiting, edit)})
            before = self._state
            scene = self._edited.apply(edit)
            self._remember(before)
            return self._edited_to(scene, before)

    def undo(self) -> State:
        """Raises FeaturesplatError when there is nothing to undo."""
        with self._editing:
            self._refuse_while_busy()
            scene = self._edited.undo()
            selected, kept = self._before.pop()
            masks = None if selected is None else selected.mask(), tuple(replace(k, mask=m.mask()) for k, m in kept)
            return self._swap(scene, *masks)

    def redo(self) -> State:
        """Raises FeaturesplatError when there is nothing to redo."""
        with self._editing:
            self._refuse_while_busy()
            before = self._state
            scene = self._edited.redo()
            self._remember(before)
            return self._edited_to(scene, before)

    def apply_waiting(self) -> list[FeaturesplatError]:
        """Do what waited for the pause; answers what could not be done."""
        failed = []
        with self._editing:
            waiting = self._state.waiting
            if waiting:
                self.change(waiting=())
            for edit in waiting:
                try:
                    self.apply(edit)
                except FeaturesplatError as error:
                    failed.append(error)
        return failed

    def replace_base(self, scene: Scene) -> State:
        """A new scene in place of the one that was opened: edits and selections are forgotten."""
        with self._editing:
            self._edited = Edited(_numbered(scene))
            self._before = []
            return self._swap(self._edited.scene, None, ())

    def _remember(self, state: State) -> None:
        """What undo selects again: hundreds of edits must not hold hundreds of masks."""
        selected = None if state.selected is None else Packed(state.selected)
        kept = tuple((replace(k, mask=torch.empty(0, dtype=torch.bool)), Packed(k.mask)) for k in state.kept)
        self._before.append((selected, kept))

    def _refuse_while_busy(self) -> None:
        if self.busy():
            raise FeaturesplatError("The training is running: edits wait for a pause.", "Press Pause first.")

    def _edited_to(self, scene: Scene, before: State) -> State:
        """After an edit: selections follow their Gaussians. Copies and guests become the selection."""
        old, new = before.scene.mode_state[ROWS], scene.mode_state[ROWS]
        selected = follow(before.selected, old, new) if before.selected is not None else None
        if len(new) > len(old):
            selected = torch.arange(len(new), device=new.device) >= len(old)
        kept = tuple(replace(k, mask=follow(k.mask, old, new)) for k in before.kept)
        return self._swap(scene, selected if selected is not None and bool(selected.any()) else None, kept)

    def _swap(self, scene: Scene, selected: Tensor | None, kept: tuple[Kept, ...]) -> State:
        edited = self._edited
        return self.change(scene=scene, edits=edited.edits, undone=edited.undone, selected=selected, kept=kept)


def follow(mask: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """A mask over Gaussians with the row numbers ``old``, over those with ``new``."""
    return torch.isin(new, old[mask])


def clean_scene(scene: Scene) -> Scene:
    """Without the row numbers that only the viewer needs: what may be saved."""
    state = {k: v for k, v in scene.mode_state.items() if k != ROWS}
    return replace(scene, mode_state=state)


def checked_phrase(text: str) -> str:
    """One line of at most `LONGEST_PROMPT` characters.

    Raises:
        FeaturesplatError: it is empty or longer.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text:
        raise FeaturesplatError("prompt: expected a phrase, got nothing.", "Type what to look for, e.g. a red mug.")
    if len(text) > LONGEST_PROMPT:
        raise FeaturesplatError(
            f"prompt: expected at most {LONGEST_PROMPT} characters, got {len(text)}.", "Ask for it in fewer words."
        )
    return text


def checked_name(text: str) -> str:
    """A name for a selection: one line of at most `LONGEST_NAME` characters; raises FeaturesplatError otherwise."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if not text or len(text) > LONGEST_NAME:
        got = f"{len(text)} characters" if text else "nothing"
        raise FeaturesplatError(f"name: expected 1 to {LONGEST_NAME} characters, got {got}.", "Type a short name.")
    return text


def _numbered(scene: Scene) -> Scene:
    rows = torch.arange(1, len(scene.gaussians) + 1, device=scene.gaussians.means.device)
    return replace(scene, mode_state={**scene.mode_state, ROWS: rows})
