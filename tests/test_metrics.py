"""Metrics: known values, clamping, masks, and LPIPS that never downloads."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from featuresplat import losses, metrics
from featuresplat.errors import FeaturesplatError


def test_psnr_by_hand():
    a, b = torch.full((4, 5, 3), 0.5), torch.full((4, 5, 3), 0.6)
    assert metrics.psnr(a, b) == pytest.approx(20, abs=1e-5)  # squared error 0.01
    assert metrics.psnr(a, a) == math.inf


def test_psnr_clamps_and_masks():
    a = torch.zeros(2, 2, 3)
    a[0, 0] = 1.5
    b = torch.zeros(2, 2, 3)
    b[0, 0], b[1, 1] = 1.0, 0.1
    assert metrics.psnr(a, b) == pytest.approx(-10 * math.log10(0.01 / 4), abs=1e-5)
    mask = torch.tensor([[True, True], [True, False]])
    assert metrics.psnr(a, b, mask) == math.inf
    assert math.isnan(metrics.psnr(a, b, torch.zeros(2, 2, dtype=torch.bool)))


def test_ssim_is_the_loss_on_clamped_images():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(20, 20, 3, generator=g), torch.rand(20, 20, 3, generator=g)
    assert metrics.ssim(a, b) == pytest.approx(float(losses.ssim(a, b)), abs=1e-6)
    assert metrics.ssim(a + 5, b) == pytest.approx(float(losses.ssim(torch.ones_like(a), b)), abs=1e-6)
    assert metrics.ssim(a, a) == pytest.approx(1, abs=1e-6)


def test_image_metrics_ignores_masked_pixels():
    g = torch.Generator().manual_seed(0)
    a, b = torch.rand(20, 20, 3, generator=g), torch.rand(20, 20, 3, generator=g)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[:5] = False
    spoiled = torch.where(mask[..., None], a, 0.0)
    assert metrics.image_metrics(a, b, mask) == metrics.image_metrics(spoiled, b, mask)
    assert set(metrics.image_metrics(a, b)) == {"psnr", "ssim", "lpips"}


def test_lpips_without_weights_is_none_and_touches_no_network(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    metrics._lpips_network.cache_clear()
    a = torch.rand(40, 40, 3)
    assert metrics.lpips(a, a) is None
    assert metrics.lpips_unavailable()
    metrics._lpips_network.cache_clear()


def test_lpips_survives_a_broken_package(monkeypatch, tmp_path):
    weights = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"not weights")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "lpips", None)
    metrics._lpips_network.cache_clear()
    assert metrics.lpips(torch.rand(40, 40, 3), torch.rand(40, 40, 3)) is None
    metrics._lpips_network.cache_clear()


def test_sizes_must_agree():
    with pytest.raises(FeaturesplatError, match=r"images: expected two of the same"):
        metrics.psnr(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))
    with pytest.raises(FeaturesplatError, match=r"images: expected two of the same"):
        metrics.lpips(torch.zeros(4, 4, 3), torch.zeros(4, 5, 3))
