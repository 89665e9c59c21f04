"""The argument structures of the kernels in cuda/gpu, read from their sources: declared once, in C."""

from __future__ import annotations

import ctypes
import re
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


def arguments(file: str, name: str, values: dict) -> ctypes.Structure:
    """An instance with every field set: tensors give their address, None a null pointer.

    Raises:
        KeyError, TypeError: a field is missing, or there is none of that name.
    """
    kind, names = _structure(file, name)
    if len(names) != len(values):
        raise TypeError(f"{name}: {sorted({*names} ^ values.keys())} do not match")
    return kind(*[v.data_ptr() if isinstance(v := values[n], Tensor) else v for n in names])


@cache
def _structure(file: str, name: str) -> tuple[type[ctypes.Structure], list[str]]:
    kind = structure(file, name)
    return kind, [f[0] for f in kind._fields_]
