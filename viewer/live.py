"""Watching a training: pause, resume, step, and edits in the pause.

The training calls `Live.watch` between two steps, in its own thread. What browsers see are copies that were taken
there, so nothing is ever read while a step writes it. While the training runs, edits wait in the document; in the
pause they are done to the copy, and on resume their outcome is put into the training: changed values, removed and
added Gaussians, each with the optimiser's memory of the Gaussian that it came from.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat.densify import make_strategy
from featuresplat.errors import FeaturesplatError
from featuresplat.scene import Scene

from .document import ROWS

if TYPE_CHECKING:
    from featuresplat.trainer import Trainer

    from .app import App

log = logging.getLogger("featuresplat.viewer")

SHARE = 0.05
"""Of the training's time that copies for the viewer may take."""
SHORTEST = 0.5
"""Seconds between two copies."""
CURVE = 400


class Live:
    """The state of a watched training.

    Attributes:
        step, steps: where it is; of the run that it starts from, while that is trained.
        paused: it stands still, and edits may be done.
        finished: all steps are done.
        curve: (step, loss, PSNR of the training views) of some steps.
    """

    def __init__(self, steps: int):
        self.step, self.steps, self.gaussians, self.speed = 0, steps, 0, 0.0
        self.loss, self.psnr = float("nan"), float("nan")
        self.finished = False
        self.curve: deque[tuple[int, float, float]] = deque(maxlen=CURVE)
        self._app: App | None = None
        self._trainer: Trainer | None = None
        self._condition = threading.Condition()
        self._pause_asked = False
        self._steps_left: int | None = None
        self._standing = False
        self._closed = False
        self._last_copy, self._copy_cost = 0.0, 0.0
        self._began = (time.monotonic(), 0)

    def attach(self, app: App) -> None:
        """Show the training in this viewer."""
        self._app = app
        app.live = self
        app.document.busy = lambda: not self.paused

    @property
    def paused(self) -> bool:
        return self._standing or self.finished

    def pause(self) -> None:
        """Stand still after the step that runs."""
        with self._condition:
            self._pause_asked, self._steps_left = True, None
            self._condition.notify_all()

    def resume(self) -> None:
        with self._condition:
            self._pause_asked, self._steps_left = False, None
            self._condition.notify_all()

    def advance(self, steps: int) -> None:
        """Do some steps, then stand still again."""
        with self._condition:
            self._pause_asked, self._steps_left = True, steps or None
            self._condition.notify_all()

    def close(self) -> None:
        """The viewer goes; the training runs on by itself."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()

    def finish(self) -> None:
        """All steps are done, and the scene is written."""
        self.finished = True

    # In the training's thread

    def watch(self, trainer: Trainer) -> None:
        """Look at the training between two steps, and hold it in a pause."""
        self._note(trainer)
        if self._closed or self._app is None:
            return
        if self._should_stand(trainer):
            self._stand(trainer)
        elif time.monotonic() - self._last_copy > max(SHORTEST, self._copy_cost / SHARE):
            self._copy(trainer)

    def _note(self, trainer: Trainer) -> None:
        self.step, self.gaussians = trainer.step_index, len(trainer.mode.gaussian_params["means"])
        self.loss, self.psnr = trainer.running["loss"], trainer.running["psnr"]
        if trainer is not self._trainer:  # one that another starts from has ended, maybe
            self._trainer, self.steps = trainer, trainer.config.steps
            self._began = (time.monotonic(), self.step)
            self.curve.clear()
        last = self._app is None or trainer.folder == self._app.folder
        self.finished = last and self.step >= self.steps
        if self.step % max(1, self.steps // CURVE) == 0:
            self.curve.append((self.step, self.loss, self.psnr))
        began, first = self._began
        if time.monotonic() - began > 1.0:
            self.speed = (self.step - first) / (time.monotonic() - began)
            self._began = (time.monotonic(), self.step)

    def _should_stand(self, trainer: Trainer) -> bool:
        with self._condition:
            if self._pause_asked and self._steps_left is not None:
                self._steps_left = self._steps_left - 1 or None
                return self._steps_left is None
            return self._pause_asked or trainer.stop_asked

    def _stand(self, trainer: Trainer) -> None:
        assert self._app is not None
        app = self._app
        self._copy(trainer)
        self._standing = True
        try:
            for error in app.document.apply_waiting():
                for session in app.sessions:
                    session.fail(error)
            self._refresh()
            with self._condition:  # steps may have been asked for since it stands
                while self._pause_asked and self._steps_left is None and not self._closed and not trainer.stop_asked:
                    self._condition.wait(0.2)
        finally:
            self._standing = False
        self._take_edits(trainer)
        self._began = (time.monotonic(), self.step)
        self._refresh()

    def _copy(self, trainer: Trainer) -> None:
        assert self._app is not None
        began = time.monotonic()
        self._app.document.replace_base(copied(trainer.scene()))
        self._last_copy = time.monotonic()
        self._copy_cost = self._last_copy - began

    def _refresh(self) -> None:
        assert self._app is not None
        for session in self._app.sessions:
            session.refresh()

    def _take_edits(self, trainer: Trainer) -> None:
        """Put what was edited in the pause into the training."""
        assert self._app is not None
        state = self._app.document.state
        if not state.edits:
            return
        try:
            take(trainer, state.scene)
        except FeaturesplatError as error:
            for session in self._app.sessions:
                session.fail(error)


@torch.no_grad()
def copied(scene: Scene) -> Scene:
    """A scene that shares no memory with the training."""
    state = {k: v.detach().clone() for k, v in scene.mode_state.items()}
    return replace(scene, gaussians=scene.gaussians.map(lambda t: t.detach().clone()), mode_state=state)


@torch.no_grad()
def take(trainer: Any, scene: Scene) -> None:
    """Give a training the Gaussians of an edited copy of its scene.

    Raises:
        FeaturesplatError: the mode keeps more per Gaussian than a static scene does.
    """
    params = trainer.mode.gaussian_params
    if trainer.config.mode != "static":
        raise FeaturesplatError(
            f"edits in a pause: a training of mode '{trainer.config.mode}' cannot take them.",
            "Edit the scene when the training is finished.",
        )
    frame, g = trainer.frame, scene.gaussians
    rows = scene.mode_state[ROWS].to(params["means"].device) - 1  # -1: from another scene
    values = g.tensors()
    offset = torch.log(torch.tensor(frame.scale, dtype=torch.float64)).float()
    values["means"] = ((g.means.double() - frame.center.to(g.means.device)) * frame.scale).float()
    values["log_scales"] = g.log_scales + offset.to(g.means.device)
    for name, old in list(params.items()):
        new = torch.nn.Parameter(values[name].to(old.device, old.dtype).clone())
        state = trainer.optimizer.state.pop(old, None)
        if state:
            trainer.optimizer.state[new] = {k: _carried(v, old, rows) for k, v in state.items()}
        for group in trainer.optimizer.param_groups:
            group["params"] = [new if p is old else p for p in group["params"]]
        params[name] = new
    if len(rows) != len(old):
        config = trainer.config
        trainer.strategy = make_strategy(config.densify, config.model, config.steps, 1.0)


def _carried(value: Any, old: Tensor, rows: Tensor) -> Any:
    """A moment with a row per Gaussian, for the Gaussians that are there now; guests start at zero."""
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    out = value[rows.clamp_min(0)]
    out[rows < 0] = 0
    return out
