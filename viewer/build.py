"""Panels as data -> what viser shows, kept in step with what the controls read.

A built panel belongs to one browser and is touched by that session's own thread only: events are posted to it in the
order in which they came, and `Built.refresh` reads every control again and sends what has changed.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from featuresplat import controls as c

from . import icons, markup

log = logging.getLogger("featuresplat.viewer")

_MISSING = object()


class Built:
    """One panel, or a part of one, in one browser."""

    def __init__(self, session: Any, gui: Any, controls: Sequence[c.Control]):
        self._session, self._gui = session, gui
        self._parts = [_PARTS[type(control)](session, gui, control) for control in controls]

    def refresh(self) -> None:
        """Show what the controls read now."""
        for part in self._parts:
            part.refresh_safely()

    def remove(self) -> None:
        for part in self._parts:
            part.remove()


class _Part:
    """One control: its viser handle, and what was last sent of it."""

    handle: Any = None

    def __init__(self, session: Any, gui: Any, control: Any):
        self.session, self.gui, self.control = session, gui, control
        self._sent: dict[str, Any] = {}
        self.make()
        self.refresh_safely()

    def make(self) -> None:
        """Create the handle."""
        raise NotImplementedError

    def update(self) -> None:
        """Bring the handle in step; called after every change."""

    def refresh_safely(self) -> None:
        try:
            self._common()
            self.update()
        except Exception:
            log.exception("the control %r cannot be shown", getattr(self.control, "label", self.control))

    def _common(self) -> None:
        if self.handle is None:
            return
        if self.control.when is not None:
            self.send("visible", bool(self.control.when(self.session)))
        if self.control.enabled is not None and hasattr(self.handle, "disabled"):
            self.send("disabled", not self.control.enabled(self.session))

    def send(self, name: str, value: Any) -> None:
        """Assign a property of the handle where it differs from what was sent last."""
        old = self._sent.get(name, _MISSING)
        same = np.array_equal(old, value) if isinstance(value, np.ndarray) and old is not _MISSING else old == value
        if not same:
            self._sent[name] = value
            setattr(self.handle, name, value)

    def remove(self) -> None:
        if self.handle is not None:
            self.handle.remove()

    def listen(self, convert: Callable[[Any], Any] = lambda value: value) -> None:
        """Post what the browser sets; what we set ourselves comes without a client."""

        async def changed(event: Any) -> None:
            if event.client is not None:
                value = event.target.value
                self._sent["value"] = value
                self.session.post(self, lambda: self.control.set(self.session, convert(value)))

        self.handle.on_update(changed)


class _Note(_Part):
    def make(self) -> None:
        self.handle = self.gui.add_html(self._content())

    def update(self) -> None:
        self.send("content", self._content())

    def _content(self) -> str:
        text = self.control.text
        text = text(self.session) if callable(text) else text
        return markup.paragraph(str(text), self.control.strong)


class _Slider(_Part):
    def make(self) -> None:
        k = self.control
        whole = all(isinstance(v, int) for v in (k.low, k.high, k.step))
        self._kind = int if whole else float
        low, high, step = (self._kind(v) for v in (k.low, k.high, k.step))
        self.handle = self.gui.add_slider(k.label, low, high, step, self._value(), hint=k.hint or None)
        self.listen(self._clamped)

    def _value(self) -> float:
        return self._clamped(self.control.get(self.session))

    def _clamped(self, value: Any) -> float:
        value = float(value) if math.isfinite(float(value)) else self.control.low
        return self._kind(min(max(value, self.control.low), self.control.high))

    def update(self) -> None:
        self.send("value", self._value())


class _Number(_Part):
    def make(self) -> None:
        k = self.control
        self.handle = self.gui.add_number(
            k.label, float(k.get(self.session)), min=k.low, max=k.high, step=k.step, hint=k.hint or None
        )
        self.listen(lambda value: float(value) if math.isfinite(float(value)) else float(k.get(self.session)))

    def update(self) -> None:
        self.send("value", float(self.control.get(self.session)))


class _Choice(_Part):
    def make(self) -> None:
        options = self._options()
        value = self._value(options)
        self._sent |= {"options": options, "value": value}
        self.handle = self.gui.add_dropdown(
            self.control.label, options, initial_value=value, hint=self.control.hint or None
        )

        def known(value: str) -> str:
            return value if value in self._sent["options"] else self._sent["options"][0]

        self.listen(known)

    def _options(self) -> tuple[str, ...]:
        options: Any = self.control.options
        found: Any = options(self.session) if callable(options) else options
        return tuple(found) or ("-",)

    def _value(self, options: tuple[str, ...]) -> str:
        value = str(self.control.get(self.session))
        return value if value in options else options[0]

    def update(self) -> None:
        options = self._options()
        value = self._value(options)
        if self._sent["options"] != options:
            self._sent["value"] = _MISSING  # viser may choose another value when the options change
        self.send("options", options)
        self.send("value", value)


class _Check(_Part):
    def make(self) -> None:
        k = self.control
        self.handle = self.gui.add_checkbox(k.label, bool(k.get(self.session)), hint=k.hint or None)
        self.listen()

    def update(self) -> None:
        self.send("value", bool(self.control.get(self.session)))


class _Text(_Part):
    """What is being typed is left alone: a new value is sent only when what the control reads has changed."""

    def make(self) -> None:
        k = self.control
        value = str(k.get(self.session))
        self._read, self._timer = value, None
        self.handle = self.gui.add_text(k.label, value, hint=k.hint or None)

        async def changed(event: Any) -> None:
            if event.client is None:
                return
            if self._timer is not None:
                self._timer.cancel()
            value = str(event.target.value)
            self._timer = threading.Timer(k.pause, self._post, [value])
            self._timer.daemon = True
            self._timer.start()

        self.handle.on_update(changed)

    def _post(self, value: str) -> None:
        self.session.post(self, lambda: self.control.set(self.session, value))

    def update(self) -> None:
        value = str(self.control.get(self.session))
        if value != self._read:
            self._read = value
            if self.handle.value != value:
                self.handle.value = value

    def remove(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().remove()


class _Color(_Part):
    def make(self) -> None:
        self.handle = self.gui.add_rgb(self.control.label, self._value(), hint=self.control.hint or None)
        self.listen(lambda value: tuple(v / 255 for v in value))

    def _value(self) -> tuple[int, int, int]:
        r, g, b = (round(255 * v) for v in self.control.get(self.session))
        return r, g, b

    def update(self) -> None:
        self.send("value", self._value())


class _Button(_Part):
    def make(self) -> None:
        k = self.control
        self.handle = self.gui.add_button(k.label, hint=k.hint or None, icon=icons.known(k.icon), color=k.color or None)

        async def pressed(event: Any) -> None:
            if event.client is not None:
                self.session.post(object(), lambda: k.press(self.session))

        self.handle.on_click(pressed)


class _Buttons(_Part):
    def make(self) -> None:
        k = self.control
        self.handle = self.gui.add_button_group(k.label, tuple(k.options), hint=k.hint or None)

        async def pressed(event: Any) -> None:
            value = event.target.value
            if event.client is not None and value in k.options:
                self.session.post(object(), lambda: k.press(self.session, value))

        self.handle.on_click(pressed)


class _Picture(_Part):
    _blank = np.zeros((1, 1, 3), np.uint8)

    def make(self) -> None:
        self.handle = self.gui.add_image(self._blank, label=self.control.label or None, format="jpeg")

    def update(self) -> None:
        image = self.control.get(self.session)
        self.send("visible", image is not None)
        if image is not None:
            self.send("image", image)


class _Html(_Part):
    """What is drawn by a few lines of our own HTML."""

    def make(self) -> None:
        self.handle = self.gui.add_html("")

    def update(self) -> None:
        self.send("content", self.content())

    def content(self) -> str:
        raise NotImplementedError


class _Ramp(_Html):
    def content(self) -> str:
        return markup.ramp(*self.control.get(self.session))


class _Swatches(_Html):
    def content(self) -> str:
        return markup.swatches(self.control.get(self.session))


class _Curve(_Part):
    def make(self) -> None:
        import viser.uplot as uplot

        x, lines = self.control.get(self.session)
        colors = ("#339af0", "#ff922b", "#51cf66", "#f06595")
        series = [uplot.Series(label="step")]
        series += [uplot.Series(label=name, stroke=colors[i % len(colors)], width=2) for i, name in enumerate(lines)]
        self.handle = self.gui.add_uplot(
            self._data(x, lines), tuple(series), title=self.control.label or None,
            scales={"x": uplot.Scale(time=False, auto=True), "y": uplot.Scale(auto=True)}, aspect=2.0,
        )  # fmt: skip

    @staticmethod
    def _data(x: Any, lines: dict[str, Any]) -> tuple[np.ndarray, ...]:
        return tuple(np.asarray(v, dtype=np.float64) for v in (x, *lines.values()))

    def update(self) -> None:
        data = self._data(*self.control.get(self.session))
        old = self._sent.get("data")
        if (
            old is None
            or len(old) != len(data)
            or any(not np.array_equal(a, b) for a, b in zip(old, data, strict=True))
        ):
            self._sent["data"] = data
            self.handle.data = data


class _Group(_Part):
    def make(self) -> None:
        self.handle = self.gui.add_folder(self.control.label, expand_by_default=self.control.open)
        with self.handle:
            self._inner = Built(self.session, self.gui, self.control.controls)

    def update(self) -> None:
        self._inner.refresh()


class _Varying(_Part):
    """Made anew in a frame of its own when the key changes."""

    def make(self) -> None:
        self.handle = self.gui.add_folder(None)
        self._key: Any = _MISSING
        self._inner: Built | None = None

    def update(self) -> None:
        key = self.control.key(self.session)
        if self._inner is not None and key == self._key:
            self._inner.refresh()
            return
        self._key = key
        if self._inner is not None:
            self._inner.remove()
        controls = self.control.make(self.session)
        if self.control.when is None:
            self.send("visible", bool(controls))
        with self.handle:
            self._inner = Built(self.session, self.gui, controls)


_PARTS: dict[type, type[_Part]] = {
    c.Note: _Note,
    c.Slider: _Slider,
    c.Number: _Number,
    c.Choice: _Choice,
    c.Check: _Check,
    c.Text: _Text,
    c.Color: _Color,
    c.Button: _Button,
    c.Buttons: _Buttons,
    c.Picture: _Picture,
    c.Ramp: _Ramp,
    c.Swatches: _Swatches,
    c.Curve: _Curve,
    c.Group: _Group,
    c.Varying: _Varying,
}
