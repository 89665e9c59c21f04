"""Edits in time, of scenes that move: hold still, change the clock, repeat later. All others work at every time."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import rotmat_to_quat
from featuresplat.modes._motion import dualquat
from featuresplat.modes._motion.finished import placement
from featuresplat.prompts.edits import Duplicate, Edit
from featuresplat.prompts.targets import Target

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Freeze(Edit):
    """Hold still, as at one time.

    Attributes:
        time: in 0..1.
    """

    kind: ClassVar[str] = "freeze"
    time: float = 0.0

    def apply(self, scene: Scene) -> Scene:
        if not 0 <= self.time <= 1:
            raise FeaturesplatError(f"freeze: expected a time in 0..1, got {self.time:g}", "0 is the beginning.")
        return _with_clock(scene, self.target.select(scene).mask, 0.0, self.time, self)


@dataclass(frozen=True)
class Retime(Edit):
    """Another clock: what was shown at time speed * t + offset is shown at t; outside of 0..1 it stands.

    Attributes:
        speed: 2 is twice as fast, -1 (with offset 1) backwards. offset: added to the time.
    """

    kind: ClassVar[str] = "retime"
    speed: float = 1.0
    offset: float = 0.0

    def apply(self, scene: Scene) -> Scene:
        return _with_clock(scene, self.target.select(scene).mask, self.speed, self.offset, self)


@dataclass(frozen=True)
class Echo(Duplicate):
    """A copy that does the same later, and may stand elsewhere.

    Attributes:
        delay: in units of the whole time; negative runs ahead.
    """

    kind: ClassVar[str] = "echo"
    delay: float = 0.2

    def apply(self, scene: Scene) -> Scene:
        count = len(scene.gaussians)
        out = super().apply(scene)
        copy = torch.arange(len(out.gaussians), device=out.gaussians.means.device) >= count
        return _with_clock(out, copy, 1.0, -self.delay, self)


EDITS: dict[str, type[Edit]] = {c.kind: c for c in (Freeze, Retime, Echo)}


def understands(clause: str, scene: Scene) -> Edit | None:
    """The edit that a sentence about time asks for; None for anything else.

    "freeze the duck", "stop the duck at 0.5", "play the duck backwards", "make the duck twice as fast", "delay the
    duck by 0.2", "repeat the duck 0.2 later".
    """
    said = clause.strip().lower().rstrip(".!")
    number = r"(\d*\.?\d+)"
    rules = (
        (rf"(?:freeze|stop|halt)(?: the)? (.+?)(?: (?:at|at time) {number})?", _freeze),
        (r"(?:play|run|reverse)(?: the)? (.+?)(?: backwards?| in reverse)", _backwards),
        (
            rf"(?:play|run|make)(?: the)? (.+?) (?:at )?(twice|half|{number} times) (?:as fast|the speed|faster)",
            _faster,
        ),
        (rf"(?:delay|postpone)(?: the)? (.+?) by {number}", _delay),
        (rf"(?:repeat|echo)(?: the)? (.+?) (?:after )?{number} later", _echo),
    )
    for pattern, make in rules:
        match = re.fullmatch(pattern, said)
        if match:
            return make(*match.groups())
    return None


def _freeze(what: str, time: str | None) -> Edit:
    return Freeze(Target(text=what), time=float(time or 0.0))


def _backwards(what: str) -> Edit:
    return Retime(Target(text=what), speed=-1.0, offset=1.0)


def _faster(what: str, how: str, times: str | None) -> Edit:
    return Retime(Target(text=what), speed={"twice": 2.0, "half": 0.5}.get(how) or float(times or 1.0))


def _delay(what: str, by: str) -> Edit:
    return Retime(Target(text=what), offset=-float(by))


def _echo(what: str, later: str) -> Edit:
    return Echo(Target(text=what), delay=float(later))


def _with_clock(scene: Scene, mask: Tensor, speed: float, offset: float, edit: Edit) -> Scene:
    """The scene whose Gaussians at ``mask`` live at speed * t + offset, by whatever clock they had."""
    ids = scene.mode_state.get("gaussian.nodes")
    if ids is None:
        raise FeaturesplatError(
            f"{edit.kind}: a scene of mode '{scene.mode}' has no motion of its parts to change",
            "Edit a scene trained with --config dynamic.",
        )
    if not bool((ids[mask][:, 0] > 0).any()):
        raise FeaturesplatError(f"{edit.kind}: {edit.target.describe()} holds still", "Choose something that moves.")
    clock = scene.mode_state.get("gaussian.clock")
    clock = torch.zeros(len(ids), 2, device=ids.device) if clock is None else clock.clone()
    a, b = clock[mask].unbind(1)
    clock[mask] = torch.stack([(1 + a) * speed - 1, (1 + a) * offset + b], dim=1)
    return replace(scene, mode_state={**scene.mode_state, "gaussian.clock": clock})


def moved(
    scene: Scene, mask: Tensor, rotation: Tensor, scale: float, pivot: Tensor, translate: Tensor
) -> dict[str, Tensor]:
    """The mode's tensors after Gaussians at ``mask`` were moved by x -> scale R (x - pivot) + pivot + translate.

    Their motion is carried along: what was done to a thing in the rest frame is done to it at every time.
    """
    state, g = scene.mode_state, scene.gaussians
    old = state.get("gaussian.placed")
    old = g.means.new_zeros(len(g), 8) if old is None else old
    log_scale, turn, shift = placement(old[mask].double())
    R, about = rotation.to(shift), pivot.to(shift)
    new_turn = dualquat.quat_mul(rotmat_to_quat(R).expand_as(turn), turn)
    new_turn = torch.where(new_turn[:, :1] < 0, -new_turn, new_turn)
    new_shift = scale * (shift - about) @ R.T + about + translate.to(shift)
    rows = torch.cat([(log_scale + torch.tensor(scale).log())[:, None], new_turn, new_shift], dim=1)
    rows[:, 1] -= 1
    placed = old.clone()
    placed[mask] = rows.to(placed)
    return {**state, "gaussian.placed": placed}
