"""Backend ``cuda`` on a real GPU: what the host emulator cannot show (streams, threads, devices, memory).

The operator's contract runs there too: test_contract.py, test_queries.py and test_fuzz.py over backend ``cuda``.
"""

from __future__ import annotations

import gc
import threading
from dataclasses import replace

import pytest
import torch
from contract import render

import featuresplat as fs
from featuresplat import FeaturesplatError
from featuresplat.raster import _cuda_frame, _cuda_lift, _cuda_memory, _cuda_options, _nvrtc, cuda

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or cuda.unavailable() is not None, reason="needs an NVIDIA GPU"
)


@pytest.fixture
def scene(make_scene):
    return make_scene(400, channels=40, cameras=2, width=70, height=50).to("cuda")


def gradients(scene, **options):
    leaves = {n: t.clone().requires_grad_() for n, t in scene.tensors().items() if n != "Ks"}
    out = render(scene, "cuda", leaves, **options)
    loss = (out.rgb**2).sum() + (out.features**2).sum() + out.alpha.sum() + out.depth.sum()
    return out, dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def same(a, b, tolerance):
    for name, value in a.items():
        assert (value - b[name]).abs().max() <= tolerance * value.abs().max(), name


def test_is_chosen_for_tensors_on_the_gpu(scene):
    from featuresplat.raster import backend_for

    assert backend_for(scene.means).__name__.endswith(".cuda")
    assert backend_for(scene.means.double()).__name__.endswith(".reference")


def test_stored_weights_give_the_same_sums(make_scene, monkeypatch):
    """Also when the call before had fewer, and with so many features that a stream beside clears them."""
    scene = make_scene(400, channels=300, cameras=2, width=70, height=50).to("cuda")
    monkeypatch.setattr(_cuda_memory, "_AT_ONCE", 1)
    monkeypatch.setitem(_cuda_options.overrides, "lift.STORED", 1 << 30)
    _, expected = gradients(scene)
    monkeypatch.setitem(_cuda_options.overrides, "lift.STORED", 1)
    for _ in range(2):
        same(expected, gradients(scene)[1], 1e-4)
    for key in _cuda_lift._rows_by_last_call:
        monkeypatch.setitem(_cuda_lift._rows_by_last_call, key, 0)
    monkeypatch.setattr(_cuda_frame, "_STEP", 1)
    same(expected, gradients(scene)[1], 1e-4)


def test_another_stream(scene):
    _, expected = gradients(scene)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    busy = torch.randn(4096, 4096, device="cuda")
    with torch.cuda.stream(side):
        later = replace(scene, means=scene.means + 0 * (busy @ busy)[0, 0].nan_to_num(0.0))
        _, got = gradients(later)  # reads what the side stream has yet to make
    side.synchronize()
    same(expected, got, 1e-4)


def test_threads(scene):
    _, expected = gradients(scene)
    found, errors = [], []

    def work():
        try:
            for _ in range(5):
                found.append(gradients(scene)[1])
            torch.cuda.synchronize()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
    assert len(found) == 20
    for got in found:
        same(expected, got, 1e-4)


@pytest.mark.parametrize("name", ["viewmats", "features", "quats"])
def test_mixed_devices(scene, name):
    with pytest.raises(FeaturesplatError, match=f"(?s){name}.*cpu|cpu.*{name}"):
        render(replace(scene, **{name: getattr(scene, name).cpu()}), "cuda")


def test_wrong_dtype(scene):
    with pytest.raises(FeaturesplatError, match="float32"):
        render(scene.to(torch.float64), "cuda")


def test_strided_inputs(scene):
    out = render(scene, "cuda")
    odd = replace(
        scene,
        means=scene.means.T.contiguous().T,
        features=torch.cat([scene.features, scene.features], 1)[:, :40],
        colors=scene.colors.flip(1).contiguous().flip(1),
    )
    got = render(odd, "cuda")
    assert torch.equal(out.rgb, got.rgb)
    assert (out.features - got.features).abs().max() <= 2e-5 * out.features.abs().max()


def test_deterministic_mode_is_bit_identical(make_scene):
    scene = make_scene(3000, channels=70, width=100, height=80).to("cuda")
    torch.use_deterministic_algorithms(True)
    try:
        first_out, first = gradients(scene)
        for _ in range(3):
            out, again = gradients(scene)
            assert torch.equal(out.features, first_out.features)
            assert [n for n in first if not torch.equal(first[n], again[n])] == []
    finally:
        torch.use_deterministic_algorithms(False)


def test_fp16_is_within_a_thousandth(make_scene):
    scene = make_scene(2000, channels=128, width=100, height=80).to("cuda")
    exact = render(scene.to(torch.float64), "reference").features
    got = render(scene, "cuda", precision="fp16").features
    assert (got - exact).abs().max() <= 1e-3 * exact.abs().max()


def test_buffers_grow_with_what_is_drawn(make_scene):
    few, many = make_scene(20, width=200, height=150).to("cuda"), make_scene(5000, width=200, height=150).to("cuda")
    for scene in (few, many, few, many):
        got, true = render(scene, "cuda"), render(scene, "reference")
        assert ((got.rgb - true.rgb).abs() > 1e-3).double().mean() < 1e-3


def test_memory_is_given_back(scene):
    for _ in range(3):
        gradients(scene)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        gradients(scene)
    gc.collect()
    assert torch.cuda.memory_allocated() <= before


def test_small_values_are_fetched_without_waiting_for_what_follows():
    gpu = _nvrtc.launcher(torch.device("cuda"))
    sent = [torch.arange(k, k + 3, device="cuda") for k in range(5)]
    pending = [gpu.fetch(t) for t in sent]
    for t in sent:
        t.zero_()  # queued later: not seen
    assert [p.wait() for p in pending] == [[k, k + 1, k + 2] for k in range(5)]
    assert gpu.fetch(torch.tensor([[1.5]], device="cuda")).wait() == [[1.5]]
    with pytest.raises(ValueError, match="at most 256 bytes"):
        gpu.fetch(torch.zeros(100, device="cuda"))


def test_no_hidden_synchronisation(scene):
    """Once sizes are known, torch is asked for nothing that waits for the GPU."""
    leaves = [t.requires_grad_() for t in (scene.means, scene.opacities, scene.features)]
    for _ in range(2):
        out = render(scene, "cuda")
        torch.autograd.grad(out.features.sum(), leaves)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = render(scene, "cuda")
        torch.autograd.grad(out.features.sum(), leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_out_of_memory_names_the_buffer_and_the_remedy(make_scene):
    scene = make_scene(200, channels=512, width=1024, height=1024).to("cuda")  # 2 GiB of features
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_allocated() + 512 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        with pytest.raises(FeaturesplatError, match="out of memory on cuda:0: 2048 MiB for the feature image") as error:
            render(scene, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert error.value.hint


def test_numpy_still_goes_to_the_cpu(make_scene):
    s = make_scene(10)
    out = fs.rasterize(*(t.numpy() for t in (s.means, s.quats, s.scales, s.opacities, s.colors)),
                       s.viewmats.numpy(), s.Ks.numpy(), 20, 10)  # fmt: skip
    assert out.rgb.shape == (1, 10, 20, 3)  # pyright: ignore
