"""Blocks come back when the last tensor is gone, and not before."""

from __future__ import annotations

import gc

import torch

from featuresplat.raster._pool import LEAST, Pool

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
