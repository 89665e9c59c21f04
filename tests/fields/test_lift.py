"""Lifting against dense matrices, blocks, masks, Gaussians that nobody sees, views that contradict the others."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from featuresplat.errors import FeaturesplatError
from featuresplat.fields import lift as lifting
from featuresplat.fields.lift import METHODS, conjugate_gradients, lift
from featuresplat.fields.maps import Maps
from featuresplat.scene import Scene
from featuresplat.types import FeatureField

ANY_D = (1, 3, 7, 64, 384, 512, 1024, 1408)


def flat(maps: Maps) -> list[torch.Tensor]:
    return [maps[i].reshape(-1, maps.dim) for i in range(len(maps))]


@pytest.mark.parametrize("power", [1, 2])
def test_mean_and_squared_are_the_weighted_means(toy, power):
    maps = toy.random_maps(5)
    got = lift(toy.scene, maps, "mean" if power == 1 else "squared")
    A = torch.cat(toy.weights) ** power
    seen = torch.cat(toy.weights).sum(0) > 1e-2
    want = A.T @ torch.cat(flat(maps)) / A.sum(0)[:, None]
    assert int(seen.sum()) > 40
    assert torch.allclose(got.codes[seen], want[seen], atol=1e-4)
    assert torch.allclose(got.confidence[seen], A.sum(0)[seen], atol=1e-3)


def test_centre_takes_the_map_at_the_projected_centre(toy):
    cameras = toy.scene.cameras
    y, x = torch.meshgrid(torch.arange(18) + 0.5, torch.arange(24) + 0.5, indexing="ij")
    maps = toy.maps(torch.stack([x, y], dim=-1).expand(4, -1, -1, -1).contiguous())  # each pixel holds where it is
    got = lift(toy.scene, maps, "centre")
    local = torch.einsum("cij,nj->cni", cameras.viewmats[:, :3, :3], toy.scene.gaussians.means)
    local = local + cameras.viewmats[:, None, :3, 3]
    K = cameras.Ks[0]
    at = torch.stack(
        [K[0, 0] * local[..., 0] / local[..., 2] + K[0, 2], K[1, 1] * local[..., 1] / local[..., 2] + K[1, 2]], -1
    )
    shown = torch.stack([w.sum(0) for w in toy.weights])
    inside = (shown > 1e-3) & (at[..., 0] > 0.5) & (at[..., 0] < 23.5) & (at[..., 1] > 0.5) & (at[..., 1] < 17.5)
    border = (shown > 1e-3) & ~inside
    weights = torch.where(inside, shown, 0)
    rows = (weights.sum(0) > 0.1) & ~border.any(0)
    want = (weights[..., None] * at).sum(0) / weights.sum(0)[:, None]
    assert int(rows.sum()) > 20
    assert torch.allclose(got.codes[rows], want[rows], atol=1e-3)


def test_cg_solves_the_normal_equations(toy, monkeypatch):
    monkeypatch.setattr(lifting, "ITERATIONS", 200)
    monkeypatch.setattr(lifting, "RIDGE", 1e-2)
    maps = toy.random_maps(3)
    got = lift(toy.scene, maps, "cg").codes
    A, M = torch.cat(toy.weights).double(), torch.cat(flat(maps)).double()
    ridge = 1e-2 * (A**2).sum(0).mean()
    mean = A.T @ M / A.sum(0).clamp_min(1e-12)[:, None]
    want = mean + torch.linalg.solve(A.T @ A + ridge * torch.eye(60), A.T @ (M - A @ mean))
    seen = A.sum(0) > 0.05
    assert torch.allclose(got[seen].double(), want[seen], atol=2e-3)
    fit = ((A @ got.double() - M) ** 2).sum()
    assert fit < ((A @ mean - M) ** 2).sum()


def test_conjugate_gradients_against_a_direct_solve():
    g = torch.Generator().manual_seed(0)
    B = torch.randn(30, 20, generator=g)
    G, rhs = B.T @ B + 0.1 * torch.eye(20), torch.randn(20, 3, generator=g)
    x = conjugate_gradients(lambda v, step: G @ v, rhs, 1 / G.diagonal()[:, None], 60, tolerance=1e-7)
    assert torch.allclose(x, torch.linalg.solve(G, rhs), atol=1e-3)


def test_robust_hears_the_majority(toy):
    good, bad = normalize(torch.tensor([1.0, 0.2, 0.0]), dim=0), normalize(torch.tensor([-0.2, 0.3, 1.0]), dim=0)
    values = good.expand(4, 18, 24, 3).clone()
    values[1] = bad  # one view of four is mislabelled throughout
    seen_by = torch.stack([w.sum(0) for w in toy.weights])
    fair = (seen_by > 0.3).sum(0) >= 3
    fair &= seen_by[1] < 0.4 * seen_by.sum(0)
    assert int(fair.sum()) > 15
    angle = {m: (normalize(lift(toy.scene, toy.maps(values), m).codes, dim=1) @ good)[fair].min() for m in METHODS[:4]}
    assert angle["robust"] > 0.995
    assert angle["robust"] > angle["mean"] + 0.02


@pytest.mark.parametrize("method", METHODS)
def test_blocks_of_channels_change_nothing(toy, method):
    maps = toy.random_maps(40)
    whole = lift(toy.scene, maps, method)
    blocks = lift(toy.scene, maps, method, memory=4 * (2 * 60 + 2 * 24 * 18) * 7 / 2**30)
    assert torch.allclose(whole.codes, blocks.codes, atol=2e-3)
    assert torch.allclose(whole.confidence, blocks.confidence, rtol=1e-3)


def test_block_sizes_keep_the_bound_that_is_stated(toy):
    job = lifting._Lift(lifting.Views(toy.scene, toy.random_maps(1000, size=(2, 2))), None, 0.001, lambda n, w: n)
    blocks = job._blocks()
    assert len(blocks) > 3
    assert all(4 * (2 * 60 + 2 * 18 * 24) * (b.stop - b.start) <= 0.001 * 2**30 for b in blocks)
    assert [i for b in blocks for i in range(b.start, b.stop)] == list(range(1000))


@pytest.mark.parametrize("method", METHODS)
def test_a_basis_lifts_the_projected_maps(toy, method):
    maps = toy.random_maps(6)
    basis = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1))).Q
    direct = lift(toy.scene, Maps(maps.cameras, 2, lambda i: maps[i] @ basis), method)
    assert torch.allclose(lift(toy.scene, maps, method, basis=basis).codes, direct.codes, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_masked_pixels_are_left_out(toy, method):
    clean = toy.random_maps(3)
    mask = torch.ones(4, 18, 24, dtype=torch.bool)
    mask[:, :, 12:] = False
    spoilt = torch.stack([clean[i] for i in range(4)])
    spoilt[:, :, 12:] = 1e4
    if method == "centre":  # bilinear samples next to the mask would reach over it
        spoilt[:, :, 12] = torch.stack([clean[i] for i in range(4)])[:, :, 12]
    got = lift(toy.scene, toy.maps(spoilt, mask), method)
    kept = torch.stack([(w * mask[0].flatten()[:, None]).sum(0) for w in toy.weights]).sum(0)
    assert got.codes[kept > 0.05].abs().max() < 100


def test_maps_of_another_size_are_fitted_to_the_render(toy):
    constant = torch.tensor([2.0, -1.0])
    for size in ((18, 24), (36, 48), (3, 4), (1, 1), (5, 31)):
        got = lift(toy.scene, toy.maps(constant.expand(4, *size, 2).contiguous()))
        assert torch.allclose(got.codes, constant.expand(60, 2), atol=1e-3)


def test_gaussians_that_nobody_sees_take_after_their_neighbours(toy):
    g = toy.scene.gaussians
    hidden = replace(g, logit_opacities=torch.where(torch.arange(60) == 7, -20.0, g.logit_opacities))
    scene = replace(toy.scene, gaussians=hidden)
    got = lift(scene, toy.random_maps(3))
    assert got.confidence[7] == 0
    near = (g.means - g.means[7]).norm(dim=1).masked_fill(got.confidence == 0, torch.inf).topk(4, largest=False).indices
    assert torch.allclose(got.codes[7], got.codes[near].mean(0), atol=1e-5)


@pytest.mark.parametrize("dim", ANY_D)
def test_any_number_of_channels_lifts_renders_saves_and_loads(toy, dim, tmp_path):
    got = lift(toy.scene, toy.random_maps(dim, size=(9, 12)))
    assert got.codes.shape == (60, dim)
    scene = replace(toy.scene, fields={"f": FeatureField(got.codes, "t", confidence=got.confidence)})
    scene.save(tmp_path / "r")
    back = Scene.load(tmp_path / "r")
    assert torch.equal(back.fields["f"].codes, got.codes)
    one, two = (s.render(s.cameras[0], features="f").features for s in (scene, back))
    assert one is not None
    assert two is not None
    assert one.shape == (1, 18, 24, dim)
    assert torch.equal(one, two)


def test_what_cannot_be_lifted_is_told(toy):
    maps = toy.random_maps(3)
    with pytest.raises(FeaturesplatError, match="lift: got 'median'"):
        lift(toy.scene, maps, "median")
    with pytest.raises(FeaturesplatError, match="there are no maps"):
        lift(toy.scene, Maps(maps.cameras[[]], 3, lambda i: maps[i]))
    with pytest.raises(FeaturesplatError, match=r"view_0\.png: expected a map \[h, w, 4\], got \[18, 24, 3\]"):
        lift(toy.scene, Maps(maps.cameras, 4, lambda i: maps[i]))
