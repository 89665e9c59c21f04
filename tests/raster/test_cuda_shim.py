"""The whole operator contract over backend "cuda", its kernels run on the CPU by the host shim (cuda/gpu/shim)."""

from __future__ import annotations

import contract
import pytest
import shim
import test_contract
import test_queries
from shim import ShimLauncher, stand_in

pytestmark = pytest.mark.skipif(shim.unavailable() is not None, reason=str(shim.unavailable()))
globals().update({n: f for m in (test_contract, test_queries) for n, f in vars(m).items() if n.startswith("test_")})
clear_scene = test_queries.clear_scene


@pytest.fixture
def backend(monkeypatch):
    for module in (contract, test_contract, test_queries):
        monkeypatch.setattr(module, "device_of", lambda backend: "cpu")
    with stand_in(ShimLauncher()):
        yield "cuda"
