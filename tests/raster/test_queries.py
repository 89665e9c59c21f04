"""The transpose and the queries of every backend, in float32, against the float64 reference."""

from __future__ import annotations

import pytest
import torch
from contract import BAND, FORWARD, GRADIENT, close, device_of, render
from dense_truth import dense

import featuresplat as fs
from featuresplat.raster import RasterSettings


@pytest.fixture(scope="module")
def clear_scene(make_scene):
    """Two views without any pixel in the band: every pair is decided alike in both precisions."""
    for seed in range(200):
        scene = make_scene(60, cameras=2, width=22, height=18, size=0.2, seed=seed)
        if all((dense(scene, c).margin > BAND).all() for c in range(2)):
            return scene
    raise AssertionError("no seed gives a scene that is clear of every threshold")


def splats(scene):
    return (
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        scene.viewmats,
        scene.Ks,
        scene.width,
        scene.height,
    )


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("channels", [0, 1, 3, 64, 129, 512])
def test_lift(clear_scene, backend, power, channels):
    g = torch.Generator().manual_seed(5)
    maps = torch.randn(2, clear_scene.height, clear_scene.width, channels, generator=g)
    true = fs.lift(*splats(clear_scene.to(torch.float64)), maps.double(), power=power)
    device = device_of(backend)
    got = fs.lift(*splats(clear_scene.to(device)), maps.to(device), power=power, backend=backend)
    for name, a, b in zip(("sums", "weights"), got, true, strict=True):
        close(name, a, b, GRADIENT)
    odd = maps.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0).to(device)
    again = fs.lift(*splats(clear_scene.to(device)), odd, power=power, backend=backend)
    close("sums of strided maps", again[0], got[0].cpu().double(), 1e-6)


def test_lift_is_the_transpose(clear_scene, backend):
    """<rasterize(f), m> = <f, lift(m)>."""
    scene = clear_scene.to(device_of(backend))
    maps = torch.randn(2, scene.height, scene.width, 4, generator=torch.Generator().manual_seed(3)).to(scene.means)
    image = render(scene, backend).features
    sums, _ = fs.lift(*splats(scene), maps, backend=backend)
    left, right = (image.double() * maps).sum(), (scene.features.double() * sums).sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-3)


def test_weight_matrix(clear_scene, backend):
    true = fs.weight_matrix(*splats(clear_scene.to(torch.float64)))
    got = fs.weight_matrix(*splats(clear_scene.to(device_of(backend))), backend=backend)
    assert len(got) == len(true) == 2
    for a, b in zip(got, true, strict=True):
        assert a.indptr.dtype == a.indices.dtype == torch.int64
        assert a.indptr.tolist() == b.indptr.tolist()
        assert a.indices.tolist() == b.indices.tolist()
        close("weights", a.weights, b.weights, FORWARD)


@pytest.mark.parametrize("k", [1, 3, 80])
def test_topk(clear_scene, backend, k):
    true_ids, true = fs.topk(*splats(clear_scene.to(torch.float64)), k)
    ids, weights = fs.topk(*splats(clear_scene.to(device_of(backend))), k, backend=backend)
    assert ids.dtype == torch.int64
    close("weights", weights, true, FORWARD)
    # Where two weights are nearly equal, their order (and who is last) is open.
    more = torch.cat(
        [fs.topk(*splats(clear_scene.to(torch.float64)), k + 1)[1], torch.full_like(true[..., :1], -1)], -1
    )
    gap_after = more[..., :k] - more[..., 1 : k + 1]
    gap_before = torch.cat([torch.ones_like(true[..., :1]), gap_after[..., :-1]], -1)
    sure = ((gap_after > 1e-5) & (gap_before > 1e-5)) | (true_ids < 0)
    assert sure.double().mean() > 0.9
    assert torch.equal(ids.cpu()[sure], true_ids[sure])


def test_topk_ties_put_the_nearer_first(backend):
    """An exact tie: opacity 1/2 leaves 1/2, and an alpha of 1 behind it takes all of that."""
    device = device_of(backend)
    means, quats = torch.tensor([[0, 0, 4.0], [0, 0, 2.0]]), torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1)
    K = torch.tensor([[[10.0, 0, 2.5], [0, 10, 2.5], [0, 0, 1]]])
    args = (means, quats, torch.full((2, 3), 0.2), torch.tensor([1.0, 0.5]), torch.eye(4)[None], K)
    settings = RasterSettings(alpha_max=1.0, transmittance_min=-1.0)
    ids, weights = fs.topk(*(t.to(device) for t in args), 5, 5, 2, settings=settings, backend=backend)
    assert weights[0, 2, 2].tolist() == [0.5, 0.5]
    assert ids[0, 2, 2].tolist() == [1, 0]


def test_contributions(clear_scene, backend):
    true = fs.contributions(*splats(clear_scene.to(torch.float64)))
    got = fs.contributions(*splats(clear_scene.to(device_of(backend))), backend=backend)
    close("sums", got.sums, true.sums, GRADIENT)
    close("maxima", got.maxima, true.maxima, FORWARD)
    assert torch.equal(got.pixels.cpu().long(), true.pixels)


def test_features_may_be_projected_before_blending(clear_scene, backend):
    """Blending is linear: the image of F A is the image of F, times A."""
    scene = clear_scene.to(device_of(backend))
    wide = torch.randn(60, 70, generator=torch.Generator().manual_seed(8)).to(scene.means)
    A = torch.randn(70, 2, generator=torch.Generator().manual_seed(9)).to(scene.means)
    late = render(scene, backend, features=wide).features @ A
    early = render(scene, backend, features=wide @ A).features
    close("projected", early, late.cpu().double(), 1e-4)
