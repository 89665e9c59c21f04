"""Panels as data: what the viewer, a mode or a teacher offers to turn, type and press. Nothing here draws.

A panel is a title and a list of controls; a control is a label, a way to read its value and a way to set it. The
viewer draws them for each browser, keeps them in step with what they read, and turns a `FeaturesplatError` raised in
``set`` or ``press`` into a message for that browser. Every function gets the ``session``: one browser that looks on.

A mode or teacher module contributes a panel by one function, which may answer None where it has nothing to offer::

    from featuresplat.controls import Panel, Slider

    def panel(app) -> Panel | None:
        return Panel("Time", [
            Slider("time", 0.0, 1.0, 0.01, get=lambda s: s.look.time or 0.0, set=lambda s, t: s.show(time=t)),
        ])

What a session offers to such functions:

- ``session.scene``: the scene as it is now, edits included (never changed in place);
- ``session.look``: what this browser shows, a frozen dataclass; ``look.time`` and ``look.light`` reach the renders as
  the camera's time and `Scene.render`'s light, ``look.extra`` is a dict for a panel's own values;
- ``session.show(**changes)``: change the look and draw again;
- ``session.edit(edit)``: do an edit of `featuresplat.prompts.edits`, with undo;
- ``session.selection``: the active selection, or None;
- ``session.say(title, body="")``: a message that goes away by itself;
- ``session.work(title, function)``: do something that takes a while, outside of the user interface;
- ``session.play(name, function)``: call ``function(seconds since the last call)`` over and over until it returns
  False, or ``session.play(name, None)`` stops it;
- ``session.app``: what all browsers share; ``app.folder`` is the run's folder or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

Get = Callable[[Any], Any]
Set = Callable[[Any, Any], object]
Press = Callable[[Any], object]


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What every control has.

    Attributes:
        hint: shown when the pointer rests on it.
        when: session -> bool: shown at all; default: always.
        enabled: session -> bool: can be used; default: always.
    """

    hint: str = ""
    when: Get | None = None
    enabled: Get | None = None


@dataclass(frozen=True)
class Note(_Common):
    """Words; plain text, or a function session -> plain text. ``strong`` prints it bold."""

    text: str | Get
    strong: bool = False


@dataclass(frozen=True)
class Slider(_Common):
    """A number between ``low`` and ``high``."""

    label: str
    low: float
    high: float
    step: float
    get: Get
    set: Set


@dataclass(frozen=True)
class Number(_Common):
    """A number that is typed."""

    label: str
    get: Get
    set: Set
    low: float | None = None
    high: float | None = None
    step: float | None = None


@dataclass(frozen=True)
class Choice(_Common):
    """One of several names; ``options`` may be a function session -> names."""

    label: str
    options: Sequence[str] | Get
    get: Get
    set: Set


@dataclass(frozen=True)
class Check(_Common):
    """On or off."""

    label: str
    get: Get
    set: Set


@dataclass(frozen=True)
class Text(_Common):
    """A line that is typed; ``set`` is called when typing has paused for ``pause`` seconds."""

    label: str
    get: Get
    set: Set
    pause: float = 0.5


@dataclass(frozen=True)
class Color(_Common):
    """A colour, three numbers in 0..1."""

    label: str
    get: Get
    set: Set


@dataclass(frozen=True)
class Button(_Common):
    """Something to press. ``icon`` is a name of the Tabler icons (``arrow-back-up``); ``color`` one of Mantine's."""

    label: str
    press: Press
    icon: str = ""
    color: str = ""


@dataclass(frozen=True)
class Buttons(_Common):
    """A row of buttons; ``press`` gets the session and the label that was pressed."""

    label: str
    options: Sequence[str]
    press: Set


@dataclass(frozen=True)
class Picture(_Common):
    """session -> uint8 [H, W, 3] array, or None for nothing."""

    get: Get
    label: str = ""


@dataclass(frozen=True)
class Ramp(_Common):
    """The colour scale, from what its dark end means to what its light end means: session -> (text, text)."""

    get: Get


@dataclass(frozen=True)
class Swatches(_Common):
    """Colours and what they mean: session -> [((r, g, b) in 0..1, text), ...]."""

    get: Get


@dataclass(frozen=True)
class Curve(_Common):
    """A line chart: session -> (x values, {name: y values})."""

    get: Get
    label: str = ""


@dataclass(frozen=True)
class Group(_Common):
    """Controls under a heading, folded away where not ``open``."""

    label: str
    controls: Sequence[Control]
    open: bool = True


@dataclass(frozen=True)
class Varying(_Common):
    """Controls whose number or kind changes: ``key(session)`` says when, ``make(session)`` makes them anew."""

    key: Get
    make: Callable[[Any], Sequence[Control]]


Control = (
    Note
    | Slider
    | Number
    | Choice
    | Check
    | Text
    | Color
    | Button
    | Buttons
    | Picture
    | Ramp
    | Swatches
    | Curve
    | Group
    | Varying
)


@dataclass(frozen=True)
class Panel:
    """One tab of the viewer.

    Attributes:
        title: what the tab says.
        controls: from top to bottom.
        icon: a name of the Tabler icons, e.g. ``clock``.
        order: place among the tabs; the viewer's own take 0 to 100.
        opened: session -> None, called when a browser has got the panel.
    """

    title: str
    controls: Sequence[Control] = field(default_factory=tuple)
    icon: str = ""
    order: float = 50.0
    opened: Press | None = None
