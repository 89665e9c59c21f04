"""Memory that is free goes back to the system: a viewer runs for days, and edits come and go.

glibc gives every thread a heap of its own, and a block that is still in use at the end of a heap keeps all that was
freed below it. Few heaps, trimmed after work, stay about as large as what is in use. Other C libraries do without.
"""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any

HEAPS = 2
_ARENA_MAX = -8  # M_ARENA_MAX of malloc.h


@lru_cache(maxsize=1)
def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    try:
        library = ctypes.CDLL("libc.so.6")
        return library if hasattr(library, "malloc_trim") and hasattr(library, "mallopt") else None
    except OSError:
        return None


def keep_few() -> None:
    """Threads that start from now on share `HEAPS` heaps."""
    library = _glibc()
    if library is not None:
        library.mallopt(_ARENA_MAX, HEAPS)


def trim() -> None:
    """Give back what is free."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)
