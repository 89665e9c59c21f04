"""Edits as YAML files and plain values; docs/edits.md describes them."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from featuresplat.config import yaml_trouble
from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_write_text
from featuresplat.prompts.edits import KINDS, Edit, known_kinds
from featuresplat.prompts.targets import Target

FORMAT = 1


def save_edits(path: str | Path, edits: Sequence[Edit]) -> None:
    """Write edits as a YAML file."""
    content = {"format": FORMAT, "edits": [e.to_dict() for e in edits]}
    atomic_write_text(Path(path), yaml.safe_dump(content, sort_keys=False, width=10**9))


def load_edits(path: str | Path) -> list[Edit]:
    """Read what `save_edits`, or a person, wrote: ``edits:`` and a list of them, or the list alone.

    Raises:
        FeaturesplatError: missing, no YAML, or not edits.
    """
    path = Path(path)
    if not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such file of edits", "Check the path.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        said = yaml_trouble(error) if isinstance(error, yaml.YAMLError) else str(error)
        raise FeaturesplatError(
            f"{path}: is no YAML ({said})", "Write it as 'featuresplat edit --help' shows."
        ) from None
    if isinstance(content, dict):
        if isinstance(content.get("format", 1), int) and content.get("format", 1) > FORMAT:
            raise FeaturesplatError(
                f"{path}: is of format {content['format']}; known is {FORMAT}", "Update featuresplat."
            )
        content = content.get("edits")
    if not isinstance(content, list) or not content:
        raise FeaturesplatError(f"{path}: holds no list of edits", "Write 'edits:' and a list, each with a kind.")
    return [edit_from_dict(entry) for entry in content]


def edit_from_dict(values: dict[str, Any]) -> Edit:
    """The edit of `Edit.to_dict`.

    Raises:
        FeaturesplatError: an unknown kind or key, or a value of the wrong type.
    """
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise FeaturesplatError(
            f"edit: expected entries with a kind, got {values!r:.80}", "Write kind: remove, for one."
        )
    kind = KINDS.get(values["kind"]) or known_kinds().get(values["kind"])
    if kind is None:
        close = difflib.get_close_matches(values["kind"], known_kinds(), n=1)
        hint = f"Perhaps you meant '{close[0]}'. " if close else ""
        known = ", ".join(known_kinds())
        raise FeaturesplatError(f"edit: there is no kind '{values['kind']}'", f"{hint}Known: {known}.")
    hints = typing.get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    out: dict[str, Any] = {}
    for key, value in values.items():
        if key == "kind":
            continue
        if key not in names:
            close = difflib.get_close_matches(str(key), names, n=1)
            hint = f"Perhaps you meant '{close[0]}'." if close else f"It has {', '.join(names)}."
            raise FeaturesplatError(f"{kind.kind}: has no '{key}'", hint)
        out[key] = Target.from_dict(value) if key == "target" else _typed(f"{kind.kind}: {key}", value, hints[key])
    return kind(**out)


def _typed(what: str, value: Any, hint: Any) -> Any:
    """A plain value as the type of a field: str, bool, float, int, a tuple of floats, or one of these or None."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
        origin = typing.get_origin(hint)
    good = False
    if origin is tuple:
        sizes = typing.get_args(hint)
        good = isinstance(value, (list, tuple)) and (Ellipsis in sizes or len(value) == len(sizes))
        if good and all(_is_number(v) for v in value):
            return tuple(float(v) for v in value)
        good = False
    elif hint is float:
        good = _is_number(value)
        value = float(value) if good else value
    elif hint is int:
        good = isinstance(value, int) and not isinstance(value, bool)
    elif hint in (str, bool):
        good = isinstance(value, hint)
    if not good:
        wanted = getattr(hint, "__name__", str(hint)).replace("float", "number")
        raise FeaturesplatError(f"{what}: expected {wanted}, got {value!r:.60}", "Mend the edit.")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
