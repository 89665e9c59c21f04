"""Opening the native engine: where the library lies, its C types, its threads and instruction set."""

from __future__ import annotations

import ctypes
import os
import sys
import sysconfig
from functools import cache
from pathlib import Path

from featuresplat.errors import FeaturesplatError

_NAME = "_engine.dll" if sys.platform == "win32" else "_engine.so"


def _candidates() -> list[Path]:
    """Places the library may lie: the package folder, and the site-packages of an editable install."""
    if override := os.environ.get("FEATURESPLAT_LIBRARY"):
        return [Path(override)]
    import featuresplat

    folders = [Path(p) for p in featuresplat.__path__]
    folders += [Path(sysconfig.get_path(kind)) / "featuresplat" for kind in ("platlib", "purelib")]
    folders += [Path(p) / "featuresplat" for p in sys.path if p.endswith("-packages")]
    return [folder / _NAME for folder in dict.fromkeys(folders)]


@cache
def _open() -> ctypes.CDLL | str:
    """The library, or one sentence on why it cannot be opened."""
    found = [p for p in _candidates() if p.is_file()]
    if not found:
        return f"the native library {_NAME} is not installed beside the package"
    try:
        lib = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"the native library does not open: {error}"
    lib.fs_isa.restype = ctypes.c_char_p
    lib.fs_set_isa.argtypes = [ctypes.c_char_p]
    lib.fs_error.restype = ctypes.c_char_p
    lib.fs_memory.restype = ctypes.c_int64
    lib.fs_free.argtypes = [ctypes.c_void_p]
    lib.fs_free.restype = None
    return lib


def unavailable() -> str | None:
    """None when the native library can be used, else one sentence on why not."""
    lib = _open()
    return lib if isinstance(lib, str) else None


def library() -> ctypes.CDLL:
    """The opened library; calls through it release the interpreter lock.

    Raises:
        FeaturesplatError: when it is missing or does not open.
    """
    lib = _open()
    if isinstance(lib, str):
        raise FeaturesplatError(lib, "Reinstall featuresplat with a C++17 compiler present: pip install .")
    return lib


def num_threads() -> int:
    """How many threads the engine uses."""
    return library().fs_threads()


def set_num_threads(n: int) -> None:
    """Use ``n`` threads from now on (results do not change). Default: FEATURESPLAT_NUM_THREADS, else the
    processors this process may run on.

    Raises:
        FeaturesplatError: n is not in 1..1024.
    """
    if library().fs_set_threads(int(n)):
        raise FeaturesplatError(f"threads: expected 1 to 1024, got {n}", "Set it outside of a rasterizer call.")


def isa() -> str:
    """The instruction set in use: ``baseline``, ``avx2``, ``avx512`` or ``neon``."""
    return library().fs_isa().decode()


def set_isa(name: str) -> None:
    """Switch the instruction set, for tests: results differ in the last bits.

    Raises:
        FeaturesplatError: unknown, or this processor lacks it.
    """
    if library().fs_set_isa(name.encode()):
        raise FeaturesplatError(f"instruction set: '{name}' is not available here", f"In use: {isa()}.")
