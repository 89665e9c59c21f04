"""Panels that a mode contributes, and those that cannot be made."""

from __future__ import annotations

import pytest
from wire import until

from featuresplat.controls import Button, Choice, Note, Panel, Slider, Text
from featuresplat.viewer import panels


class ModeWithPanel:
    """Stands for a mode module that contributes a panel."""

    KINDS = ()

    @staticmethod
    def panel(app):
        return Panel(
            "Time",
            [
                Slider("time", 0.0, 1.0, 0.25, get=lambda s: s.look.time or 0.0, set=lambda s, t: s.show(time=t)),
                Note(lambda s: f"it is {s.look.time}"),
                Button("Broken", lambda s: 1 / 0),
                Choice("which", lambda s: (), get=lambda s: "", set=lambda s, v: None),
                Text("says", lambda s: "", lambda s, v: s.say("heard", v)),
            ],
            icon="no such icon",
            order=1,
        )


class BrokenMode:
    @staticmethod
    def panel(app):
        raise RuntimeError("a mode that cannot")


@pytest.fixture
def with_modules(monkeypatch):
    def use(*modules):
        found = panels._modules
        monkeypatch.setattr(panels, "_modules", lambda scene: [*found(scene), *(("test", m) for m in modules)])

    return use


def test_a_mode_contributes_a_panel(with_modules, make_app, browse):
    with_modules(BrokenMode, ModeWithPanel)
    browser = browse(make_app())
    assert browser.tabs()[:2] == ["View", "Time"]
    browser.set("time", 0.5)
    until(lambda: browser.session.look.time == 0.5)
    until(lambda: "it is 0.5" in browser.texts())
    browser.set("time", 1e9)  # out of its range
    until(lambda: browser.session.look.time == 1.0)
    browser.press("Broken")
    until(lambda: browser.said("Something went wrong"))
    browser.set("says", "hello")
    until(lambda: browser.said("hello"))
    until(lambda: browser.session.app.settled(), "the viewer to settle")
