"""Fewer bytes for a field: singular vectors, or a codebook of which each Gaussian holds a few weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.decoders import CodebookDecoder, LinearDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.fields.maps import principal_axes
from featuresplat.types import FeatureField

TOP = 4
ROUNDS = 8
_BLOCK = 1 << 14
_SPACE = 64
"""Directions in which a codebook is fitted; what lies outside of them no 4 of 64 entries would hold."""


def low_rank(field: FeatureField, rank: int) -> FeatureField:
    """The field with ``rank`` channels and a linear decoder: the best such for the decoded codes, by confidence.

    Raises:
        FeaturesplatError: a rank below 1.
    """
    _check(rank, "rank")
    axes, _ = principal_axes(_moment(field), min(rank, field.out_dim))
    codes = torch.cat([part @ axes.to(part) for part in _decoded(field)])
    return replace(field, codes=codes, decoder=linear(axes))


def linear(axes: Tensor) -> LinearDecoder:
    """The decoder of codes on ``axes`` [F, K]."""
    decoder = LinearDecoder(axes.shape[1], axes.shape[0])
    decoder.weight.data.copy_(axes)
    return decoder.requires_grad_(False)


def codebook(field: FeatureField, entries: int = 64, top: int = TOP, seed: int = 0) -> FeatureField:
    """The field as ``top`` weights per Gaussian into ``entries`` feature vectors (the storage of LangSplatV2).

    Entries begin as spherical k-means of the decoded codes; then weights (orthogonal matching pursuit) and entries
    (least squares) take turns. Weights are rounded to half floats, as they are stored.

    Raises:
        FeaturesplatError: fewer than ``top`` entries, or more than 256.
    """
    _check(entries, "codebook")
    if not top <= entries <= 256:
        raise FeaturesplatError(f"codebook: expected {top} to 256 entries, got {entries}.", "64 is a good number.")
    space, _ = principal_axes(_moment(field), min(_SPACE, field.out_dim))
    x = torch.cat([part @ space.to(part) for part in _decoded(field)]).float()  # [N, K]
    confidence = torch.ones(len(x)) if field.confidence is None else field.confidence
    trust = confidence.to(x).clamp_min(1e-3).sqrt()[:, None]
    book = _k_means(x, trust[:, 0], entries, seed)
    for _ in range(ROUNDS):
        weights = pursuit(x, book, top)
        weighted = weights * trust
        gram = weighted.T @ weighted
        ridge = 1e-6 * gram.diagonal().mean().clamp_min(1e-12) * torch.eye(entries, device=x.device)
        solved = torch.linalg.solve(gram + ridge, weighted.T @ (x * trust))
        used = (gram.diagonal() > 0)[:, None]
        book = torch.where(used, F.normalize(solved, dim=1), book)
    decoder = CodebookDecoder(entries, field.out_dim, top)
    decoder.weight.data.copy_(space.to(book) @ book.T)
    codes = pursuit(x, book, top).half().float()
    return replace(field, codes=codes, decoder=decoder.requires_grad_(False))


def pursuit(x: Tensor, book: Tensor, top: int) -> Tensor:
    """[N, E] weights, at most ``top`` not zero per row, so that ``weights @ book`` is near x [N, K]; book [E, K] unit.

    Orthogonal matching pursuit: the entry that fits the rest best, then all weights anew by least squares.
    """
    out = torch.zeros(len(x), len(book), device=x.device)
    gram = book @ book.T
    for begin in range(0, len(x), _BLOCK):
        part = x[begin : begin + _BLOCK]
        fit = part @ book.T  # [B, E]
        rest, chosen = fit, torch.empty(len(part), 0, dtype=torch.long, device=x.device)
        weights = fit[:, :0]
        for _ in range(top):
            taken = rest.abs().scatter(1, chosen, -1.0)
            chosen = torch.cat([chosen, taken.argmax(1, keepdim=True)], dim=1)
            inner = gram[chosen[:, :, None], chosen[:, None, :]]
            inner = inner + 1e-4 * torch.eye(chosen.shape[1], device=x.device)
            weights = torch.linalg.solve(inner, fit.gather(1, chosen)[..., None])[..., 0]
            rest = fit - (weights[:, :, None] * gram[chosen]).sum(1)
        out[begin : begin + _BLOCK].scatter_(1, chosen, weights)
    return out


def _k_means(x: Tensor, trust: Tensor, entries: int, seed: int, rounds: int = 10) -> Tensor:
    """[E, K] unit centres of the directions of x, begun at rows chosen far from those before (k-means++)."""
    unit = F.normalize(x, dim=1)
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(unit), generator=generator)[:20_000].to(x.device)
    unit, trust = unit[some], trust[some]
    chance = trust.clone()
    centres = []
    for _ in range(entries):
        total = chance.sum()
        chance = torch.where(total > 0, chance, torch.ones_like(chance))
        pick = int(torch.multinomial(chance.cpu(), 1, generator=generator))
        centres.append(unit[pick])
        distance = (1 - unit @ unit[pick]).clamp_min(0)
        chance = torch.minimum(chance, trust * distance)
    book = torch.stack(centres)
    for _ in range(rounds):
        nearest = (unit @ book.T).argmax(1)
        sums = torch.zeros_like(book).index_add_(0, nearest, unit * trust[:, None])
        book = torch.where(sums.norm(dim=1, keepdim=True) > 1e-9, F.normalize(sums, dim=1), book)
    return book


def _decoded(field: FeatureField):
    with torch.no_grad():
        for part in field.codes.split(_BLOCK):
            yield field.decode(part.float())


def _moment(field: FeatureField) -> Tensor:
    """[F, F] of the decoded codes, by confidence."""
    total = torch.zeros(field.out_dim, field.out_dim, dtype=torch.float64)
    trust = None if field.confidence is None else field.confidence.split(_BLOCK)
    for k, part in enumerate(_decoded(field)):
        weighted = part if trust is None else part * trust[k].to(part)[:, None]
        total += (weighted.T @ part).double().cpu()
    return total / max(len(field), 1)


def _check(value: int, what: str) -> None:
    if value < 1:
        raise FeaturesplatError(f"{what}: expected at least 1, got {value}.", "Give a number of channels.")
