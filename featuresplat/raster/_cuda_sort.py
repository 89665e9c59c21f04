"""Pairs of Gaussians and tiles in the order of their tiles: cuda/gpu/sort.cu.

It takes less memory than torch.sort, whose indices are 64 bits wide and which needs both sides twice.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat.raster._cuda_args import Arguments

if TYPE_CHECKING:
    from featuresplat.raster._cuda_frame import Frame

_CHUNK = 4096
"""Pairs of a block: ``kChunk`` of sort.cu."""


def sorting_room(capacity: int, small: int) -> dict[str, int]:
    """Bytes of the arrays that `sort_pairs` wants."""
    keys = (2 if small else 4) * capacity
    return {"keys": keys, "keys_out": keys, "values": 4 * capacity, "values_out": 4 * capacity}


def sort_pairs(
    frame: Frame, arrays: dict[str, Any], target: Any, total: Tensor, capacity: int, small: int, most: int
) -> Any:
    """Queue a stable sort.

    Args:
        arrays: tensors or addresses by the names of `sorting_room`: what is to be sorted in ``keys`` (uint16 when
            ``small``, else uint32) and ``values`` (None for 0, 1, 2, ...), which are used up, and room for others.
        target: [capacity] int32, which the values go to.
        total: [1] int64, how many pairs there are; the rest is left alone.
        most: the greatest key.

    Returns:
        Which of the arrays holds the keys in order.
    """
    bits = max(1, most.bit_length())
    passes = -(-bits // 8)
    width = -(-bits // passes)
    grid = -(-capacity // _CHUNK)
    counts = frame.empty("sorting", ((1 << width) * grid,), torch.int32)
    keys, keys_out, values, spare = (arrays[name] for name in ("keys", "keys_out", "values", "values_out"))
    for at in range(passes):
        # Backwards from the end: target, spare, target, ...
        to = target if (passes - at) % 2 == 1 else spare
        args = Arguments("sort.cu", "SortArgs", {
            "keys": keys, "keys_out": keys_out, "values": values, "values_out": to, "counts": counts, "total": total,
            "capacity": capacity, "shift": at * width, "digits": 1 << width, "blocks": grid, "small_keys": small,
        })  # fmt: skip
        frame.gpu.launch("count_digits", grid, 256, 0, args)
        counts.cumsum_(0)
        frame.gpu.launch("place_digits", grid, 256, 0, args)
        keys, keys_out, values = keys_out, keys, to
    return keys
