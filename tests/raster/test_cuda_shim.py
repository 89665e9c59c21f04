"""What is particular to backend "cuda", its kernels run on the CPU by the host shim (cuda/gpu/shim).

Its meaning is tested over all backends in test_contract.py and test_queries.py.
"""

from __future__ import annotations

from dataclasses import replace

import contract
import pytest
import shim
import torch
from contract import LEAVES, check, clear_pixels, render, run, seeds_for
from shim import ShimLauncher, stand_in

import featuresplat as fs
from featuresplat.errors import FeaturesplatError
from featuresplat.raster import RasterSettings, _cuda_forward, _cuda_frame, _cuda_options
from featuresplat.raster._inputs import check_inputs

pytestmark = pytest.mark.skipif(shim.unavailable() is not None, reason=str(shim.unavailable()))


@pytest.fixture(autouse=True)
def _on_cpu(monkeypatch):
    monkeypatch.setattr(contract, "device_of", lambda backend: "cpu")


@pytest.mark.parametrize("order", ["descending", "shuffled"])
@pytest.mark.parametrize("channels", [0, 3, 20, 70])
def test_any_order_of_threads(make_scene, order, channels):
    """A missing barrier shows as a wrong result in one of them."""
    with stand_in(ShimLauncher(order=order, seed=channels)):
        check(make_scene(120, channels=channels), "cuda", absgrad=True)


@pytest.mark.parametrize("channels", [0, 3, 20])
def test_without_matrix_units(make_scene, channels):
    scene = make_scene(80, channels=channels, cameras=2)
    with stand_in(ShimLauncher(arch=75)) as launcher:
        check(scene, "cuda", absgrad=True)
        check(scene, "cuda", geometry_grad="none")
    assert "blend_features" not in launcher.launched
    assert "lift" not in launcher.launched


@pytest.mark.parametrize("limit", [48 * 1024, 99 * 1024, 163 * 1024])
@pytest.mark.parametrize("channels", [8, 20, 140])
def test_smaller_shared_memory(make_scene, channels, limit):
    """The shapes of kernels that other devices get."""

    class Small(ShimLauncher):
        def launch(self, kernel, grid, block, shared_bytes, args, constants=None):
            assert shared_bytes <= limit, kernel
            super().launch(kernel, grid, block, shared_bytes, args, constants)

    launcher = Small(arch=75 if limit < 90_000 else 80)
    launcher.shared_limit = limit
    with stand_in(launcher):
        check(make_scene(60, channels=channels), "cuda")


@pytest.mark.parametrize("scale", [1.0, 1e-4, 3e5])
@pytest.mark.parametrize("channels", [17, 70, 129])
def test_half_precision(make_scene, channels, scale):
    """Features of any size keep their digits; gradients are float32."""
    scene = make_scene(120, channels=channels)
    scene = replace(scene, features=scale * scene.features)
    with stand_in(ShimLauncher()):
        out = render(scene, "cuda", precision="fp16")
        full = render(scene, "cuda")
    clear = clear_pixels(scene)[..., None]
    true = render(scene.to(torch.float64), "reference")
    most = float(true.features.abs().max())
    error = float(((out.features - true.features) * clear).abs().max())
    assert error < 1e-3 * most
    assert error > 2e-5 * most, "float16 was not used"
    assert float(((full.features - true.features) * clear).abs().max()) < 2e-5 * most
    assert torch.equal(out.rgb, full.rgb)


def test_precision_is_checked_and_has_a_default(make_scene, monkeypatch):
    scene = make_scene(20, channels=17)
    with pytest.raises(FeaturesplatError, match="precision: got 'fp8'"):
        render(scene, "cpu", precision="fp8")
    with stand_in(ShimLauncher()):
        wanted = render(scene, "cuda", precision="fp16").features
        monkeypatch.setenv("FEATURESPLAT_PRECISION", "fp16")
        assert torch.equal(render(scene, "cuda").features, wanted)


@pytest.mark.parametrize("channels", [3, 40])
def test_deterministic_whatever_the_order(make_scene, channels):
    """With torch.use_deterministic_algorithms, the order in which blocks add their sums does not matter."""
    scene = make_scene(150, channels=channels, cameras=2)
    seeds = seeds_for(render(scene, "reference"), torch.ones(2, scene.height, scene.width))
    found = []
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        for order in ("ascending", "descending", "shuffled"):
            with stand_in(ShimLauncher(order=order, seed=3)):
                out, grads = run(scene, "cuda", "cpu", torch.float32, seeds)
                lifted = fs.lift(
                    scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, scene.Ks, scene.width,
                    scene.height, seeds["features"], backend="cuda",
                )  # fmt: skip
            found.append([*(grads[n] for n in LEAVES), *lifted, out.rgb, out.features])
    finally:
        torch.use_deterministic_algorithms(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_deterministic_sums_are_right(make_scene):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with stand_in(ShimLauncher()):
            check(make_scene(100, channels=40), "cuda")
    finally:
        torch.use_deterministic_algorithms(before)


def test_lists_that_prove_too_short_are_made_anew(make_scene):
    """The buffers are sized by the last call; a call with far more pairs than it finds the same images."""
    scene = make_scene(300, channels=20)
    with stand_in(ShimLauncher()) as launcher:
        expected = render(scene, "cuda")
        step, _cuda_frame._STEP = _cuda_frame._STEP, 8
        counts = []
        try:
            for known in ((0, 300), (10**6, 0), (0, 0)):  # pairs and splats
                for key in _cuda_frame._found_lately:
                    _cuda_frame._found_lately[key] = known
                launcher.launched.clear()
                again = render(scene, "cuda")
                counts.append([launcher.launched.count(n) for n in ("make_splats", "emit_pairs", "count_spans")])
                for name in ("rgb", "features", "alpha", "depth"):
                    assert torch.equal(getattr(again, name), getattr(expected, name)), name
        finally:
            _cuda_frame._STEP = step
    assert counts == [[1, 2, 1], [2, 2, 0], [2, 3, 1]]


def test_views_that_see_more_and_less_are_not_drawn_twice(make_scene):
    """What is expected of a call is the most of the last ones, and is forgotten in time."""
    few, many = make_scene(20), make_scene(300)
    step, _cuda_frame._STEP = _cuda_frame._STEP, 8
    try:
        with stand_in(ShimLauncher()) as launcher:
            for scene in (few, many):
                render(scene, "cuda")
            launcher.launched.clear()
            for scene in (few, many, few, few, many):
                render(scene, "cuda")
    finally:
        _cuda_frame._STEP = step
    assert launcher.launched.count("emit_pairs") == 5
    expected = 6400
    for _ in range(180):
        expected = _cuda_frame.most_lately(expected, 100)
    assert 3100 < expected < 3300
    assert _cuda_frame.most_lately(expected, 5000) == 5000


def test_many_tiles_need_wide_keys(make_scene):
    """More than 65536 tiles: their numbers are sorted as 32-bit integers, in three passes."""
    scene = make_scene(30, channels=2, width=16 * 660, height=16 * 100, size=0.02)
    geometry = (scene.means, scene.quats, scene.scales, scene.opacities)
    inputs = check_inputs(*geometry, None, scene.viewmats, scene.Ks, scene.width, scene.height)
    with stand_in(ShimLauncher()):
        front = _cuda_frame.make_frame(inputs, _cuda_forward.empty_meta(inputs), None)
        front.settle()
        frame = front.frame
    assert frame.all_tiles > 2**16
    offsets = frame.slab.tensor("offsets", frame.all_tiles + 1, torch.int32)
    counts = offsets.long().diff()
    assert int(counts.sum()) == frame.pairs > 30
    tile = int(counts.argmax())
    ranks = frame.slab.tensor("list", frame.pairs, torch.int32)[offsets[tile] : offsets[tile + 1]].long()
    ids = frame.splats.view(torch.int32)[ranks, 15].long()
    depths = (scene.means @ scene.viewmats[0, 2, :3] + scene.viewmats[0, 2, 3])[ids]
    assert bool((depths.diff() >= -1e-5).all())


def test_gradients_through_opaque_pixels_need_a_limit(make_scene):
    scene = make_scene(20)
    settings = RasterSettings(alpha_max=1.0, transmittance_min=-1.0)
    scene.means.requires_grad_()
    with stand_in(ShimLauncher()):
        out = render(scene, "cuda", settings=settings)
        with pytest.raises(FeaturesplatError, match="alpha_max below 1"):
            out.rgb.sum().backward()


def test_wrong_devices_and_dtypes_are_told(make_scene):
    scene = make_scene(5)
    with pytest.raises(FeaturesplatError, match="float32") as caught, stand_in(ShimLauncher()):
        render(scene.to(torch.float64), "cuda")
    assert "reference" in caught.value.hint
    meta = replace(scene, means=scene.means.to("meta"))
    with pytest.raises(FeaturesplatError, match="on meta"), stand_in(ShimLauncher()):
        render(meta, "cuda")


def test_running_out_of_memory_names_the_buffer(make_scene, monkeypatch):
    scene = make_scene(20, channels=20)
    real = torch.empty

    def full(*shape, **options):
        if shape[0] == (1, scene.height, scene.width, 20):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*shape, **options)

    with stand_in(ShimLauncher()):
        monkeypatch.setattr(_cuda_frame.torch, "empty", full)
        with pytest.raises(FeaturesplatError, match="out of memory on cpu: 0 MiB for the feature image") as caught:
            render(scene, "cuda")
    assert "smaller images" in caught.value.hint


def test_combinations_are_shapes_that_fit():
    for arch in (75, 80, 86, 89, 90, 120):
        limit = 1024 * _cuda_options.SHARED_LIMITS[arch]
        for file, c in _cuda_options.combinations(arch):
            if file == "backward.cu":
                assert _cuda_options.backward_shared_bytes(c) <= limit
            if file == "lift.cu":
                assert _cuda_options.lift_shared_bytes(c["TILES"], c["BATCH"]) <= limit
            if file == "lift_rows.cu":
                assert _cuda_options.rows_shared_bytes(c["TILES"], c["BATCH"]) <= limit


@pytest.mark.parametrize("channels", [3, 40, 70])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gaussians_with_sick_features_are_left_out(make_scene, channels, value):
    """More than 64 channels are checked where they are used only, and then everything is blended once more."""
    scene = make_scene(80, channels=channels, cameras=2)
    sick = torch.zeros(80, dtype=torch.bool)
    sick[[3, 40, 41]] = True
    bad = replace(scene, features=scene.features.clone())
    bad.features[sick, -1] = value
    per_gaussian = ("means", "quats", "scales", "opacities", "colors", "features")
    without = replace(scene, **{n: getattr(scene, n)[~sick] for n in per_gaussian})
    seeds = seeds_for(render(without, "reference"), torch.ones(2, scene.height, scene.width))
    with stand_in(ShimLauncher()):
        out, grads = run(bad, "cuda", "cpu", torch.float32, seeds)
        true, true_grads = run(without, "cuda", "cpu", torch.float32, seeds)
    for image in ("rgb", "features", "alpha", "depth"):
        torch.testing.assert_close(getattr(out, image), getattr(true, image), rtol=1e-6, atol=1e-6)
    assert (out.meta.radii[:, sick] == 0).all()
    for name in per_gaussian:
        assert (grads[name][sick] == 0).all(), name
        torch.testing.assert_close(grads[name][~sick], true_grads[name], rtol=1e-4, atol=1e-4)
