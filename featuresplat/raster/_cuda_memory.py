"""Memory of the CUDA engine: one place that says what did not fit, arrays that only kernels see, zeros."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError


class OutOfMemory(FeaturesplatError):
    """The device has no memory left for a buffer, which the message names."""


def empty(what: str, shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; running out of it names the buffer.

    Raises:
        OutOfMemory: there is none left.
    """
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.cuda.OutOfMemoryError as error:
        size = torch.Size(shape if isinstance(shape, tuple) else (shape,)).numel() * dtype.itemsize
        raise OutOfMemory(
            f"out of memory on {device}: {size / 2**20:.0f} MiB for {what}",
            "Use smaller images, fewer cameras a call, fewer channels or fewer Gaussians.",
        ) from error


_AT_ONCE = 1 << 26
"""Elements from which on it pays to clear a tensor while other kernels run."""


_side_streams: dict[torch.device, Any] = {}


class Cleared:
    """Float32 zeros. Many are cleared beside what is queued until `wait`, which has to come; few only then."""

    def __init__(self, what: str, shape: tuple[int, ...], device: torch.device):
        self.what, self.shape, self.device, self.side = what, shape, device, None
        if device.type == "cuda" and math.prod(shape) >= _AT_ONCE:
            self.tensor = empty(what, shape, torch.float32, device)
            self.side = _side_streams.get(device) or torch.cuda.Stream(device)
            _side_streams[device] = self.side
            self.side.wait_stream(torch.cuda.current_stream(device))  # the memory may still be in use there
            with torch.cuda.stream(self.side):
                self.tensor.zero_()

    def wait(self) -> Tensor:
        """The tensor, for what is queued from here on."""
        if self.side is None:
            return empty(self.what, self.shape, torch.float32, self.device).zero_()
        torch.cuda.current_stream(self.device).wait_stream(self.side)
        return self.tensor


class Slab:
    """One piece of memory for several arrays that only kernels see, by their addresses."""

    def __init__(self, what: str, device: torch.device, sizes: dict[str, int]):
        starts, total = {}, 0
        for name, size in sizes.items():
            starts[name] = total
            total += (size + 255) & -256
        self.memory = empty(what, total, torch.uint8, device)
        base = self.memory.data_ptr()
        self.addresses = {name: base + start for name, start in starts.items()}

    def tensor(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """A look at the first ``count`` elements of an array."""
        start = self.addresses[name] - self.memory.data_ptr()
        return self.memory[start : start + count * dtype.itemsize].view(dtype)
