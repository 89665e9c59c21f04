"""Lights as they are asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.shading import cubemap, presets
from featuresplat.shading.asking import light_of
from featuresplat.shading.light import Lamp, Light


def brightest(cube: torch.Tensor) -> torch.Tensor:
    """Direction of the brightest texel."""
    return cubemap.directions(cube.shape[1]).reshape(-1, 3)[cube.sum(-1).reshape(-1).argmax()]


def lamp_at(direction) -> np.ndarray:
    """[32, 64, 3] a map with a lamp in one direction."""
    dirs = cubemap.equirect_directions(32, 64)
    close = dirs @ torch.nn.functional.normalize(torch.tensor(direction, dtype=torch.float32), dim=0)
    return (100 * (close > 0.98).float()[..., None] + 0.1).expand(-1, -1, 3).numpy()


def test_nothing_asked_is_the_scenes_own_light():
    assert light_of() is None
    assert light_of(turn=0.0, gain=1.0, samples=0) is None


@pytest.mark.parametrize(
    ("turn", "up", "want"),
    [
        (0, None, (1, 0, 0)),
        (90, None, (0, 1, 0)),  # counter-clockwise seen from +z
        (-90, None, (0, -1, 0)),
        (360, None, (1, 0, 0)),
        (0, (0, -1, 0), None),
        (180, (0, -1, 0), None),
    ],
)
def test_turning_the_map(turn, up, want):
    light = light_of(lamp_at((1, 0, 0)), turn=turn, up=up, size=32)
    assert light is not None
    found = brightest(light.cube(torch.zeros(6, 32, 32, 3), 32))
    if want is None:  # lamps at the horizon stay there, whatever is up
        assert abs(float(found @ torch.tensor([0.0, -1.0, 0.0]))) < 0.15
    else:
        assert float(found @ torch.tensor(want, dtype=torch.float32)) > 0.97


@pytest.mark.parametrize("up", [(0, 0, 1), (0, 0, -1), (0, -1, 0), (1, 2, -0.5)])
def test_the_zenith_goes_where_up_is(up):
    light = light_of(lamp_at((0, 0, 1)), up=up, turn=40, size=32)
    assert light is not None
    axis = torch.nn.functional.normalize(torch.tensor(up, dtype=torch.float32), dim=0)
    assert float(brightest(light.cube(torch.zeros(6, 32, 32, 3), 32)) @ axis) > 0.97


def test_the_gain_and_point_lights():
    light = light_of(lamp_at((1, 0, 0)), gain=3.0, points=[(0, 0, 2, 5), (1, 2, 3, 4, 5, 6)], samples=8, size=32)
    assert light is not None
    plain = Light.of(lamp_at((1, 0, 0)), 32).cube(torch.zeros(6, 32, 32, 3), 32)
    torch.testing.assert_close(light.cube(torch.zeros(6, 32, 32, 3), 32), 3 * plain)
    assert light.lamps == (Lamp((0, 0, 2), (5, 5, 5)), Lamp((1, 2, 3), (4, 5, 6)))
    assert light.samples == 8


def test_the_own_light_can_be_turned():
    light = light_of(turn=90)
    assert light is not None
    assert light.environment is None
    own = cubemap.from_equirect(torch.from_numpy(lamp_at((1, 0, 0)).copy()), 32)
    assert float(brightest(light.cube(own, 32)) @ torch.tensor([0.0, 1.0, 0.0])) > 0.97


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"turn": math.inf}, "turn in degrees"),
        ({"gain": -1.0}, "factor of at least 0"),
        ({"samples": -1}, "samples"),
        ({"samples": 10**6}, "samples"),
        ({"up": (0, 0, 0)}, "expected a direction"),
        ({"points": [(1, 2, 3)]}, "got 3 numbers"),
        ({"points": [(1, 2, 3, -4)]}, "cannot be negative"),
        ({"points": [(1, 2, math.nan, 4)]}, "finite"),
        ({"environment": "nowhere.hdr"}, "no such environment map"),
        ({"environment": np.full((8, 16, 3), -1.0)}, "cannot be negative"),
        ({"environment": np.full((8, 16, 3), np.inf)}, "infinite"),
    ],
)
def test_what_makes_no_sense(asked, says):
    with pytest.raises(FeaturesplatError, match=says):
        light_of(**asked)


@pytest.mark.parametrize("name", list(presets.PRESETS))
def test_lights_without_a_file(name):
    sky = presets.environment(name, 64)
    assert sky.shape == (64, 128, 3)
    assert (sky >= 0).all()
    light = light_of(name, size=32)
    assert light is not None
    cube = light.cube(torch.zeros(6, 32, 32, 3), 32)
    up = (cubemap.directions(32)[..., 2:].clamp_min(0) * cube * cubemap.solid_angles(32)[..., None]).sum((0, 1, 2))
    assert float(up.mean()) / math.pi == pytest.approx(presets.PRESETS[name].level, rel=0.03)


def test_a_name_that_is_none():
    with pytest.raises(FeaturesplatError) as caught:
        light_of("studi")
    assert "Perhaps you meant 'studio'" in str(caught.value.hint)


def test_maps_of_8_bits_are_taken_with_a_warning():
    with pytest.warns(UserWarning, match="8 bits"):
        assert light_of(np.full((8, 16, 3), 188, np.uint8), size=32) is not None
