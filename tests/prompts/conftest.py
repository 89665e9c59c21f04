"""Fixtures of the tests of prompts and edits."""

from __future__ import annotations

import pytest
from table_scene import make_world, with_field
from torch import Tensor

from featuresplat.scene import Scene


@pytest.fixture(scope="session")
def world() -> tuple[Scene, Tensor]:
    """The scene without a field, and its labels."""
    return make_world()


@pytest.fixture(scope="session")
def asked(world) -> Scene:
    """The scene with a field that answers text."""
    return with_field(*world)
