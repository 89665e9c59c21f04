"""The argument structures of the kernels in cuda/gpu, read from their sources: declared once, in C."""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import NamedTuple

from featuresplat.raster._nvrtc_sources import Packed, engine_sources

_TYPES = {
    "int32_t": ctypes.c_int32, "uint32_t": ctypes.c_uint32, "int64_t": ctypes.c_int64,
    "float": ctypes.c_float, "double": ctypes.c_double,
}  # fmt: skip
_COMMENT = re.compile(r"//[^\n]*")


@cache
def structure(file: str, name: str) -> type[ctypes.Structure]:
    """The ctypes twin of ``struct name`` in a source file: pointers, 32 and 64 bit integers, float, double.

    A structure within it, which must consist of pointers, is found in walk.cuh; its fields stand in its place.
    """
    text = _COMMENT.sub("", (engine_sources().folder / file).read_text())
    body = re.search(rf"\bstruct {name}\s*\{{(.*?)\}};", text, re.DOTALL)
    if body is None:
        raise LookupError(f"no struct {name} in {file}")
    fields = []
    for declaration in body[1].split(";"):
        words = re.sub(r"\bconst\b", " ", declaration).strip()
        if not words:
            continue
        kind, names = re.match(r"(\w+)\s*(.*)", words, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if "*" not in names and kind not in _TYPES:
            fields += structure("walk.cuh", kind)._fields_
            continue
        for declarator in names.split(","):
            pointer = "*" in declarator
            fields.append((declarator.replace("*", "").strip(), ctypes.c_void_p if pointer else _TYPES[kind]))
    return type(name, (ctypes.Structure,), {"_fields_": fields})


class Arguments(Packed):
    """The one argument of a kernel: a structure, given field by field. Tensors give their address, None is 0.

    Raises:
        KeyError, TypeError: a field is missing, or there is none of that name.
    """

    def __init__(self, file: str, name: str, values: dict):
        self._layout = layout = _layout(file, name)
        if len(values) != len(layout.places):
            raise TypeError(f"{name}: {sorted(layout.places.keys() ^ values.keys())} do not match")
        self._memory = memory = ctypes.create_string_buffer(layout.size)
        self.address = ctypes.addressof(memory)
        numbers = [v if v.__class__ in _NUMBERS else 0 if v is None else v.data_ptr() for v in layout.fields(values)]
        layout.packer.pack_into(memory, 0, self.address + _HEAD, 0, *numbers)

    def change(self, **values) -> None:
        """Other values for some fields: for the next launch."""
        for name, v in values.items():
            code, place = self._layout.places[name]
            number = v if v.__class__ in _NUMBERS else 0 if v is None else v.data_ptr()
            struct.pack_into(code, self._memory, place, number)


_NUMBERS = frozenset((int, float, bool))
_CODES = {ctypes.c_void_p: "P", **{_TYPES[k]: c for k, c in zip(_TYPES, "iIqfd", strict=True)}}
_HEAD = 16
"""Before the structure stands where it begins, which is what the driver wants to know."""


class _Layout(NamedTuple):
    packer: struct.Struct
    size: int
    places: dict[str, tuple[str, int]]  # code and offset of each field
    fields: Callable[[dict], tuple]


@cache
def _layout(file: str, name: str) -> _Layout:
    kind = structure(file, name)
    places = {f[0]: (_CODES[f[1]], _HEAD + getattr(kind, f[0]).offset) for f in kind._fields_}
    packer = struct.Struct("@PQ" + "".join(code for code, _ in places.values()))
    return _Layout(packer, _HEAD + ctypes.sizeof(kind), places, itemgetter(*places))
