"""The sort of pairs by tile: stable, whatever the width of keys, the number of pairs and what lies beyond them."""

from __future__ import annotations

import pytest
import torch
from shim import ORDERS, ShimLauncher

from featuresplat.raster._cuda_frame import Frame
from featuresplat.raster._cuda_sort import sort_pairs, sorting_room


def sorted_by_kernels(keys, values, count, most, order="ascending"):
    """(keys, values) of the first ``count`` places, and the places beyond them."""
    frame = Frame(ShimLauncher(order=order, seed=5), keys.device, 1, 1, 16, 16)
    target = torch.full((len(keys),), -7, dtype=torch.int32)
    total = torch.tensor([count])
    arrays = {"keys": keys.clone(), "keys_out": torch.empty_like(keys), "values": values, "values_out": target.clone()}
    small = int(keys.dtype == torch.int16)
    sizes = {n: len(t) * t.element_size() for n, t in arrays.items() if t is not None}
    assert sizes.items() <= sorting_room(len(keys), small).items()
    found = sort_pairs(frame, arrays, target, total, len(keys), small, most)
    return found[:count], target[:count], target[count:]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("most", [1, 100, 255, 256, 8159, 65535])
def test_small_keys(most, order):
    g = torch.Generator().manual_seed(most)
    count, capacity = 5000, 6000
    keys = (torch.randint(0, most + 1, (capacity,), generator=g) ** 2 // max(most, 1)).clamp(max=most)  # uneven
    values = torch.arange(capacity, dtype=torch.int32).flip(0)
    narrow = torch.where(keys >= 2**15, keys - 2**16, keys).to(torch.int16)  # unsigned, as the kernels take them
    expected = torch.sort(keys[:count], stable=True)
    got, places, beyond = sorted_by_kernels(narrow, values, count, most, order)
    assert torch.equal(got.long() & 0xFFFF, expected.values)
    assert torch.equal(places, values[:count][expected.indices])
    assert bool((beyond == -7).all()), "wrote beyond the pairs"


@pytest.mark.parametrize("most", [70_000, 2**24 + 3])
def test_wide_keys_and_places_for_values(most):
    keys = torch.randint(0, most + 1, (4500,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    expected = torch.sort(keys, stable=True)
    got, places, _ = sorted_by_kernels(keys, None, len(keys), most)
    assert torch.equal(got, expected.values)
    assert torch.equal(places.long(), expected.indices)


@pytest.mark.parametrize("count", [0, 1, 31, 32, 4096, 4097])
def test_any_number_of_pairs(count):
    keys = torch.randint(0, 300, (4100,), generator=torch.Generator().manual_seed(2), dtype=torch.int16)
    expected = torch.sort(keys[:count], stable=True)
    got, places, _ = sorted_by_kernels(keys, None, count, 299)
    assert torch.equal(got, expected.values)
    assert torch.equal(places.long(), expected.indices)
