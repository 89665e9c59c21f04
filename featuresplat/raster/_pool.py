"""Large output tensors from memory that was used before.

A fresh block of some hundred megabytes comes from the system page by page, and those page faults can take several
times as long as rendering into it. A block that a freed tensor has left behind costs nothing. It has to be asked for
again soon, though: pictures whose size follows the speed of the machine, and scenes that edits or densification make
larger and smaller, would else leave a block behind for every size they ever had.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

LEAST = 1 << 20
"""Bytes below which torch's own allocator serves as well."""
KEPT = 2 << 30
"""Bytes of unused blocks kept at most."""
PATIENCE = 64
"""Requests that an unused block waits for its next use; a step of training makes about ten."""
STEPS = 8
"""Sizes of blocks from one power of two to the next: sizes that are nearly the same share their blocks."""


class Pool:
    """Unused blocks; a block returns when the last tensor that looks at it is gone."""

    def __init__(self, kept: int = KEPT, patience: int = PATIENCE):
        self.kept, self.patience = kept, patience
        self._requests = 0
        self._blocks: list[tuple[int, np.ndarray]] = []  # since which request unused; the longest unused first
        self._lock = threading.Lock()

    @property
    def unused(self) -> int:
        """Bytes of the unused blocks."""
        return sum(block.nbytes for _, block in list(self._blocks))

    def empty(self, shape: Sequence[int]) -> Tensor:
        """An uninitialised float32 tensor on the CPU."""
        size = 4 * math.prod(shape)
        if size < LEAST:
            return torch.empty(*shape)
        block = self._take(rounded(size))
        view = (ctypes.c_char * size).from_buffer(block.data)
        # torch holds on to the view as long as any tensor uses its memory.
        weakref.finalize(view, self._give_back, block).atexit = False
        return torch.frombuffer(view, dtype=torch.float32).view(*shape)

    def _take(self, size: int) -> np.ndarray:
        with self._lock:
            self._requests += 1
            at = next((i for i in reversed(range(len(self._blocks))) if self._blocks[i][1].nbytes == size), None)
            found = None if at is None else self._blocks.pop(at)[1]
            while self._blocks and self._requests - self._blocks[0][0] > self.patience:
                self._blocks.pop(0)
        return np.empty(size, np.uint8) if found is None else found

    def _give_back(self, block: np.ndarray) -> None:
        # The collector may call this in the midst of `_take`: waiting for the lock would be for ever, and a block that
        # is not kept is no harm.
        if block.nbytes > self.kept or not self._lock.acquire(blocking=False):
            return
        try:
            self._blocks.append((self._requests, block))
            while self.unused > self.kept:
                self._blocks.pop(0)
        finally:
            self._lock.release()


def rounded(size: int) -> int:
    """The size of block for so many bytes: at most an eighth more, of which the system gives only what is written."""
    step = max(1, (1 << (size - 1).bit_length()) // (2 * STEPS))
    return -(-size // step) * step


empty = Pool().empty
