"""What the CUDA engine holds, and when it lets go of it: counted without a GPU."""

from __future__ import annotations

import weakref

import pytest
import torch
from benchmark_scripts import load
from contract import render
from shim import ShimLauncher, stand_in

from featuresplat.raster import _cuda_forward


@pytest.fixture(scope="module")
def memory():
    return load("gpu_memory")


@pytest.mark.parametrize("name", ["forward", "backward", "features", "lift"])
def test_peak_is_not_above_gsplats(memory, name):
    """On the reference workload, where gsplat was measured at its best chunk. Three channels to colours alone are one
    and a half per cent above it."""
    theirs = memory.measured()
    over = {}
    for dim in memory.DIMS:
        ratio = memory.account(dim, name).peak / 2**20 / theirs[name, dim]
        if ratio > 1:
            over[dim] = ratio
    assert over == ({3: pytest.approx(1.014, abs=0.005)} if name == "features" else {})


def test_the_account_counts(memory):
    """What is made is counted until it is gone, once, in blocks; views are not."""
    with memory.Account() as account:
        a = torch.zeros(1000)
        b = a[10:].view(9, 110).T
        a += 1
        assert account.live == account.peak == 4096
        c = torch.ones(1)
        assert (account.live, account.peak) == (4608, 4608)
        del a, c
        assert (account.live, account.peak) == (4096, 4608)
        del b
        assert (account.live, account.peak) == (0, 4608)


@pytest.fixture
def frames(monkeypatch):
    """The frames of the forward passes that were kept for a backward pass."""
    found = []
    plain = _cuda_forward.render

    def watched(*args, **kwargs):
        out = plain(*args, **kwargs)
        found.append(out.frame)
        return out

    monkeypatch.setattr(_cuda_forward, "render", watched)
    return found


@pytest.mark.parametrize("channels", [3, 40])
def test_a_backward_pass_lets_go_of_the_frame(make_scene, frames, channels):
    scene = make_scene(60, channels=channels)
    with stand_in(ShimLauncher()):
        leaves = {n: t.clone().requires_grad_() for n, t in scene.tensors().items() if n != "Ks"}
        out = render(scene, "cuda", leaves)
        loss = (out.rgb**2).sum() + (out.features**2).sum() + out.depth.sum()
        frame = frames.pop()
        pieces = [weakref.ref(t) for t in (frame.slab.memory, frame.splats, frame.left)]
        first = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
        assert all(p() is not None for p in pieces)
        again = torch.autograd.grad(loss, list(leaves.values()))
        assert all(torch.allclose(a, b, atol=1e-5 * float(a.abs().max())) for a, b in zip(first, again, strict=True))
        assert (frame.slab is None) == (channels <= 16)  # the transpose of many channels reads the lists last
        assert frame.left is None
        assert frame.depth is None
        del frame
        assert [p() for p in pieces] == [None] * 3
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(loss, list(leaves.values()))


def test_a_depth_image_that_was_changed(make_scene):
    """Its own gradient needs it as it was; the others do not."""
    scene = make_scene(30, channels=2)
    with stand_in(ShimLauncher()):
        leaves = {n: t.clone().requires_grad_() for n, t in scene.tensors().items() if n != "Ks"}
        out = render(scene, "cuda", leaves)
        out.depth.detach().mul_(2)
        torch.autograd.grad(out.rgb.sum(), leaves["means"], retain_graph=True)
        with pytest.raises(RuntimeError, match="depth image was changed in place"):
            torch.autograd.grad(out.depth.sum(), leaves["means"])


@pytest.mark.parametrize("channels", [3, 6, 16])
@pytest.mark.parametrize("mode", ["full", "none"])
def test_features_alone_want_gradients(make_scene, channels, mode):
    """Those of few channels go to their rows at once; no sums are kept, whatever else the loss looks at."""
    scene = make_scene(60, channels=channels)

    def gradient(backend):
        leaf = scene.features.clone().requires_grad_()
        out = render(scene, backend, {"features": leaf}, geometry_grad=mode)
        weights = torch.linspace(-1, 1, out.features.numel()).view_as(out.features)
        return torch.autograd.grad((out.features * weights).sum() + out.rgb.sum() + out.depth.sum(), leaf)[0]

    with stand_in(ShimLauncher()) as launcher:
        got = gradient("cuda")
    assert not {"gather_gradients", "gather_rows"} & set(launcher.launched)
    true = gradient("reference")
    assert (got - true).abs().max() <= 2e-5 * true.abs().max()
