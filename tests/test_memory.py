"""The memory plan: what it counts and what it says."""

from __future__ import annotations

import pytest
import torch

from featuresplat import memory
from featuresplat.errors import FeaturesplatError


def test_plan_grows_with_everything_it_depends_on():
    base = memory.plan(100_000, 3, 640 * 360, 10**8).total
    assert memory.plan(200_000, 3, 640 * 360, 10**8).total > base
    assert memory.plan(100_000, 4, 640 * 360, 10**8).total > base
    assert memory.plan(100_000, 3, 1920 * 1080, 10**8).total > base
    assert memory.plan(100_000, 3, 640 * 360, 2 * 10**8).total == base + 10**8


def test_plan_covers_parameters_gradients_and_moments():
    plan = memory.plan(1_000_000, 3, 640 * 360, 0)
    assert plan.gaussians >= 4 * 59 * 4 * 1_000_000  # four copies of 59 floats


def test_a_million_gaussians_fit_into_eight_gib():
    assert memory.plan(1_000_000, 3, 640 * 360, 100 * 640 * 360 * 3).total < 8 * memory.GIB


def test_check_says_what_is_planned_and_what_is_free(monkeypatch):
    plan = memory.plan(1_000_000, 3, 640 * 360, 0)
    monkeypatch.setattr(memory, "available", lambda: plan.total - 1)
    with pytest.raises(FeaturesplatError, match=r"Gaussians .* GiB.*are free") as caught:
        memory.check(plan)
    assert "--model.budget" in caught.value.hint
    assert "--downscale" in caught.value.hint
    monkeypatch.setattr(memory, "available", lambda: plan.total)
    memory.check(plan)
    monkeypatch.setattr(memory, "available", lambda: None)  # unknown: nothing to compare with
    memory.check(plan)


def test_available_is_a_sane_number_here():
    free = memory.available()
    assert free is None or 1 << 20 < free < 1 << 50


def test_peak_notices_an_allocation():
    before = memory.peak()
    size = 64 << 20
    block = torch.ones(before + size, dtype=torch.uint8)  # larger than all there was
    assert memory.peak() >= before + size
    del block
    assert memory.peak() >= before + size  # a peak does not fall
