"""The CUDA sources as Python sees them: which kernel is in which file, what it takes, and what a file includes.

A kernel is a line ``FS_KERNEL(threads, name, parameters...)`` (cuda/gpu/device.cuh). Its parameter list is read from
there, so that a launch packs arguments exactly as the kernel declares them, on the device and on the host shim alike.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from featuresplat.errors import FeaturesplatError

Constants = dict[str, int]
"""Macros that specialise a file: name -> integer."""


class Packed:
    """Arguments that lie in memory already: ``address`` is that of the list of their addresses."""

    address: int


Args = tuple[Any, ...] | list[Any] | ctypes.Structure | Packed
"""Kernel arguments, or the one structure a kernel takes by value."""

_FORMATS = {
    "int": "i", "int32_t": "i", "unsigned": "I", "unsigned int": "I", "uint32_t": "I", "int64_t": "q",
    "long long": "q", "uint64_t": "Q", "unsigned long long": "Q", "float": "f", "double": "d", "bool": "?",
}  # fmt: skip
_KERNEL = re.compile(r"^[ \t]*FS_KERNEL(_OCCUPANCY)?\s*\(", re.MULTILINE)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter. ``format`` is its `struct` code, ``P`` for a pointer, ``*`` for a struct by value."""

    name: str
    format: str


@dataclass(frozen=True)
class Kernel:
    """What a source line says about a kernel."""

    name: str
    file: str
    parameters: tuple[Parameter, ...]


class Packer:
    """Memory for one kernel's arguments, as ``void**``: every argument in a slot of 8 bytes, structs where they are.

    One per launcher and kernel; the caller holds a lock from `pack` until the launch has read the arguments.
    """

    def __init__(self, kernel: Kernel):
        self.kernel = kernel
        count = len(kernel.parameters)
        codes = []
        for p in kernel.parameters:
            code = "q" if p.format == "*" else p.format
            codes.append(code + "x" * (8 - struct.calcsize(code)))
        self._struct = struct.Struct("=" + "".join("Q" if c == "P" else c for c in codes))
        self._slots = ctypes.create_string_buffer(max(8 * count, 8))
        base = ctypes.addressof(self._slots)
        self._pointers = (ctypes.c_void_p * max(count, 1))(*(base + 8 * i for i in range(count)))
        self._formats = "".join(p.format for p in kernel.parameters)
        self._structs = [i for i, p in enumerate(kernel.parameters) if p.format == "*"]
        self.address = ctypes.addressof(self._pointers)

    def pack(self, args: Args) -> None:
        """Write the arguments: tensors or addresses or None for pointers, numbers, ctypes structures by value.

        Raises:
            TypeError: an argument does not fit its parameter (a mistake in the backend, not of a user).
        """
        if isinstance(args, ctypes.Structure):
            if self._formats != "*":
                raise TypeError(f"kernel {self.kernel.name} does not take one structure by value")
            self._pointers[0] = ctypes.addressof(args)
            return
        if isinstance(args, Packed):
            raise TypeError("arguments that are packed already are launched as they are")
        values: list[Any] = [a.data_ptr() if isinstance(a, Tensor) else 0 if a is None else a for a in args]
        for i in self._structs:
            self._pointers[i] = ctypes.addressof(values[i])
            values[i] = 0
        try:
            self._struct.pack_into(self._slots, 0, *values)
        except struct.error as error:
            wanted = ", ".join(f"{p.name}: {p.format}" for p in self.kernel.parameters)
            raise TypeError(f"kernel {self.kernel.name}({wanted}) got {len(args)} arguments: {error}") from error


class Sources:
    """A folder of ``.cu`` files and the headers they include."""

    def __init__(self, folder: Path, include: tuple[Path, ...] = ()):
        self.folder = folder
        self.include = (folder, *include)

    @cached_property
    def kernels(self) -> dict[str, Kernel]:
        """Every kernel of the folder, by name."""
        found: dict[str, Kernel] = {}
        for path in sorted(self.folder.glob("*.cu")):
            for kernel in parse(path.read_text(), path.name):
                if kernel.name in found:
                    raise ValueError(f"kernel {kernel.name} stands in {found[kernel.name].file} and in {path.name}")
                found[kernel.name] = kernel
        return found

    def find(self, name: str) -> Kernel:
        """The kernel of a name, ``kernel`` or ``file:kernel``."""
        return self.kernels[name.rpartition(":")[2]]

    @cached_property
    def files(self) -> list[str]:
        """Names of the files that hold kernels."""
        return sorted({k.file for k in self.kernels.values()})

    @cache  # noqa: B019 - a handful of objects, alive as long as the program
    def closure(self, file: str) -> tuple[Path, ...]:
        """The file and everything of ours that it includes, each once, in the order met."""
        seen: dict[Path, None] = {}
        todo = [self.folder / file]
        while todo:
            path = todo.pop()
            if path in seen:
                continue
            seen[path] = None
            for name in _INCLUDE.findall(path.read_text()):
                places = [folder / name for folder in (path.parent, *self.include)]
                todo += [p.resolve() for p in places if p.is_file()][:1]
        return tuple(seen)

    @cache  # noqa: B019
    def digest(self, file: str) -> str:
        """A hash of the file and all it includes."""
        h = hashlib.sha256()
        for path in self.closure(file):
            h.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return h.hexdigest()


def parse(text: str, file: str) -> list[Kernel]:
    """The kernels of one source text."""
    text = _COMMENT.sub(" ", text)
    kernels = []
    for match in _KERNEL.finditer(text):
        parts = _arguments(text, match.end())
        name, parameters = (parts[2], parts[3:]) if match[1] else (parts[1], parts[2:])
        kernels.append(Kernel(name.strip(), file, tuple(_parameter(p) for p in parameters)))
    return kernels


def _arguments(text: str, start: int) -> list[str]:
    """The comma-separated pieces from ``start`` up to the closing parenthesis."""
    depth, pieces, piece = 0, [], start
    for i in range(start, len(text)):
        c = text[i]
        if c == ")" and depth == 0:
            return [*pieces, text[piece:i]]
        if c == "," and depth == 0:
            pieces.append(text[piece:i])
            piece = i + 1
        depth += (c in "([{") - (c in ")]}")
    raise ValueError("an FS_KERNEL without its closing parenthesis")


def _parameter(text: str) -> Parameter:
    text = re.sub(r"\b(const|__restrict__|__grid_constant__)\b", " ", text)
    match = re.match(r"\s*(.*?)([A-Za-z_]\w*)\s*$", text, re.DOTALL)
    if match is None:
        raise ValueError(f"cannot read the kernel parameter {text.strip()!r}")
    kind, name = " ".join(match[1].split()), match[2]
    return Parameter(name, "P" if "*" in kind else _FORMATS.get(kind, "*"))


@cache
def engine_sources() -> Sources:
    """The kernels of this package: ``cuda/gpu`` inside it, or beside it in a checkout.

    Raises:
        FeaturesplatError: an installation without them.
    """
    package = Path(__file__).resolve().parents[1]
    for cuda in (package / "cuda", package.parent / "cuda"):
        if (cuda / "gpu" / "device.cuh").is_file():
            return Sources(cuda / "gpu", (cuda,))
    raise FeaturesplatError("the CUDA sources (cuda/gpu) are not installed with the package", "Reinstall featuresplat.")


def key(constants: Constants | None) -> tuple[tuple[str, int], ...]:
    """Constants as a hashable key, the same in whatever order they are given."""
    return tuple(sorted(constants.items())) if constants else ()


def defines(constants: tuple[tuple[str, int], ...]) -> list[str]:
    """Compiler options for constants."""
    return [f"-D{name}={int(value)}" for name, value in constants]
