"""The GPU's fused L1 + D-SSIM (cuda/gpu/ssim.cu) against plain torch in float64: on the host emulator, or on a GPU."""

from __future__ import annotations

import pytest
import shim
import torch

from featuresplat import _ssim, losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and shim.unavailable() is not None, reason=shim.unavailable() or ""
)

# Below, at and above a tile; narrower than the window; one channel and many.
SIZES = [(33, 41, 3), (16, 16, 1), (5, 3, 3), (17, 48, 4), (1, 1, 3), (40, 15, 9)]


def images(height: int, width: int, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(height * width)
    a = torch.rand(height, width, channels, generator=g, dtype=torch.float64)
    b = (a + 0.3 * torch.randn(a.shape, generator=g, dtype=torch.float64)).clamp(0, 1)
    b[: height // 2] = a[: height // 2] * 0.5  # a smooth difference, too
    return a, b


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dssim", [0.0, 0.2, 1.0])
def test_equals_torch(masked, dssim):
    for size in SIZES:
        a, b = images(*size)
        weight, count = None, float(a.numel())
        if masked:
            mask = torch.rand(size[:2], generator=torch.Generator().manual_seed(2)) > 0.3
            weight = mask[..., None].expand(size).double()
            a = torch.where(mask[..., None], a, b)  # as losses.photometric gives it
            count = float(max(weight.sum(), 1))
        x = a.clone().requires_grad_()
        kept = torch.ones_like(a) if weight is None else weight
        true = (kept * ((1 - dssim) * (x - b).abs() + dssim * (1 - losses._ssim_map(x, b)))).sum() / count
        true.backward()
        inputs = [None if t is None else t.float().to(DEVICE).contiguous() for t in (a, b, weight)]
        loss, grad = _ssim._on_gpu(inputs[0], inputs[1], dssim, inputs[2], count, True)
        assert float(loss) == pytest.approx(float(true.detach()), abs=2e-6)
        assert x.grad is not None
        assert grad is not None
        assert (grad.cpu() - x.grad).abs().max() <= 2e-5 * max(float(x.grad.abs().max()), 1e-12)
        alone, none = _ssim._on_gpu(inputs[0], inputs[1], dssim, inputs[2], count, False)
        assert none is None
        assert torch.equal(alone, loss)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_is_what_training_on_a_gpu_uses():
    a, b = images(60, 80, 3)
    x, y = a.float().cuda().requires_grad_(), b.float().cuda()
    assert _ssim.usable(x, y)
    mask = torch.rand(60, 80, device="cuda") > 0.2
    (3 * losses.photometric(x, y, 0.2, mask)).backward()
    slow = a.clone().requires_grad_()
    (3 * losses.photometric(slow, b, 0.2, mask.cpu())).backward()
    assert slow.grad is not None
    assert (x.grad.cpu() - slow.grad).abs().max() <= 2e-5 * slow.grad.abs().max()


def test_the_cpu_keeps_its_own():
    a, b = (t.float() for t in images(20, 30, 3))
    assert _ssim.usable(a, b) == (_ssim._function() is not None)
    assert not _ssim.usable(a.double(), b.double())
    assert not _ssim.usable(a, b.clone().requires_grad_())
    assert not _ssim.usable(a, b.to("meta"))
