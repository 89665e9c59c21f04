"""Fixtures of the rasterizer's tests."""

from __future__ import annotations

import pytest
import torch

from featuresplat import registry


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    """Small tensors: one thread is faster than two, and much faster on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=[n for n in registry.names("raster") if n != "gsplat"])
def backend(request) -> str:
    """gsplat is left out: its constants and its culling are its own (see test_gsplat.py)."""
    reason = registry.load("raster", request.param).unavailable()
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param
