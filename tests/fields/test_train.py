"""Codes and decoders by gradient: the losses by hand, the start from principal components, several heads."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from featuresplat.decoders import LinearDecoder, MLPDecoder
from featuresplat.fields import train
from featuresplat.fields.lift import lift
from featuresplat.fields.maps import principal_axes, second_moment
from featuresplat.fields.train import Head, feature_loss, refine, step_loss
from featuresplat.fields.views import Views


def test_the_losses_by_hand():
    truth = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]]])  # three cells; the last one says nothing
    pred = torch.tensor([[[2.0, 0.0], [3.0, 3.0], [1.0, 5.0]]])
    want = (0 + (1 - math.sqrt(0.5))) / 2
    assert float(feature_loss(pred, truth, "cosine")) == pytest.approx(want, abs=1e-6)
    keep = torch.tensor([[True, False, True]])
    assert float(feature_loss(pred, truth, "cosine", keep)) == pytest.approx(0, abs=1e-6)
    flat = torch.ones(4, 4, 2)
    assert float(feature_loss(flat, flat, "l1")) == pytest.approx(0, abs=1e-6)
    # L1 is the mean of (1, 0) + (3, 1) + (1, 5) over six values; the rest is a tenth of 1 - SSIM, at most 0.2.
    whole = float(feature_loss(pred, truth, "l1"))
    assert 11 / 6 - 1e-6 < whole < 11 / 6 + 0.2 + 1e-6


def loss_over_views(toy, maps, codes, decoder, kind: Literal["cosine", "l1"] = "cosine") -> float:
    views, heads, generator = [Views(toy.scene, maps)], [Head(maps, decoder, kind)], torch.Generator()
    with torch.no_grad():
        return sum(float(step_loss(views, heads, codes, i, generator)) for i in range(len(maps)))


@pytest.mark.parametrize("kind", ["cosine", "l1"])
@pytest.mark.parametrize("size", [(18, 24), (4, 6)])
def test_refinement_lowers_the_loss(toy, kind, size):
    maps = toy.true_maps(6, size=size)
    axes, _ = principal_axes(second_moment(maps), 4)
    decoder = LinearDecoder(4, 6)
    decoder.weight.data.copy_(axes)
    start = lift(toy.scene, maps, basis=axes).codes
    before = loss_over_views(toy, maps, start, decoder, kind)
    codes = refine(toy.scene, start, [Head(maps, decoder, kind)], 40, 0.03)
    after = loss_over_views(toy, maps, codes, decoder, kind)
    assert after < (0.8 if kind == "cosine" else 0.95) * before, (after, before)
    assert not decoder.weight.requires_grad
    assert not codes.requires_grad


def test_an_mlp_begins_where_the_linear_decoder_is_and_gets_further(toy):
    maps = toy.true_maps(6)
    axes, _ = principal_axes(second_moment(maps), 3)
    mlp, linear = MLPDecoder(3, 6, 32), LinearDecoder(3, 6)
    mlp.weight.data.copy_(axes)
    linear.weight.data.copy_(axes)
    start = lift(toy.scene, maps, basis=axes).codes
    assert torch.allclose(mlp(start), linear(start))
    before = loss_over_views(toy, maps, start, mlp)
    codes = refine(toy.scene, start, [Head(maps, mlp)], 40, 0.03)
    assert loss_over_views(toy, maps, codes, mlp) < 0.9 * before


def test_two_teachers_over_one_code(toy):
    one, two = toy.true_maps(5, seed=1), toy.true_maps(3, seed=2, size=(9, 12))
    heads = [Head(one, LinearDecoder(4, 5)), Head(two, MLPDecoder(4, 3, 16))]
    for head, maps in zip(heads, (one, two), strict=True):
        assert head.decoder is not None
        head.decoder.weight.data.copy_(principal_axes(second_moment(maps), 4)[0] if maps.dim >= 4 else torch.eye(3, 4))  # pyright: ignore
    start = 0.3 * torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    before = [loss_over_views(toy, h.maps, start, h.decoder) for h in heads]
    codes = refine(toy.scene, start, heads, 50, 0.05)
    after = [loss_over_views(toy, h.maps, codes, h.decoder) for h in heads]
    assert after[0] < 0.9 * before[0]
    assert after[1] < 0.9 * before[1]


def test_the_same_seed_gives_the_same_codes(toy):
    maps = toy.random_maps(3)
    start = lift(toy.scene, maps).codes
    runs = [refine(toy.scene, start, [Head(maps)], 6, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_of_a_large_map_a_part_is_compared(toy, monkeypatch):
    monkeypatch.setattr(train, "VALUES", 300)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        rows, columns = train._part(18, 24, 5, generator)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert 0 < area * 5 <= 300
        assert 0 <= rows.start < rows.stop <= 18
        assert 0 <= columns.start < columns.stop <= 24
    maps = toy.random_maps(5)
    codes = refine(toy.scene, lift(toy.scene, maps).codes, [Head(maps)], 5)
    assert bool(codes.isfinite().all())


@pytest.mark.parametrize("dim", [1, 3, 7, 64, 384, 512, 1024, 1408])
def test_any_number_of_channels_trains(toy, dim):
    maps = toy.random_maps(dim, size=(6, 8))
    start = torch.randn(60, dim, generator=torch.Generator().manual_seed(0))
    # The angle of a single channel is its sign, which has no gradient.
    kind = "l1" if dim == 1 else "cosine"
    before = loss_over_views(toy, maps, start, None, kind)
    codes = refine(toy.scene, start, [Head(maps, loss=kind)], 12, 0.05)
    assert codes.shape == (60, dim)
    assert loss_over_views(toy, maps, codes, None, kind) < before


def test_masked_cells_do_not_pull(toy):
    mask = torch.zeros(4, 18, 24, dtype=torch.bool)
    maps = toy.maps(torch.randn(4, 18, 24, 3, generator=torch.Generator().manual_seed(0)), mask)
    start = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(refine(toy.scene, start, [Head(maps)], 4), start)
