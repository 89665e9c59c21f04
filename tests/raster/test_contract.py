"""Every backend, in float32, against the float64 reference: images, by-products and every gradient.

Single precision may decide the other way where a pixel sits within rounding of a threshold (alpha near
alpha_min, transmittance near the stop, sigma near the cut, two depths nearly equal). `dense_truth.dense`
measures how near each pixel is; those within the band are counted (at most 3 %) and left out, all others must
agree tightly. The reference itself in float32 is one of the backends: what it cannot reach, no other need.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import GRADIENT, LEAVES, check, clear_pixels, close, device_of, render, run, seeds_for

import featuresplat as fs
from featuresplat.raster import RasterSettings


@pytest.mark.parametrize("channels", [0, 1, 3, 7, 32, 129, 512, 513, 1024])
def test_channels(make_scene, backend, channels):
    check(make_scene(300 if channels < 500 else 120, channels=channels), backend)


@pytest.mark.parametrize("cameras", [1, 3])
@pytest.mark.parametrize("gaussians", [0, 1, 17, 300])
def test_counts(make_scene, backend, gaussians, cameras):
    # The depth of a single Gaussian is its z whatever its weights: gradients through it are rounding alone.
    loss = ("rgb", "features", "alpha") if gaussians == 1 else ("rgb", "features", "alpha", "depth")
    check(make_scene(gaussians, channels=5, cameras=cameras, seed=gaussians), backend, loss=loss)


@pytest.mark.parametrize("size", [(1, 1), (17, 1), (2, 35), (16, 16), (64, 48)], ids=str)
def test_image_sizes(make_scene, backend, size):
    # Few enough for the background to show: behind an opaque pixel its gradient 1 - alpha is rounding alone.
    count = min(60, 6 * size[0] * size[1])
    check(make_scene(count, channels=9, width=size[0], height=size[1], size=0.2), backend)


def test_deep_tiles(make_scene, backend):
    """More Gaussians in a tile than any block holds, and pixels that stop at different depths."""
    scene = make_scene(1500, channels=4, width=24, height=20, size=0.2)
    check(replace(scene, means=0.6 * scene.means), backend)


def test_faint_deep_tiles(make_scene, backend):
    """The same with faint Gaussians, so that nearly all are blended."""
    scene = make_scene(1500, channels=4, width=24, height=20, size=0.05)
    check(replace(scene, opacities=0.02 * scene.opacities + 0.004), backend)


@pytest.mark.parametrize("colors", [True, False])
@pytest.mark.parametrize("features", [True, False])
def test_absent_inputs(make_scene, backend, colors, features):
    options = ({} if colors else {"colors": None}) | ({} if features else {"features": None})
    out = check(make_scene(40), backend, **options)
    assert (out.rgb is None) == (not colors)
    assert (out.features is None) == (not features)


def test_no_background(make_scene, backend):
    check(make_scene(40), backend, backgrounds=None)


@pytest.mark.parametrize("mode", ["full", "rgb", "none"])
@pytest.mark.parametrize("channels", [3, 40])
def test_geometry_grad(make_scene, backend, mode, channels):
    check(make_scene(80, channels=channels, cameras=2), backend, geometry_grad=mode)


@pytest.mark.parametrize("mode", ["full", "rgb", "none"])
def test_absgrad(make_scene, backend, mode):
    check(make_scene(120, channels=6, cameras=3), backend, absgrad=True, geometry_grad=mode)


@pytest.mark.parametrize(
    "changes",
    [
        {"antialiased": True},
        {"antialiased": True, "eps2d": 0.05},
        {"eps2d": 1.0},
        {"extent": 2.0},
        {"alpha_max": 0.5},
        {"alpha_min": 0.1},
        {"transmittance_min": 0.05},
        {"near": 2.7, "far": 3.4},
        {"alpha_min": 1e-6, "extent": 5.0, "transmittance_min": 1e-7},
    ],
    ids=str,
)
def test_settings(make_scene, backend, changes):
    check(make_scene(150, channels=5, cameras=2), backend, settings=RasterSettings(**changes))


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4])
def test_spherical_harmonics(make_scene, backend, degree):
    check(make_scene(80, cameras=2, sh_degree=degree), backend, sh_degree=degree)


def test_spherical_harmonics_below_the_stored_degree(make_scene, backend):
    check(make_scene(60, cameras=2, sh_degree=3), backend, sh_degree=1)


@pytest.mark.parametrize("mode", ["rgb", "none"])
def test_spherical_harmonics_and_geometry(make_scene, backend, mode):
    check(make_scene(60, cameras=2, sh_degree=2), backend, sh_degree=2, geometry_grad=mode)


def test_colors_per_camera(make_scene, backend):
    scene = make_scene(60, cameras=3)
    scene = replace(scene, colors=torch.rand(3, 60, 3, generator=torch.Generator().manual_seed(2)))
    check(scene, backend)


def test_needles_and_discs(make_scene, backend):
    scene = make_scene(60, channels=3, cameras=2)
    stretch = torch.tensor([8.0, 0.05, 1.0]).roll(1) * torch.ones(60, 1)
    check(replace(scene, scales=scene.scales * stretch), backend)


def test_off_axis_gaussians(make_scene, backend):
    """Many beyond the border, where the ray slopes are clamped."""
    scene = make_scene(300, channels=3, cameras=2, width=30, height=24, size=0.5)
    check(replace(scene, means=2.5 * scene.means), backend)


@pytest.mark.parametrize("only", ["rgb", "features", "alpha", "depth"])
def test_one_image_in_the_loss(make_scene, backend, only):
    """Gradients of the images that the loss does not use arrive as None inside."""
    scene = make_scene(60, channels=10)
    clear = clear_pixels(scene)
    seeds = {only: seeds_for(render(scene, "reference"), clear)[only]}
    _, true = run(scene, "reference", "cpu", torch.float64, seeds)
    _, grads = run(scene, backend, device_of(backend), torch.float32, seeds)
    for name, expected in true.items():
        close(f"gradient of {name}", grads[name], expected, GRADIENT)


@pytest.mark.parametrize("leaf", LEAVES)
def test_one_leaf(make_scene, backend, leaf):
    """One input asks for a gradient, the others do not."""
    scene = make_scene(40, channels=5)
    seeds = seeds_for(render(scene, "reference"), clear_pixels(scene))
    _, true = run(scene, "reference", "cpu", torch.float64, seeds, leaves=(leaf,))
    _, grads = run(scene, backend, device_of(backend), torch.float32, seeds, leaves=(leaf,))
    close(f"gradient of {leaf}", grads[leaf], true[leaf], GRADIENT)


def strided(t: torch.Tensor) -> torch.Tensor:
    """The same values with a gap after every element and the first axis last in memory."""
    t = t.transpose(0, -1).contiguous().transpose(0, -1)
    return torch.stack([t, torch.full_like(t, torch.nan)], dim=-1)[..., 0]


def test_strided_inputs(make_scene, backend):
    scene = make_scene(60, channels=7, cameras=2)
    device = device_of(backend)
    seeds = seeds_for(render(scene, "reference"), clear_pixels(scene))
    _, true = run(scene, "reference", "cpu", torch.float64, seeds)
    plain = {n: getattr(scene, n).to(device).requires_grad_() for n in LEAVES}
    odd = {n: strided(t) for n, t in plain.items()}
    assert not any(t.is_contiguous() for t in odd.values())
    out = render(scene.to(device), backend, odd)
    # Incoming gradients with strides of their own.
    loss = sum((getattr(out, n).permute(3, 0, 2, 1) * s.to(device).permute(3, 0, 2, 1)).sum() for n, s in seeds.items())
    grads = torch.autograd.grad(loss, list(plain.values()))
    for (name, expected), got in zip(true.items(), grads, strict=True):
        close(f"gradient of {name}", got, expected, GRADIENT)


def test_broadcast_inputs(make_scene, backend):
    """Expanded tensors (stride 0), one background for all cameras, and an expanded incoming gradient."""
    scene = make_scene(50, channels=4, cameras=2)
    device, results = device_of(backend), []
    for name, where, dtype in (("reference", "cpu", torch.float64), (backend, device, torch.float32)):
        moved = scene.to(where, dtype)
        one = torch.full((1, 3), 0.1, device=where, dtype=dtype, requires_grad=True)
        back = torch.tensor([0.2, 0.4, 0.6], device=where, dtype=dtype, requires_grad=True)
        out = render(moved, name, {"scales": one.expand(50, 3)}, backgrounds=back)
        results.append((out.rgb, *torch.autograd.grad(out.rgb.sum() + out.features.mean(), (one, back))))
    for got, true, tolerance in zip(results[1], results[0], (1e-2, 1e-3, 1e-3), strict=True):
        close("broadcast", got, true.detach(), tolerance)  # loose: pixels in the band are not left out


def test_numpy_in_numpy_out(make_scene, backend):
    scene = make_scene(40, cameras=2)
    if device_of(backend) != "cpu":
        pytest.skip("NumPy arrays live on the CPU")
    arrays = {k: v.numpy() for k, v in scene.tensors().items()}
    arrays["means"] = arrays["means"][::-1].copy()[::-1]  # negative strides
    view = (scene.width, scene.height)
    out = fs.rasterize(
        *(arrays[n] for n in ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")), *view,
        features=arrays["features"], backgrounds=arrays["backgrounds"], backend=backend,
    )  # fmt: skip
    expected = render(scene, backend)
    for name in ("rgb", "features", "alpha", "depth"):
        assert isinstance(getattr(out, name), np.ndarray)
        np.testing.assert_array_equal(getattr(out, name), getattr(expected, name).numpy())
    assert isinstance(out.meta.radii, np.ndarray)
    maps = np.ones((2, scene.height, scene.width, 1), np.float32)
    splats = [arrays[n] for n in ("means", "quats", "scales", "opacities", "viewmats", "Ks")]
    sums, weights = fs.lift(*splats, *view, maps, backend=backend)
    assert isinstance(sums, np.ndarray)
    np.testing.assert_allclose(sums[:, 0], weights, rtol=1e-5)


def test_twice_the_same(make_scene, backend):
    scene = make_scene(300, channels=20, cameras=2)
    if device_of(backend) != "cpu":
        pytest.skip("bit-identical runs are promised on the CPU")
    seeds = seeds_for(render(scene, "reference"), torch.ones(2, scene.height, scene.width))
    (a, grads_a), (b, grads_b) = (run(scene, backend, "cpu", torch.float32, seeds) for _ in range(2))
    assert all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("rgb", "features", "alpha", "depth"))
    assert all(torch.equal(grads_a[n], grads_b[n]) for n in LEAVES)


def test_backward_twice(make_scene, backend):
    """``retain_graph`` and a second loss on the same render."""
    scene = make_scene(40).to(device_of(backend))
    means = scene.means.clone().requires_grad_()
    out = render(scene, backend, {"means": means})
    first = torch.autograd.grad(out.rgb.sum(), means, retain_graph=True)[0]
    torch.autograd.grad(out.alpha.sum(), means, retain_graph=True)
    again = torch.autograd.grad(out.rgb.sum(), means)[0]
    # On a GPU sums are added up in the order in which they arrive.
    slack = 0.0 if device_of(backend) == "cpu" else GRADIENT * float(first.abs().max())
    torch.testing.assert_close(again, first, rtol=0, atol=slack)
