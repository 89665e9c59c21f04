"""The header of a PLY file, read with suspicion: nothing is allocated on the word of a header."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from featuresplat.errors import FeaturesplatError

TYPES = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "float": "f4", "double": "f8",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float32": "f4", "float64": "f8",
}  # fmt: skip
"""PLY type names and the numpy codes they stand for."""

_LONGEST = 4 << 20  # bytes; 4096 feature columns need about 100 kB
_BYTE_ORDER = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


@dataclass
class PlyProperty:
    """One column: its numpy type code; ``count_type`` is set for lists, whose rows differ in length."""

    name: str
    code: str
    count_type: str | None = None


@dataclass
class PlyElement:
    """One table of the file."""

    name: str
    count: int
    properties: list[PlyProperty] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [p.name for p in self.properties]

    @property
    def has_lists(self) -> bool:
        return any(p.count_type for p in self.properties)

    def least_row_bytes(self, text: bool) -> int:
        """Bytes of one row; the least possible where rows differ (lists, text)."""
        if text:
            return max(1, 2 * len(self.properties) - 1)
        return sum(np.dtype(p.count_type or p.code).itemsize for p in self.properties)

    def dtype(self, order: str) -> np.dtype:
        """The structured dtype of a row without lists, ``order`` being '<' or '>'."""
        return np.dtype([(p.name, order + p.code) for p in self.properties])


@dataclass
class PlyHeader:
    """What the header says, checked against the size of the file."""

    path: Path
    format: str
    elements: list[PlyElement]
    comments: tuple[str, ...]
    body: int
    """Byte offset of the data."""

    @property
    def text(self) -> bool:
        return self.format == "ascii"

    @property
    def order(self) -> str:
        """'<' or '>' for binary files, '' for text."""
        return _BYTE_ORDER[self.format]

    def get(self, name: str) -> PlyElement | None:
        return next((e for e in self.elements if e.name == name), None)

    @property
    def kind(self) -> str:
        """``gaussians``, ``compressed``, ``points``, ``mesh`` or ``other``."""
        vertex, face = self.get("vertex"), self.get("face")
        names = set(vertex.names) if vertex else set()
        if "packed_position" in names and self.get("chunk"):
            return "compressed"
        if names & {"f_dc_0", "scale_0", "rot_0"}:
            return "gaussians"
        if face is not None and (face.count > 0 or vertex is None):
            return "mesh"
        return "points" if {"x", "y", "z"} <= names else "other"

    def offset(self, element: PlyElement) -> int:
        """Byte offset of a binary element; the elements before it may hold no lists."""
        before = itertools.takewhile(lambda e: e is not element, self.elements)
        return self.body + sum(e.count * e.least_row_bytes(False) for e in before)


def read_header(path: str | Path) -> PlyHeader:
    """Read and check the header of a PLY file.

    Raises:
        FeaturesplatError: missing or empty file, not a PLY, malformed header, unknown format or type, or a
            header that promises more, or in a binary file fewer, rows than the file holds.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        with open(path, "rb") as stream:
            if stream.read(3) != b"ply":
                raise FeaturesplatError(
                    f"{path}: {'is empty' if size == 0 else 'is not a PLY'} (a PLY file begins with 'ply').",
                    "Give a .ply file of Gaussians or of coloured points.",
                )
            stream.seek(0)
            lines, body = _header_lines(path, stream)
    except FileNotFoundError:
        raise FeaturesplatError(f"{path}: there is no such file.", "Check the path.") from None
    except OSError as error:
        raise FeaturesplatError(f"{path}: could not be read ({error.strerror}).", "Check the path.") from error
    header = _parse(path, lines, body)
    _check_size(header, size)
    return header


def _header_lines(path: Path, stream) -> tuple[list[str], int]:
    lines: list[str] = []
    while stream.tell() < _LONGEST:
        raw = stream.readline(_LONGEST)
        if not raw.endswith(b"\n"):
            break
        lines.append(raw.decode("latin-1").strip())
        if lines[-1] == "end_header":
            return lines, stream.tell()
    raise FeaturesplatError(f"{path}: the PLY header has no end ('end_header' is missing).", _DAMAGED)


def _parse(path: Path, lines: list[str], body: int) -> PlyHeader:
    header = PlyHeader(path, "", [], (), body)
    for number, line in enumerate(lines[1:-1], start=2):
        words = line.split()
        try:
            _parse_line(header, words, line)
        except (ValueError, IndexError, KeyError) as error:
            reason = f"unknown type {error}" if isinstance(error, KeyError) else "malformed"
            raise FeaturesplatError(
                f"{path}: line {number} of the PLY header, '{line[:80]}': {reason}.", _DAMAGED
            ) from None
    if header.format not in _BYTE_ORDER:
        raise FeaturesplatError(
            f"{path}: the PLY header names no known format (got '{header.format}').",
            "Known are ascii, binary_little_endian and binary_big_endian.",
        )
    for element in header.elements:
        if len(set(element.names)) != len(element.names):
            raise FeaturesplatError(f"{path}: the element '{element.name}' has two properties of one name.", _DAMAGED)
    return header


def _parse_line(header: PlyHeader, words: list[str], line: str) -> None:
    """Take in one line; ValueError, IndexError or KeyError (unknown type) when it makes no sense."""
    if not words:
        return
    if words[0] == "format":
        header.format = words[1]
        if words[2:] != ["1.0"]:
            raise ValueError
    elif words[0] in ("comment", "obj_info"):
        header.comments += (line.partition(" ")[2],)
    elif words[0] == "element":
        name, count = words[1:]
        if not count.isascii() or not count.isdigit() or len(count) > 18:
            raise ValueError
        header.elements.append(PlyElement(name, int(count)))
    elif words[0] == "property" and words[1] == "list":
        count_code, code, name = TYPES[words[2]], TYPES[words[3]], words[4]
        header.elements[-1].properties.append(PlyProperty(name, code, count_code))
    elif words[0] == "property":
        code, name = words[1:]
        header.elements[-1].properties.append(PlyProperty(name, TYPES[code]))
    else:
        raise ValueError


def _check_size(header: PlyHeader, size: int) -> None:
    """Compare what the header promises with what there is, before anyone allocates."""
    have = size - header.body
    # A text file may lack its last line feed.
    need = sum(e.count * (e.least_row_bytes(header.text) + header.text) for e in header.elements) - header.text
    promised = ", ".join(f"{e.count} x {e.name}" for e in header.elements) or "nothing"
    exact = not header.text and not any(e.has_lists for e in header.elements)
    if have < need:
        raise FeaturesplatError(
            f"{header.path}: is truncated, or its header lies: it promises {promised} "
            f"({'' if exact else 'at least '}{need} bytes), but {have} bytes follow.",
            "Copy or export the file again.",
        )
    last = header.elements[-1].least_row_bytes(False) if header.elements else 1
    if exact and have - need >= max(last, 1):
        raise FeaturesplatError(
            f"{header.path}: holds more than its header says: {promised} take {need} bytes, {have} follow.",
            "Copy or export the file again.",
        )


_DAMAGED = "The file is damaged or not a PLY; export it again."


def read_table(header: PlyHeader, element: PlyElement) -> np.ndarray:
    """The rows of an element without lists as a structured array [count]; binary files are memory-mapped,
    read only.

    Raises:
        FeaturesplatError: on text that is not numbers, and where lists stand in or before the element.
    """
    before = list(itertools.takewhile(lambda e: e is not element, header.elements))
    if element.has_lists or (not header.text and any(e.has_lists for e in before)):
        raise FeaturesplatError(
            f"{header.path}: lists stand in or before the element '{element.name}'.",
            "Export the file with its vertices first and without lists.",
        )
    if header.text:
        return _read_text(header, element, skip=sum(e.count for e in before))
    return np.memmap(header.path, element.dtype(header.order), "r", header.offset(element), (element.count,))


def _read_text(header: PlyHeader, element: PlyElement, skip: int) -> np.ndarray:
    try:
        with open(header.path, "rb") as stream:
            stream.seek(header.body)
            rows = np.loadtxt(
                stream,
                np.float64,
                comments=None,
                skiprows=skip,
                max_rows=element.count,
                ndmin=2,
                encoding="latin-1",
            )
    except ValueError as error:
        reason = str(error).split(";")[0]
        raise FeaturesplatError(
            f"{header.path}: expected {len(element.properties)} numbers in each '{element.name}' ({reason}).",
            _DAMAGED,
        ) from None
    if rows.shape != (element.count, len(element.properties)):
        raise FeaturesplatError(
            f"{header.path}: expected {element.count} rows of {len(element.properties)} numbers for "
            f"'{element.name}', got {rows.shape[0]} rows of {rows.shape[1]}.",
            _DAMAGED,
        )
    table = np.empty(element.count, element.dtype("="))
    for i, name in enumerate(element.names):
        table[name] = rows[:, i]
    return table
