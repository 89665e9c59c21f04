"""Finding plug-ins: by file, by entry point, and never by importing the broken ones."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import featuresplat
from featuresplat import registry
from featuresplat.errors import FeaturesplatError

PACKAGE = Path(featuresplat.__file__).parent


@pytest.fixture(autouse=True)
def forget():
    """What one test found is nothing to the next."""
    registry.names.cache_clear()
    registry.load.cache_clear()
    yield
    registry.names.cache_clear()
    registry.load.cache_clear()


@pytest.mark.parametrize("kind", ["datasets", "modes", "raster", "teachers"])
def test_every_public_file_is_found(kind):
    files = {p.stem for p in (PACKAGE / kind).glob("*.py") if not p.stem.startswith("_")}
    assert set(registry.names(kind)) >= files
    assert not [n for n in registry.names(kind) if n.startswith("_")]
    assert list(registry.names(kind)) == sorted(registry.names(kind))


def test_loading_gives_the_module():
    assert registry.load("modes", "static").__name__ == "featuresplat.modes.static"


def test_unknown_names_come_with_what_there_is():
    with pytest.raises(FeaturesplatError, match="modes: there is none called 'statik'") as caught:
        registry.load("modes", "statik")
    assert "Perhaps you meant 'static'" in caught.value.hint
    with pytest.raises(FeaturesplatError) as caught:
        registry.load("datasets", "qqqq")
    assert "Perhaps" not in caught.value.hint
    assert "colmap" in caught.value.hint


def test_entry_points_are_found_and_a_broken_one_harms_nobody(monkeypatch):
    entries = [
        metadata.EntryPoint("jsonish", "json", "featuresplat.modes"),
        metadata.EntryPoint("broken", "no_such_module_at_all", "featuresplat.modes"),
    ]
    monkeypatch.setattr(registry.metadata, "entry_points", lambda group: [e for e in entries if e.group == group])
    assert {"jsonish", "broken", "static"} <= set(registry.names("modes"))
    assert registry.load("modes", "jsonish").__name__ == "json"
    assert registry.load("modes", "static").__name__ == "featuresplat.modes.static"
    with pytest.raises(ImportError):
        registry.load("modes", "broken")


def test_listing_imports_no_plugin():
    code = """
import sys
from featuresplat import registry
found = registry.names("datasets")
print([n for n in found if f"featuresplat.datasets.{n}" in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
