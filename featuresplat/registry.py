"""Finding datasets, teachers, modes and backends: a file in a folder is its own registration."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from functools import cache
from importlib import metadata
from types import ModuleType

from featuresplat.errors import FeaturesplatError


@cache
def names(kind: str) -> tuple[str, ...]:
    """Names of all plug-ins of ``kind`` (``datasets``, ``teachers``, ``modes``, ``raster``), sorted.

    Looks at the files of the package ``featuresplat.<kind>`` that do not start with an underscore, then at
    the installed entry points of the group ``featuresplat.<kind>``. Imports none of them, so a broken
    plug-in cannot break what does not use it.
    """
    package = importlib.import_module(f"featuresplat.{kind}")
    found = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    found |= {e.name for e in metadata.entry_points(group=f"featuresplat.{kind}")}
    return tuple(sorted(found))


@cache
def load(kind: str, name: str) -> ModuleType:
    """Import the plug-in module ``name`` of ``kind``.

    Raises:
        FeaturesplatError: when there is no such plug-in; the hint lists what there is.
    """
    if name not in names(kind):
        close = difflib.get_close_matches(name, names(kind), n=1)
        hint = f"Perhaps you meant '{close[0]}'. " if close else ""
        raise FeaturesplatError(f"{kind}: there is none called '{name}'", f"{hint}Known: {', '.join(names(kind))}.")
    for entry in metadata.entry_points(group=f"featuresplat.{kind}"):
        if entry.name == name:
            return entry.load()
    return importlib.import_module(f"featuresplat.{kind}.{name}")
