"""The viewer's time panel."""

from __future__ import annotations

from typing import Any

from featuresplat.controls import Buttons, Check, Choice, Group, Number, Panel, Slider
from featuresplat.modes._motion.edits import Echo, Freeze, Retime
from featuresplat.prompts.targets import Target

SECONDS = 4.0
"""How long the whole time takes at speed 1."""
SPEEDS = ("0.25", "0.5", "1", "2", "4")


def panel(app: Any) -> Panel | None:
    """Time: slider, play and stop, speed, loop, trails; and edits in time of what is selected."""
    scene = app.document.scene
    if scene.cameras.times is None:
        return None
    controls = [
        Slider("Time", 0.0, 1.0, 0.002, get=_time, set=lambda s, t: s.show(time=float(t))),
        Buttons("Play", ("Play", "Stop"), press=_play, hint="Run through the whole time."),
        Choice("Speed", SPEEDS, get=lambda s: _own(s)["speed"], set=lambda s, v: _keep(s, speed=v)),
        Check("Loop", get=lambda s: _own(s)["loop"], set=lambda s, v: _keep(s, loop=bool(v))),
        Check("Trails", get=lambda s: s.look.kind == "trails", set=_trails, hint="Where things were a moment ago."),
    ]
    if "gaussian.nodes" in scene.mode_state:
        edits = [
            Buttons("Selection", ("Freeze", "Backwards", "Echo"), press=_edit, hint="Freeze as it is at this time."),
            Number("Delay", get=lambda s: _own(s)["delay"], set=lambda s, v: _keep(s, delay=float(v)), step=0.05),
        ]
        controls.append(Group("In time", edits, open=False))
    return Panel("Time", controls, order=15)


def _time(session: Any) -> float:
    return float(session.look.time or 0.0)


def _own(session: Any) -> dict[str, Any]:
    return {"speed": "1", "loop": True, "delay": 0.2, **session.look.extra.get("time", {})}


def _keep(session: Any, **values: Any) -> None:
    session.show(extra={**session.look.extra, "time": {**_own(session), **values}})


def _trails(session: Any, on: bool) -> None:
    session.show(kind="trails" if on else "rgb")


def _play(session: Any, which: str) -> None:
    if which == "Stop":
        session.play("time", None)
        return
    if _time(session) >= 1.0:
        session.show(time=0.0)

    def step(seconds: float) -> bool:
        own = _own(session)
        time = _time(session) + seconds * float(own["speed"]) / SECONDS
        if time > 1.0 and not own["loop"]:
            session.show(time=1.0)
            return False
        session.show(time=time % 1.0 if time > 1.0 else time)
        return True

    session.play("time", step)


def _edit(session: Any, which: str) -> None:
    selection = session.selection
    if selection is None:
        session.say("Select something first", "Click on a thing that moves, or ask for it.")
        return
    target = Target.of(selection, session.scene)
    if which == "Freeze":
        session.edit(Freeze(target, time=_time(session)))
    elif which == "Backwards":
        session.edit(Retime(target, speed=-1.0, offset=1.0))
    else:
        session.edit(Echo(target, delay=_own(session)["delay"]))
