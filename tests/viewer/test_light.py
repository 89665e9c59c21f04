"""The panels of light and materials, in a browser by its protocol."""

from __future__ import annotations

import material_toy
import numpy as np
import pytest
import torch
from wire import until

from featuresplat.errors import FeaturesplatError
from featuresplat.modes import _inverse_panel as panels
from featuresplat.shading import presets

RED = 0
EYE = (0.4, -4.0, 0.6)


@pytest.fixture
def lit(make_app, browse):
    """A browser that looks at the balls from the front."""
    browser = browse(make_app(material_toy.scene()))
    browser.move(position=EYE)
    until(lambda: np.allclose(browser.session.pose().position, EYE, atol=1e-3), "the camera to move")
    settled(browser)
    return browser


def settled(browser) -> np.ndarray:
    until(lambda: browser.session.app.settled() and browser.session.settled(), "the viewer to settle")
    return browser.image.astype(int)


def apart(browser, image: np.ndarray) -> int:
    """Largest difference of the picture shown now from another."""
    return int(np.abs(settled(browser) - image).max())


def test_the_panels_are_there_and_only_for_materials(lit, browser):
    assert {"Light", "Material", "View", "Edit"} <= set(lit.tabs())
    assert not {"Light", "Material"} & set(browser.tabs())


def test_another_light_turned_and_back(lit):
    own = settled(lit)
    lit.set("Map", "Evening")
    until(lambda: lit.session.look.light is not None)
    until(lambda: apart(lit, own) > 30)
    evening = settled(lit)
    first = lit.session.look.light.environment
    lit.set("Turn", 120)
    until(lambda: lit.session.look.light.turn == 120)
    until(lambda: apart(lit, evening) > 30)
    assert lit.session.look.light.environment is first  # the map is not made anew
    lit.press("Back to its own")
    until(lambda: lit.session.look.light is None)
    until(lambda: apart(lit, own) < 12)


def test_a_point_light_where_the_camera_is(lit):
    lit.set("Map", "Studio")
    lit.set("Intensity", 0.0)
    until(lambda: (now := lit.session.look.light) is not None and now.gain == 0)
    until(lambda: settled(lit).max() < 60)
    dark = settled(lit).max()
    lit.press("Put it where I am")
    until(lambda: lit.session.look.light.lamps)
    assert np.allclose(lit.session.look.light.lamps[0].position, EYE, atol=1e-3)
    until(lambda: settled(lit).max() > dark + 60)


def test_a_file_that_is_not_there_is_told_of(lit):
    lit.set("Map", "A file")
    lit.set("File", "nowhere.hdr")
    until(lambda: lit.said("no file nowhere.hdr"))
    assert lit.session.look.light is None


def test_the_selection_gets_a_material_and_undo_takes_it_back(lit):
    before = settled(lit)
    document = lit.session.document
    document.select(material_toy.ball(RED))
    lit.set("Made of", "Chrome")
    until(lambda: lit.session.look.extra.get("material", {}).get("metallic") == 1)
    lit.press("Give it this material")
    until(lambda: document.state.edits)
    until(lambda: apart(lit, before) > 40)
    state = document.scene.mode_state
    assert (state["gaussian.metallic"][material_toy.ball(RED)] == 1).all()
    document.undo()
    assert torch.equal(
        document.scene.mode_state["gaussian.metallic"], material_toy.scene().mode_state["gaussian.metallic"]
    )


def test_what_the_panels_values_ask_for():
    scene = material_toy.scene()
    assert panels.asked(scene, panels.LIGHT) is None
    light = panels.asked(scene, {**panels.LIGHT, "gain": 0.5, "on": True, "at": (0, 0, 3), "color": (1, 0, 0)})
    assert light is not None
    assert light.environment is None
    assert light.lamps[0].power[0] > 0
    assert light.lamps[0].power[1] == 0
    assert light.up == (0.0, 0.0, 1.0)
    for name in presets.PRESETS:
        assert panels.asked(scene, {**panels.LIGHT, "map": name.capitalize()}) is not None
    with pytest.raises(FeaturesplatError, match="no file"):
        panels.asked(scene, {**panels.LIGHT, "map": panels.FILE, "file": "a.hdr"})
