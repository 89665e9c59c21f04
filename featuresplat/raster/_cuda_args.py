"""The argument structures of the kernels in cuda/gpu, read from their sources: declared once, in C."""

from __future__ import annotations

import ctypes
import re
import struct
from functools import cache

from torch import Tensor

from featuresplat.raster._nvrtc_sources import engine_sources

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


def arguments(file: str, name: str, values: dict) -> tuple[ctypes.Array]:
    """The one argument of a kernel: the structure's bytes, with every field set. Tensors give their address.

    Raises:
        KeyError, TypeError: a field is missing, or there is none of that name.
    """
    packer, names = _packer(file, name)
    if len(names) != len(values):
        raise TypeError(f"{name}: {sorted({*names} ^ values.keys())} do not match")
    found = [values[n] for n in names]
    buffer = ctypes.create_string_buffer(packer.size + 8)  # a structure may end with padding
    packer.pack_into(buffer, 0, *[v.data_ptr() if isinstance(v, Tensor) else 0 if v is None else v for v in found])
    return (buffer,)


_CODES = {ctypes.c_void_p: "P", **{_TYPES[k]: c for k, c in zip(_TYPES, "iIqfd", strict=True)}}


@cache
def _packer(file: str, name: str) -> tuple[struct.Struct, list[str]]:
    fields = structure(file, name)._fields_
    return struct.Struct("@" + "".join(_CODES[f[1]] for f in fields)), [f[0] for f in fields]
