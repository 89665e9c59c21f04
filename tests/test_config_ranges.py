"""Numbers that make no sense are told before any work, with the value to go back to."""

from __future__ import annotations

import dataclasses
import math

import pytest

from featuresplat.config import TrainConfig, load_config, preset_names
from featuresplat.config_ranges import RANGES, check_ranges
from featuresplat.errors import FeaturesplatError


def with_value(name: str, value: float) -> TrainConfig:
    config = TrainConfig()
    *parts, last = name.split(".")
    at = config
    for part in parts:
        at = getattr(at, part)
    setattr(at, last, value)
    return config


def value_of(name: str) -> float:
    """The default of an option by its dotted name."""
    at = TrainConfig()
    for part in name.split("."):
        at = getattr(at, part)
    assert isinstance(at, (int, float)), name
    return at


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", 0, "at least 1"),
        ("steps", -5, "at least 1"),
        ("eval_every", 0, "at least 1"),
        ("checkpoint_every", 0, "at least 1"),
        ("eval_views", -1, "at least 0"),
        ("seed", 10**20, "of 64 bits"),
        ("optim.batch", 0, "at least 1"),
        ("optim.means_lr", -1.0, "a number above 0"),
        ("optim.means_lr", 0.0, "a number above 0"),
        ("optim.means_lr", math.nan, "a number above 0"),
        ("optim.quats_lr", -1.0, "at least 0"),
        ("loss.dssim", 2.0, "0 to 1"),
        ("loss.depth", math.inf, "at least 0"),
        ("model.init_opacity", math.nan, "a finite number"),
        ("inverse.white_weight", -1.0, "at least 0"),
        ("model.budget", 0, "at least 1"),
        ("field.cache_channels", -1, "at least 0"),
    ],
)
def test_what_is_out_of_range_is_named_with_its_default(name, value, expected):
    with pytest.raises(FeaturesplatError) as caught:
        check_ranges(with_value(name, value))
    assert caught.value.message.startswith(f"{name}: expected ")
    assert expected in caught.value.message
    assert caught.value.message.endswith(f"got {value}")
    assert caught.value.hint == f"Leave --{name.replace('_', '-')} out to have {value_of(name)}."


def test_a_part_of_a_configuration_is_named_as_in_the_whole():
    with pytest.raises(FeaturesplatError, match=r"^field\.lr: expected at least 0"):
        check_ranges(dataclasses.replace(TrainConfig().field, lr=-1.0), "field.")


def test_every_range_is_of_an_option_and_holds_its_default():
    for name, (least, most) in RANGES.items():
        assert least <= value_of(name) <= most, name


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_in_range(name):
    check_ranges(load_config(name))
