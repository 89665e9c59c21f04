"""Losses: hand-computed values, a dense SSIM, native against torch, gradients, masks, bad inputs."""

from __future__ import annotations

import math

import pytest
import torch

from featuresplat import _ssim, losses
from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _native

NATIVE = pytest.mark.skipif(_ssim._function() is None, reason="the native library is not built here")


def images(height: int, width: int, channels: int = 3, seed: int = 0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    a = torch.rand(height, width, channels, generator=g)
    b = (a + 0.2 * torch.randn(height, width, channels, generator=g)).clamp(0, 1)
    return a.to(dtype), b.to(dtype)


def dense_ssim(a: torch.Tensor, b: torch.Tensor) -> float:
    """SSIM written as its definition: a loop over pixels and a 2D window; float64 [H, W, C]."""
    x = torch.arange(-5, 6, dtype=torch.float64)
    window = torch.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[..., None]
    pad = (0, 0, 5, 5, 5, 5)
    a, b = torch.nn.functional.pad(a, pad), torch.nn.functional.pad(b, pad)
    total = 0.0
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            m, n = (window * p).sum((0, 1)), (window * q).sum((0, 1))
            pp, qq = (window * p * p).sum((0, 1)) - m * m, (window * q * q).sum((0, 1)) - n * n
            pq = (window * p * q).sum((0, 1)) - m * n
            s = (2 * m * n + 1e-4) * (2 * pq + 9e-4) / ((m * m + n * n + 1e-4) * (pp + qq + 9e-4))
            total += float(s.mean())
    return total / ((a.shape[0] - 10) * (a.shape[1] - 10))


def test_l1_by_hand():
    a = torch.tensor([[[0.0], [0.5]], [[1.0], [0.25]]])
    b = torch.tensor([[[0.5], [0.5]], [[0.0], [0.0]]])
    mask = torch.tensor([[True, False], [False, True]])
    assert float(losses.l1(a, b)) == pytest.approx((0.5 + 0 + 1 + 0.25) / 4)
    assert float(losses.l1(a, b, mask)) == pytest.approx((0.5 + 0.25) / 2)
    assert float(losses.l1(a, b, torch.zeros(2, 2, dtype=torch.bool))) == 0


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=NATIVE)])
def test_ssim_is_its_definition(dtype):
    a, b = images(17, 14)
    assert float(losses.ssim(a.to(dtype), b.to(dtype))) == pytest.approx(dense_ssim(a, b), abs=2e-6)


def test_ssim_far_from_borders_of_two_flat_images():
    # No variance: SSIM = (2 m n + C1) / (m^2 + n^2 + C1); with m = 0.2 and n = 0.6: 0.2401 / 0.4001.
    a = torch.full((31, 31, 1), 0.2, dtype=torch.float64)
    assert float(losses._ssim_map(a, 3 * a)[15, 15, 0]) == pytest.approx(0.2401 / 0.4001, rel=1e-9)


def test_photometric_of_equal_images_is_zero():
    a, _ = images(20, 30, dtype=torch.float32)
    assert float(losses.photometric(a, a, 0.2)) == pytest.approx(0, abs=1e-6)
    assert float(losses.photometric(a, torch.zeros_like(a), 0.0)) == pytest.approx(float(a.mean()), rel=1e-6)


def test_gradcheck_of_the_torch_path():
    a, b = images(6, 7, 2)
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(1)) > 0.3
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.photometric(x, b, 0.4), (a,))
    assert torch.autograd.gradcheck(lambda x: losses.photometric(x, b, 0.4, mask), (a,))


@pytest.fixture
def restore_native():
    isa, threads = _native.isa(), _native.num_threads()
    yield
    _native.set_isa(isa)
    _native.set_num_threads(threads)


# Widths below, at and above a vector and a chunk of 512 floats; more channels than colours; images below the window.
SIZES = [(33, 41, 3), (12, 512, 1), (5, 3, 3), (9, 700, 4), (31, 77, 8), (1, 1, 3), (11, 180, 3)]


@NATIVE
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512", "neon"])
@pytest.mark.parametrize("masked", [False, True])
def test_native_equals_torch(isa, masked, restore_native):
    try:
        _native.set_isa(isa)
    except FeaturesplatError:
        pytest.skip(f"{isa} is not available here")
    for size in SIZES:
        a, b = images(*size)
        mask = (torch.rand(size[:2], generator=torch.Generator().manual_seed(2)) > 0.3) if masked else None
        fast, slow = a.float().requires_grad_(), a.clone().requires_grad_()
        assert _ssim.usable(fast, b.float())
        loss, truth = losses.photometric(fast, b.float(), 0.2, mask), losses.photometric(slow, b, 0.2, mask)
        loss.backward()
        truth.backward()
        assert float(loss.detach()) == pytest.approx(float(truth.detach()), abs=1e-6)
        assert fast.grad is not None
        assert slow.grad is not None
        assert (fast.grad - slow.grad).abs().max() <= 1e-5 * slow.grad.abs().max()


@NATIVE
def test_native_does_not_depend_on_threads(restore_native):
    a, b = images(50, 67, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3):
        _native.set_num_threads(threads)
        x = a.clone().requires_grad_()
        loss = losses.photometric(x, b, 0.2)
        loss.backward()
        results.append((loss.detach(), x.grad))
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@NATIVE
def test_native_takes_strided_images_and_upstream_gradients():
    a, b = images(20, 30, dtype=torch.float32)
    x = a.permute(2, 0, 1).contiguous().requires_grad_()
    y = a.clone().requires_grad_()
    (3 * losses.photometric(x.permute(1, 2, 0), b, 0.2)).backward()
    losses.photometric(y, b, 0.2).backward()
    assert x.grad is not None
    assert y.grad is not None
    torch.testing.assert_close(x.grad.permute(1, 2, 0), 3 * y.grad)


def test_left_out_pixels_neither_count_nor_pull():
    a, b = images(24, 24, dtype=torch.float32)
    mask = torch.ones(24, 24, dtype=torch.bool)
    mask[8:14, 5:20] = False
    spoiled = torch.where(mask[..., None], a, 7.0).requires_grad_()
    loss = losses.photometric(spoiled, b, 0.2, mask)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(losses.photometric(a, b, 0.2, mask)), rel=1e-6)
    assert spoiled.grad is not None
    assert (spoiled.grad[~mask] == 0).all()
    assert (spoiled.grad[mask] != 0).any()
    none = losses.photometric(a, b, 0.2, torch.zeros_like(mask))
    assert float(none) == 0


def test_depth_loss_by_hand():
    depth = torch.tensor([[2.0, 4.0], [0.0, 5.0]], requires_grad=True)
    truth = torch.tensor([[4.0, 4.0], [3.0, 0.0]])
    alpha = torch.tensor([[0.5, 1.0], [0.0, 1.0]])
    loss = losses.depth_loss(depth[..., None], truth, alpha)
    # Known in both: the two of the first row. 0.5 |1/2 - 1/4| and 0; mean of two.
    assert float(loss.detach()) == pytest.approx(0.0625)
    loss.backward()
    assert depth.grad is not None
    # d/dz 0.5 (1/z - 1/4) / 2 at z = 2: -0.25 / 4.
    assert float(depth.grad[0, 0]) == pytest.approx(-0.0625)
    assert depth.grad[1].tolist() == [0, 0]
    assert float(losses.depth_loss(depth.detach(), torch.zeros(2, 2), alpha)) == 0


def test_bad_inputs_say_what_came():
    a = torch.zeros(4, 5, 3)
    with pytest.raises(FeaturesplatError, match=r"images: expected two of the same .*\[4, 5, 3\] and \[4, 4, 3\]"):
        losses.photometric(a, a[:, :4], 0.2)
    with pytest.raises(FeaturesplatError, match=r"mask: expected bool \[4, 5\], got torch.float32"):
        losses.l1(a, a, torch.zeros(4, 5))
    with pytest.raises(FeaturesplatError, match="depth_loss: expected depth, truth and alpha of one size"):
        losses.depth_loss(torch.zeros(4, 5), torch.zeros(4, 4), torch.zeros(4, 5))


def test_window_is_normalised_and_symmetric():
    g = losses._window()
    assert math.fsum(g) == pytest.approx(1, abs=1e-15)
    assert g == g[::-1]
    assert g[4] / g[5] == pytest.approx(math.exp(-1 / 4.5))
