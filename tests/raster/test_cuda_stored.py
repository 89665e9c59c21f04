"""The transpose by weights computed once and kept (weigh.cu, lift_rows.cu): the same sums as the one that computes them
for every group of channels."""

from __future__ import annotations

import contract
import pytest
import shim
import torch
from contract import check
from shim import ORDERS, ShimLauncher, stand_in

import featuresplat as fs
from featuresplat.raster import _cuda_frame, _cuda_lift, _cuda_options
from featuresplat.raster._cuda_memory import OutOfMemory

pytestmark = pytest.mark.skipif(shim.unavailable() is not None, reason=str(shim.unavailable()))


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setattr(contract, "device_of", lambda backend: "cpu")
    monkeypatch.setitem(_cuda_options.overrides, "lift.STORED", 1)


def lifted(
    scene, maps, stored: bool, power: int = 1, launcher: ShimLauncher | None = None, chosen: str | None = None
):  # fmt: skip
    _cuda_options.overrides["lift.STORED"] = 1 if stored else 10**6
    with stand_in(launcher or ShimLauncher()) as gpu:
        out = fs.lift(
            scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, scene.Ks, scene.width,
            scene.height, maps, power=power, backend="cuda",
        )  # fmt: skip
    assert (chosen or ("lift_rows" if stored else "lift")) in gpu.launched
    assert chosen or ("lift_rows" in gpu.launched) == stored
    return out


@pytest.mark.parametrize("channels", [_cuda_options.STORED - 1, _cuda_options.STORED])
def test_is_chosen_by_the_number_of_channels(make_scene, channels):
    scene = make_scene(20)
    _cuda_options.overrides.pop("lift.STORED")
    with stand_in(ShimLauncher()) as gpu:
        fs.lift(
            scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, scene.Ks, scene.width,
            scene.height, maps_for(scene, channels), backend="cuda",
        )  # fmt: skip
    assert ("lift_rows" in gpu.launched) == (channels == _cuda_options.STORED)
    assert ("lift" in gpu.launched) == (channels < _cuda_options.STORED)


@pytest.mark.parametrize("allowed", [0, 1])
def test_without_memory_for_the_weights(make_scene, monkeypatch, allowed):
    """At once, or where there are more than in the call before: the other kernel does it, nothing is added twice."""
    scene = make_scene(200)
    maps = maps_for(scene, 40)
    expected = lifted(scene, maps, False)
    lifted(scene, maps, True)
    for key in _cuda_lift._rows_by_last_call:
        monkeypatch.setitem(_cuda_lift._rows_by_last_call, key, 1)
    monkeypatch.setattr(_cuda_frame, "_STEP", 1)
    real, asked = _cuda_frame.empty, []

    def full(what, shape, dtype, device):
        if what == "blending weights" and dtype == torch.uint8:
            asked.append(shape)
            if len(asked) > allowed:
                raise OutOfMemory(f"out of memory: {what}", "Use fewer.")
        return real(what, shape, dtype, device)

    monkeypatch.setattr(_cuda_frame, "empty", full)
    gpu = ShimLauncher()
    found = lifted(scene, maps, True, launcher=gpu, chosen="lift")
    assert len(asked) == allowed + 1
    assert gpu.launched.count("lift_rows") == allowed
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def maps_for(scene, channels):
    g = torch.Generator().manual_seed(4)
    return torch.randn(len(scene.viewmats), scene.height, scene.width, channels, generator=g)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channels", [20, 70, 129])
def test_gradients(make_scene, order, channels):
    with stand_in(ShimLauncher(order=order, seed=channels)) as gpu:
        check(make_scene(120, channels=channels, cameras=2), "cuda")
    assert {"count_rows", "weigh", "lift_rows"} <= set(gpu.launched)
    assert "lift" not in gpu.launched


@pytest.mark.parametrize("power", [1, 2])
def test_lift(make_scene, power):
    """Opaque enough that pixels stop early, which here only `weigh` finds out."""
    scene = make_scene(400, cameras=2, size=0.3)
    scene.opacities.clamp_(min=0.8)
    maps = maps_for(scene, 70)
    for a, b in zip(lifted(scene, maps, True, power), lifted(scene, maps, False, power), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_in_fixed_point(make_scene):
    scene = make_scene(100)
    maps = maps_for(scene, 40)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        found = [lifted(scene, maps, True, launcher=ShimLauncher(order=o, seed=2)) for o in ORDERS]
    finally:
        torch.use_deterministic_algorithms(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    torch.testing.assert_close(found[0][0], lifted(scene, maps, False)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("known", [0, 1, 10**6])
def test_more_weights_than_the_last_call_had(make_scene, monkeypatch, known):
    scene = make_scene(200)
    maps = maps_for(scene, 40)
    expected = lifted(scene, maps, True)
    monkeypatch.setattr("featuresplat.raster._cuda_frame._STEP", 1)
    for key in _cuda_lift._rows_by_last_call:
        monkeypatch.setitem(_cuda_lift._rows_by_last_call, key, known)
    gpu = ShimLauncher()
    for a, b in zip(lifted(scene, maps, True, launcher=gpu), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert gpu.launched.count("weigh") == (1 if known > 1 else 2)


def test_nothing_to_see(make_scene):
    scene = make_scene(5)
    scene.means[:, 2] -= 100
    sums, weights = lifted(scene, maps_for(scene, 20), True)
    assert not bool(sums.any())
    assert not bool(weights.any())
