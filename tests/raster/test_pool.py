"""Blocks come back when the last tensor is gone, and not before."""

from __future__ import annotations

import gc

import torch
from hypothesis import given
from hypothesis import strategies as st

from featuresplat.raster._pool import LEAST, Pool, rounded

SIDE = LEAST // 4


def test_a_block_is_used_again_only_when_nothing_looks_at_it():
    pool = Pool()
    first = pool.empty((2, SIDE))
    place, part = first.data_ptr(), first[1].fill_(7.0)
    del first
    gc.collect()
    second = pool.empty((2, SIDE)).fill_(1.0)
    assert second.data_ptr() != place
    assert bool((part == 7.0).all())
    del part
    gc.collect()
    assert pool.unused == 2 * SIDE * 4
    assert pool.empty((SIDE, 2)).data_ptr() == place


def test_the_unused_are_bounded():
    pool = Pool(kept=3 * SIDE * 4)
    for count in (1, 2, 3, 5):
        del_me = pool.empty((count, SIDE))
        assert del_me.shape == (count, SIDE)
        del del_me
        gc.collect()
        assert pool.unused <= pool.kept


def test_autograd_works_on_pooled_tensors():
    pool = Pool()
    x = pool.empty((SIDE,)).fill_(2.0).requires_grad_()
    (x * x).sum().backward()
    assert x.grad is not None
    assert bool((x.grad == 4.0).all())
    assert torch.equal(x.detach().clone(), torch.full((SIDE,), 2.0))


def test_sizes_that_never_come_again_leave_little_behind():
    """Pictures that follow a machine's speed and scenes under edits have another size each time."""
    pool = Pool(patience=8)
    for count in range(100):
        pool.empty((SIDE + 17 * count,))  # nearly the same
    assert pool.unused <= 2 * 4 * SIDE
    sides = [SIDE + SIDE // 4 * step for step in range(60)]  # far from the same
    for side in sides:
        pool.empty((side,))
    assert pool.unused <= 9 * rounded(4 * sides[-1])


def test_blocks_in_steady_use_stay():
    pool = Pool(patience=8)
    places = {pool.empty((count, SIDE)).data_ptr() for count in (1, 2, 3, 4)}
    for _ in range(20):
        assert {pool.empty((count, SIDE)).data_ptr() for count in (1, 2, 3, 4)} == places


@given(st.integers(LEAST, 1 << 40))
def test_a_block_is_at_most_an_eighth_larger_than_what_was_asked_for(size: int):
    assert size <= rounded(size) <= size * 9 / 8
    assert rounded(rounded(size)) == rounded(size)


def test_a_tensor_that_goes_while_another_comes_is_simply_freed():
    """The collector may let go of a tensor in the midst of a request: no thread may wait for itself."""
    pool = Pool()
    tensor = pool.empty((SIDE,))
    with pool._lock:
        del tensor
        gc.collect()
    assert pool.unused == 0
    assert pool.empty((SIDE,)).shape == (SIDE,)
