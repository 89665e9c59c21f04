"""Large output tensors from memory that was used before.

A fresh block of some hundred megabytes comes from the system page by page, and those page faults can take several
times as long as rendering into it. A block that a freed tensor has left behind costs nothing.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20
"""Bytes below which torch's own allocator serves as well."""
KEPT = 2 << 30
"""Bytes of unused blocks kept at most."""


class Pool:
    """Unused blocks by size; a block returns when the last tensor that looks at it is gone."""

    def __init__(self, kept: int = KEPT):
        self.kept, self.unused = kept, 0
        self._blocks: dict[int, list[np.ndarray]] = defaultdict(list)

    def empty(self, shape: Sequence[int]) -> Tensor:
        """An uninitialised float32 tensor on the CPU."""
        size = 4 * math.prod(shape)
        if size < LEAST:
            return torch.empty(*shape)
        try:
            block = self._blocks[size].pop()
            self.unused -= size
        except IndexError:
            block = np.empty(size, np.uint8)
        view = (ctypes.c_char * size).from_buffer(block.data)
        # torch holds on to the view as long as any tensor uses its memory.
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.frombuffer(view, dtype=torch.float32).view(*shape)

    def _give_back(self, block: np.ndarray) -> None:
        if self.unused + block.nbytes > self.kept:
            self._blocks.clear()  # sizes that are no longer asked for must not stay for ever
            self.unused = 0
        if block.nbytes <= self.kept:
            self._blocks[block.nbytes].append(block)
            self.unused += block.nbytes


empty = Pool().empty
