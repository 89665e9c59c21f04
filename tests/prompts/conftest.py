"""Fixtures of the tests of prompts and edits."""

from __future__ import annotations

from pathlib import Path

import pytest
from table_scene import make_world, with_field
from torch import Tensor

from featuresplat.prompts.photographs import full_size_views
from featuresplat.scene import Scene
from featuresplat.types import Cameras


@pytest.fixture(scope="session")
def world() -> tuple[Scene, Tensor]:
    """The scene without a field, and its labels."""
    return make_world()


@pytest.fixture(scope="session")
def asked(world) -> Scene:
    """The scene with a field that answers text."""
    return with_field(*world)


@pytest.fixture(scope="module")
def run(asked, tmp_path_factory) -> Path:
    """That scene as a run folder."""
    folder = tmp_path_factory.mktemp("asked") / "run"
    asked.save(folder)
    return folder


@pytest.fixture
def large(asked) -> Cameras:
    """Its views at the photographs' size."""
    return full_size_views(asked)
