"""Progressive radiance distillation on points whose truth is known."""

from __future__ import annotations

import pytest
import torch

from featuresplat.shading import harmonics
from featuresplat.shading.progress import objective, stationary

WEIGHT = 0.08
REGIONS, POINTS = 12, 1500


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_stationary_progress_is_where_the_objective_rests():
    residual = torch.tensor([0.0, 0.02, 0.05, 0.08, 0.12, 0.159, 0.161, 0.2, 0.5], dtype=torch.float64)
    truth = torch.full((len(residual), 3), 0.4, dtype=torch.float64)
    physical = truth + residual[:, None] * torch.tensor([1.0, -1.0, 1.0])
    # The objective is convex in each progress: where its slope changes sign, halving the interval finds exactly.
    low, high = torch.zeros(len(residual), 1).double(), torch.ones(len(residual), 1).double()
    for _ in range(60):
        a = ((low + high) / 2).requires_grad_()
        total(objective(a * physical + (1 - a) * truth, truth, a, WEIGHT)).backward()
        assert a.grad is not None
        rising = a.grad > 0
        low, high = torch.where(rising, low, a.detach()), torch.where(rising, a.detach(), high)
    want = stationary(physical - truth, WEIGHT)
    torch.testing.assert_close(want, (1 - residual / 0.16).clamp(0, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(low[:, 0], want, atol=1e-6, rtol=0)


def scene(seed: int):
    """Points on a sphere, twelve materials, a light of nine harmonics, and on 12 % of them light that no model has."""
    g = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(POINTS, 3, generator=g), dim=1)
    light = 0.25 * torch.randn(9, generator=g)
    light[0] = 3.0
    region = torch.randint(REGIONS, (POINTS,), generator=g)
    albedo = 0.15 + 0.7 * torch.rand(REGIONS, 3, generator=g)
    image = albedo[region] * shade(light, normals)[:, None]
    # The upper cap of every other material: half of what lies above it, 12 % of all.
    cap = (normals[:, 2] > 0.52) & (region % 2 == 0)
    image[cap] += 0.25 + 0.35 * torch.rand(int(cap.sum()), 3, generator=g)
    return normals, region, albedo, image, float(cap.float().mean())


def shade(light: torch.Tensor, normals: torch.Tensor) -> torch.Tensor:
    return (harmonics.cosine_bases(normals, 2) @ light).clamp_min(1e-4)


def albedo_psnr(seed: int, progressive: bool, fit: str) -> tuple[float, float]:
    """Albedo in dB after fitting albedo, light and progress, the scale left open; and the emitting share."""
    normals, region, truth, image, share = scene(seed)
    logits = torch.zeros(REGIONS, 3, requires_grad=True)
    light = torch.tensor([2.5] + [0.0] * 8, requires_grad=True)
    progress = torch.full((POINTS, 1), -4.6, requires_grad=True)  # a = 0.01
    groups = [{"params": [logits, light], "lr": 0.03}, {"params": [progress], "lr": 0.1}]
    optimizer = torch.optim.Adam(groups)
    steps = 400
    for k in range(steps):
        for group, rate in zip(optimizer.param_groups, (0.03, 0.1), strict=True):
            group["lr"] = rate * (1.0 if k < steps / 2 else 0.01 ** (2 * k / steps - 1))
        optimizer.zero_grad()
        physical = logits.sigmoid()[region] * shade(light, normals)[:, None]
        a = progress.sigmoid() if progressive else torch.ones_like(progress)
        mixed = a * physical + (1 - a) * image
        total(objective(mixed, image, a if progressive else None, WEIGHT, fit)).backward()
        optimizer.step()
    found = logits.detach().sigmoid()
    scale = (truth * found).sum() / found.square().sum()
    return float(-10 * torch.log10((scale * found - truth).square().mean())), share


@pytest.mark.parametrize("seed", range(10))
def test_unmodelled_light_does_not_leak_into_the_materials(seed):
    ours, share = albedo_psnr(seed, True, "l1")
    plain, _ = albedo_psnr(seed, False, "l2")
    assert 0.1 < share < 0.14
    assert ours > 40
    assert plain < 25
