"""Teacher `precomputed`: maps that lie on disk, one file per photograph.

A folder holds

- ``teacher.json``: {"name": what made the maps, "dim": F, "phrases": {"a phrase": its row in text.npy}};
  "phrases" may be missing where text is not asked for;
- ``text.npy``: [P, F] float16 or float32, one row per phrase (only with "phrases");
- one ``<photograph's stem>.npy`` or ``.safetensors`` per photograph: [h, w, F], float16 or float32. A safetensors
  file holds one tensor, or one called ``features``.

A phrase called ``background`` counts as a label of its own. Without the four canonical phrases among them, prompts
are answered from the closed vocabulary of the phrases. Pickled arrays are refused: reading one may run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors
from featuresplat.teachers import CANONICAL
from featuresplat.types import TextTable

_LAYOUT = "The layout of such a folder is in docs/formats.md."


class Teacher:
    """Maps from a folder; see the module's docstring for its layout.

    Attributes:
        table: phrases with their vectors, or None when the folder brings no text.
        canonical: the canonical phrases where the folder has all of them, else (): closed vocabulary.

    Raises:
        FeaturesplatError: no folder was given, or its teacher.json or text.npy is not what it should be.
    """

    name = "precomputed"

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        if config.path is None:
            raise FeaturesplatError(
                "teacher 'precomputed': expected the folder of maps, got none", "Name it with --teacher.path DIR."
            )
        self.folder = Path(config.path)
        described = _described(self.folder)
        self.made_by, self.dim, phrases = described
        self.table = _read_table(self.folder, phrases, self.dim) if phrases else None
        known = {p.lower() for p in phrases}
        self.canonical: tuple[str, ...] = CANONICAL if known.issuperset(CANONICAL) else ()
        self.about = _about(self.made_by, tuple(phrases), self.canonical)
        self.settings: dict[str, Any] = {
            "folder": str(self.folder.resolve()),
            "made_by": self.made_by,
            "dim": self.dim,
            "text": "" if self.table is None else _digest(self.folder / "text.npy"),
        }

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """The map [h, w, F] of the photograph called ``name``; the pixels are not looked at.

        Raises:
            FeaturesplatError: no map of that name, or one of another shape, type, or with values that are not finite.
        """
        path = self._path(name)
        values = _read_map(path)
        if values.ndim != 3 or values.shape[2] != self.dim or 0 in values.shape:
            raise FeaturesplatError(
                f"{path}: expected a map [h, w, {self.dim}], got {list(values.shape)}",
                'Channels come last, and as many as "dim" in teacher.json says.',
            )
        if not bool(values.isfinite().all()):
            bad = int((~values.isfinite()).sum())
            raise FeaturesplatError(
                f"{path}: expected finite numbers, got {bad} that are NaN or infinite",
                "Write the map again; 16-bit floats end at 65504.",
            )
        return values

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """[P, F] the rows of phrases that the folder knows, as they are stored.

        Raises:
            FeaturesplatError: the folder brings no text, or not that phrase.
        """
        if self.table is None:
            raise FeaturesplatError(
                f"{self.folder}: brings no phrases, so text cannot ask for its features",
                'Add "phrases" to its teacher.json and text.npy, or ask by point or box.',
            )
        rows = {p.lower(): i for i, p in enumerate(self.table.phrases)}
        unknown = [p for p in phrases if p.lower() not in rows]
        if unknown:
            raise FeaturesplatError(
                f"'{unknown[0]}': the folder of maps knows a fixed list of phrases, and not this one",
                f"Known: {', '.join(self.table.phrases[:20])}.",
            )
        return self.table.vectors[[rows[p.lower()] for p in phrases]]

    def _path(self, name: str) -> Path:
        stem = Path(name).stem
        # A name from a dataset may hold folders; maps lie flat, under the stem alone.
        for ending in (".npy", ".safetensors"):
            path = self.folder / f"{stem}{ending}"
            if stem and path.is_file():
                return path
        raise FeaturesplatError(
            f"{self.folder}: has no map for the photograph '{name}'",
            f"Expected {stem or 'NAME'}.npy or {stem or 'NAME'}.safetensors there, one file per photograph.",
        )


def text_side(settings: dict[str, Any]) -> Teacher:
    """The folder again, for its phrases.

    Raises:
        FeaturesplatError: as `Teacher`; a finished run keeps the phrases itself and does not need this.
    """
    return Teacher(TeacherConfig(name="precomputed", path=Path(str(settings.get("folder", "")))))


def _described(folder: Path) -> tuple[str, int, dict[str, int]]:
    """Name, F and phrases of teacher.json."""
    path = folder / "teacher.json"
    if not folder.is_dir():
        raise FeaturesplatError(f"{folder}: expected a folder of maps, there is none", "Check --teacher.path.")
    if not path.is_file():
        raise FeaturesplatError(f"{folder}: expected a teacher.json in it, there is none", _LAYOUT)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FeaturesplatError(f"{path}: is not readable JSON ({error})", _LAYOUT) from error
    if not isinstance(found, dict):
        raise FeaturesplatError(f"{path}: expected an object with name and dim, got {type(found).__name__}", _LAYOUT)
    name, dim, phrases = found.get("name", ""), found.get("dim"), found.get("phrases") or {}
    if not isinstance(name, str):
        raise FeaturesplatError(f"{path}: name: expected text, got {name!r}", _LAYOUT)
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1:
        raise FeaturesplatError(f"{path}: dim: expected a number of channels, got {dim!r}", _LAYOUT)
    rows_are_numbers = isinstance(phrases, dict) and all(
        isinstance(row, int) and not isinstance(row, bool) and p.strip() for p, row in phrases.items()
    )
    if not rows_are_numbers:
        raise FeaturesplatError(f"{path}: phrases: expected phrases with their rows in text.npy", _LAYOUT)
    return name, dim, phrases


def _read_table(folder: Path, phrases: dict[str, int], dim: int) -> TextTable:
    path = folder / "text.npy"
    if not path.is_file():
        raise FeaturesplatError(f"{folder}: teacher.json lists phrases, but there is no text.npy", _LAYOUT)
    vectors = _read_npy(path)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise FeaturesplatError(f"{path}: expected [P, {dim}], got {list(vectors.shape)}", _LAYOUT)
    outside = {p: row for p, row in phrases.items() if not 0 <= row < len(vectors)}
    if outside:
        phrase, row = next(iter(outside.items()))
        raise FeaturesplatError(
            f"{path}: has {len(vectors)} rows, but teacher.json puts '{phrase}' in row {row}",
            "Rows count from 0; write both files together.",
        )
    if not bool(vectors.isfinite().all()) or bool((vectors.norm(dim=1) == 0).any()):
        raise FeaturesplatError(f"{path}: expected finite rows that are not zero", "Write it again.")
    return TextTable(tuple(phrases), vectors[list(phrases.values())].contiguous())


def _read_map(path: Path) -> Tensor:
    if path.suffix == ".npy":
        return _read_npy(path)
    tensors, _ = read_tensors(path)
    if len(tensors) != 1 and "features" not in tensors:
        raise FeaturesplatError(
            f"{path}: expected one tensor, or one called 'features', got {len(tensors)}", "Keep the map alone in it."
        )
    values = tensors["features"] if "features" in tensors else next(iter(tensors.values()))
    if values.dtype not in (torch.float16, torch.float32):
        raise FeaturesplatError(
            f"{path}: expected float16 or float32, got {str(values.dtype).removeprefix('torch.')}", "Convert it."
        )
    return values.float()


def _read_npy(path: Path) -> Tensor:
    try:
        # allow_pickle stays off: unpickling runs what the file says.
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes numpy raise its tokenizer's errors and more
        raise FeaturesplatError(
            f"{path}: is truncated, pickled or no .npy file ({error})",
            "Write it by numpy.save from a plain float16 or float32 array.",
        ) from error
    if not isinstance(values, np.ndarray) or values.dtype not in (np.float16, np.float32):
        kind = getattr(values, "dtype", type(values).__name__)
        raise FeaturesplatError(f"{path}: expected float16 or float32, got {kind}", "Convert it.")
    return torch.from_numpy(values.astype(np.float32))


def _about(made_by: str, phrases: tuple[str, ...], canonical: tuple[str, ...]) -> str:
    source = f"Maps from disk, made by {made_by or 'an unnamed teacher'}"
    if not phrases:
        return f"{source}, without text."
    if canonical:
        return f"{source}; it knows {len(phrases)} phrases and no others."
    listed = ", ".join(phrases[:12]) + (", ..." if len(phrases) > 12 else "")
    return f"{source}; it chooses between these labels and knows no others: {listed}."


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
