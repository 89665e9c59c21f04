"""Pairs of Gaussians and tiles in the order of their tiles: cuda/gpu/sort.cu.

It takes less memory than torch.sort, whose indices are 64 bits wide and which needs both sides twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from featuresplat.raster._cuda_frame import Frame

_CHUNK = 4096
"""Pairs of a block: ``kChunk`` of sort.cu."""


def sort_pairs(
    frame: Frame, keys: Tensor, values: Tensor | None, total: Tensor, target: Tensor, most: int
) -> Tensor:  # fmt: skip
    """Queue a stable sort.

    Args:
        keys: [capacity] int16 (taken as unsigned) or int32; used up.
        values: [capacity] int32, used up; None for 0, 1, 2, ...
        total: [1] int64, how many pairs there are; the rest is left alone.
        target: [capacity] int32, which the values go to.
        most: the greatest key.

    Returns:
        [capacity] the keys in order.
    """
    capacity = len(keys)
    bits = max(1, most.bit_length())
    passes = -(-bits // 8)
    width = -(-bits // passes)
    grid = -(-capacity // _CHUNK)
    counts = frame.empty("sorting", ((1 << width) * grid,), torch.int32)
    spare_keys = torch.empty_like(keys)
    for at, (source, to) in enumerate(_way(values, target, passes)):
        args = {
            "keys": keys, "keys_out": spare_keys, "values": source, "values_out": to, "counts": counts, "total": total,
            "capacity": capacity, "shift": at * width, "digits": 1 << width, "blocks": grid,
            "small_keys": int(keys.dtype == torch.int16),
        }  # fmt: skip
        frame.launch("count_digits", "sort.cu", "SortArgs", grid, 256, args)
        sums = torch.cumsum(counts, 0, dtype=torch.int32)
        frame.launch("place_digits", "sort.cu", "SortArgs", grid, 256, args | {"counts": sums})
        keys, spare_keys = spare_keys, keys
    return keys


def _way(values: Tensor | None, target: Tensor, passes: int) -> Sequence[tuple[Tensor | None, Tensor]]:
    """Where the values of each pass come from and go to, ending in ``target``."""
    if passes == 1:
        return [(values, target)]
    spare = torch.empty_like(target)
    # Backwards from the end: target, spare, target, ...; with three passes the values' own place would serve as well.
    places = [target if (passes - at) % 2 == 0 else spare for at in range(1, passes + 1)]
    return list(zip([values, *places[:-1]], places, strict=True))
