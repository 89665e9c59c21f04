"""Fixtures of the rasterizer's tests."""

from __future__ import annotations

import pytest
import shim
import torch

from featuresplat import registry


@pytest.fixture(autouse=True, scope="module")
def _cuda_without_a_gpu():
    """Where there is no GPU, backend ``cuda`` runs its kernels on CPU tensors through the host emulator."""
    if torch.cuda.is_available() or shim.unavailable():
        yield
    else:
        with shim.stand_in(shim.ShimLauncher()):
            yield


@pytest.fixture(params=[n for n in registry.names("raster") if n != "gsplat"])
def backend(request) -> str:
    """gsplat is left out: its constants and its culling are its own (see test_gsplat.py)."""
    reason = registry.load("raster", request.param).unavailable()
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param
