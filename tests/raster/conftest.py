"""Fixtures of the rasterizer's tests."""

from __future__ import annotations

import pytest

from featuresplat import registry


@pytest.fixture(params=[n for n in registry.names("raster") if n != "gsplat"])
def backend(request) -> str:
    """gsplat is left out: its constants and its culling are its own (see test_gsplat.py)."""
    reason = registry.load("raster", request.param).unavailable()
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    return request.param
