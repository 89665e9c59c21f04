"""Colours that explain photographs best: finer than the Gaussians' footprints, and only where they may change."""

from __future__ import annotations

import pytest
import torch

from featuresplat import raster
from featuresplat.modes._inverse_colors import sharpened
from featuresplat.modes._inverse_shaded import KINDS, Shaded, lift
from featuresplat.modes._inverse_solve import Views
from featuresplat.types import Cameras, Gaussians

SIDE, SIZE, GAIN, OFFSET = 16, 64, 0.6, 0.05


@pytest.fixture(scope="module")
def sheet():
    """A sheet of overlapping Gaussians in random colours, and three pictures of it, shaded as one material."""
    draw = torch.Generator().manual_seed(0)
    at = 2 * (torch.arange(SIDE) + 0.5) / SIDE - 1
    x, y = torch.meshgrid(at, at, indexing="ij")
    n, spacing = SIDE * SIDE, 2 / SIDE
    g = Gaussians(
        means=torch.stack([x.reshape(-1), y.reshape(-1), torch.zeros(n)], 1),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]).repeat(n, 1),
        log_scales=torch.tensor([0.7 * spacing, 0.7 * spacing, 1e-3]).log().repeat(n, 1),
        logit_opacities=torch.full((n,), 3.0),
        sh0=torch.zeros(n, 1, 3),
        shN=torch.zeros(n, 0, 3),
    )
    colors = 0.1 + 0.8 * torch.rand(n, 3, generator=draw)
    K = torch.tensor([[SIZE * 1.0, 0.0, SIZE / 2], [0.0, SIZE * 1.0, SIZE / 2], [0.0, 0.0, 1.0]])
    viewmats = torch.eye(4).repeat(3, 1, 1)
    viewmats[:, 2, 3], viewmats[:, 0, 3] = 2.2, torch.tensor([-0.05, 0.0, 0.05])
    cameras = Cameras(viewmats.double(), K.double().repeat(3, 1, 1), SIZE, SIZE)
    options = {"settings": raster.RasterSettings(), "backend": None}
    views = Views(cameras, lambda i: torch.zeros(SIZE, SIZE, 3), torch.device("cpu"), **options)
    pictures = []
    for i in range(3):
        matrices = views.matrices(i)
        out = raster.rasterize(
            g.means, g.quats, g.scales, g.opacities, None, *matrices, SIZE, SIZE, features=colors, **views.options
        )
        assert out.features is not None
        alpha = out.alpha.reshape(-1, 1)
        rows = (alpha[:, 0] > 0.5).nonzero()[:, 0]
        radiance = GAIN * out.features.reshape(-1, 3)[rows] / alpha[rows] + OFFSET
        shape = len(rows), len(KINDS), 3
        gain, offset = torch.full(shape, GAIN), torch.full(shape, OFFSET)
        gain[:, 1:], offset[:, 1:] = 0.3, 0.2  # of materials that it is not
        trust = torch.ones_like(alpha[rows])
        pictures.append(Shaded(matrices, (SIZE, SIZE), rows, alpha[rows], radiance, radiance, trust, gain, offset))
    return g, colors, views, pictures


def lifted(g, views, pictures):
    """Every Gaussian's mean over its pixels."""
    sums = sum(
        lift(g, s, torch.cat([(s.radiance - OFFSET) / GAIN, torch.ones_like(s.alpha)], 1), views) for s in pictures
    )
    return sums[:, :3] / sums[:, 3:].clamp_min(1e-6)


def solved(sheet, start, free):
    g, _, views, pictures = sheet
    share = torch.zeros(len(start), len(KINDS))
    share[:, 0] = 1
    trusts = [s.trust.expand(-1, len(KINDS)) for s in pictures]
    return sharpened(g, pictures, trusts, share, start, free, views)


def test_textures_come_out_sharp(sheet):
    g, colors, views, pictures = sheet
    start = lifted(g, views, pictures)
    found = solved(sheet, start, torch.ones(len(start), dtype=torch.bool))
    inner = g.means[:, :2].abs().amax(1) < 0.8
    blurred, sharp = ((c - colors)[inner].abs().mean() for c in (start, found))
    assert float(blurred) > 0.1
    assert float(sharp) < 0.2 * float(blurred)


def test_others_keep_their_colours(sheet):
    g, colors, *_ = sheet
    start, free = torch.full_like(colors, 0.5), g.means[:, 0] > 0
    found = solved(sheet, torch.where(free[:, None], start, colors), free)
    assert torch.equal(found[~free], colors[~free])
    inner = free & (g.means[:, :2].abs().amax(1) < 0.8)
    assert float((found - colors)[inner].abs().mean()) < 0.05
