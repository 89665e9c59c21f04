"""Low rank and codebooks."""

from __future__ import annotations

import pytest
import torch

from featuresplat.decoders import CodebookDecoder, MLPDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.fields.compact import codebook, low_rank, pursuit
from featuresplat.types import FeatureField


def error(field: FeatureField, of: FeatureField) -> float:
    want = of.decode(of.codes)
    return float((field.decode(field.codes) - want).norm() / want.norm())


def test_low_rank_reaches_the_bound_of_the_singular_values():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 12, generator=g) @ torch.diag(torch.logspace(0, -3, 12)) @ torch.randn(12, 12, generator=g)
    field = FeatureField(x, "t")
    values = torch.linalg.svdvals(x)
    for rank in (1, 3, 12):
        small = low_rank(field, rank)
        assert small.dim == rank
        bound = float(values[rank:].norm() / values.norm())
        assert error(small, field) == pytest.approx(bound, abs=2e-3)
    assert low_rank(field, 99).dim == 12


def test_low_rank_decodes_what_was_decoded_and_listens_to_confidence():
    g = torch.Generator().manual_seed(0)
    decoder = MLPDecoder(3, 6, 8)
    torch.nn.init.normal_(decoder.second.weight, generator=g)
    field = FeatureField(torch.randn(100, 3, generator=g), "t", decoder.requires_grad_(False))
    assert error(low_rank(field, 6), field) < 1e-5
    x = torch.cat([torch.eye(4)[:1].expand(50, 4), torch.eye(4)[1:2].expand(50, 4)]).contiguous()
    sure = torch.cat([torch.ones(50), torch.full((50,), 1e-4)])
    kept = low_rank(FeatureField(x, "t", confidence=sure), 1)
    decoded = kept.decode(kept.codes)
    assert torch.allclose(decoded[:50], x[:50], atol=1e-3)
    assert decoded[50:].abs().max() < 1e-3


def test_pursuit_finds_the_entries_that_made_a_vector():
    g = torch.Generator().manual_seed(0)
    book = torch.linalg.qr(torch.randn(16, 16, generator=g)).Q
    weights = torch.zeros(50, 16).scatter_(1, torch.rand(50, 16, generator=g).topk(3).indices, 1.0)
    weights = weights * torch.rand(50, 16, generator=g).add(0.1)
    found = pursuit(weights @ book, book, 3)
    assert torch.allclose(found, weights, atol=1e-3)
    assert int((found != 0).sum(1).max()) <= 3


def test_a_codebook_holds_clusters_and_their_mixtures():
    g = torch.Generator().manual_seed(0)
    words = torch.nn.functional.normalize(torch.randn(10, 48, generator=g), dim=1)
    mix = torch.zeros(600, 10).scatter_(1, torch.rand(600, 10, generator=g).topk(2).indices, 1.0)
    mix[:300] = torch.nn.functional.one_hot(torch.arange(300) % 10, 10).float()
    mix = mix * (0.3 + torch.rand(600, 1, generator=g))
    field = FeatureField(mix @ words, "t", info={"teacher": {"a": 1}})
    small = codebook(field, 16)
    assert isinstance(small.decoder, CodebookDecoder)
    assert small.dim == 16
    assert int((small.codes != 0).sum(1).max()) <= 4
    assert torch.equal(small.codes.half().float(), small.codes)
    assert error(small, field) < 0.05
    assert small.info == field.info
    assert torch.equal(codebook(field, 16).codes, small.codes)


def test_wrong_sizes_are_told():
    field = FeatureField(torch.randn(20, 8))
    with pytest.raises(FeaturesplatError, match="expected 4 to 256 entries, got 3"):
        codebook(field, 3)
    with pytest.raises(FeaturesplatError, match="got 257"):
        codebook(field, 257)
    with pytest.raises(FeaturesplatError, match="rank: expected at least 1, got 0"):
        low_rank(field, 0)
