"""The reference backend against arithmetic done by hand, a dense loop, and finite differences in float64."""

from __future__ import annotations

import math

import pytest
import torch
from dense_truth import dense

import featuresplat as fs
from featuresplat.raster import RasterSettings, reference

# One camera at the origin looking along +z: f = 10, 5x5 pixels, the axis in the middle of pixel (2, 2).
F, SIZE = 10.0, 5
RED, GREEN, BLUE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def splat(*gaussians, **options):
    """Render Gaussians given as (mean, scale, opacity, colour) without rotation, in float64."""
    columns = [torch.tensor(c, dtype=torch.float64) for c in zip(*gaussians, strict=True)]
    means, scales, opacities, colors = columns
    options.setdefault("backend", "reference")
    quats = options.pop("quats", torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(len(means), 1))
    return fs.rasterize(means, quats, scales, opacities, colors, *camera(), SIZE, SIZE, **options)


def camera():
    K = torch.tensor([[[F, 0, SIZE / 2], [0, F, SIZE / 2], [0, 0, 1]]], dtype=torch.float64)
    return torch.eye(4, dtype=torch.float64)[None], K


def ball(z, opacity, color, scale=0.2, x=0.0, y=0.0):
    return ((x, y, z), (scale,) * 3, opacity, color)


def close(tensor, expected, tolerance=1e-12):
    torch.testing.assert_close(tensor, torch.as_tensor(expected, dtype=tensor.dtype), rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------ by hand


def test_one_gaussian():
    # At z = 2 the image scale is f / z = 5 px per unit: variance (5 * 0.2)^2 + 0.3 = 1.3 px^2.
    # Pixel (2, 2) has its centre at 2.5 = the projected mean: alpha = opacity = 0.6.
    # Its right neighbour is 1 px off: alpha = 0.6 exp(-0.5 / 1.3) = 0.6 * 0.680712 = 0.408427.
    # A diagonal neighbour is sqrt(2) px off: 0.6 exp(-1 / 1.3) = 0.6 * 0.463369 = 0.278021.
    out = splat(ball(2.0, 0.6, (1.0, 0.5, 0.0)))
    close(out.rgb[0, 2, 2], (0.6, 0.3, 0.0))
    close(out.alpha[0, 2, 2], (0.6,))
    close(out.alpha[0, 2, 3], (0.6 * math.exp(-0.5 / 1.3),))
    close(out.alpha[0, 2, 3], (0.408427,), 1e-6)
    close(out.alpha[0, 3, 3], (0.278021,), 1e-6)
    close(out.depth[0, 2, 2], (2.0,))
    close(out.meta.means2d[0, 0], (2.5, 2.5))
    close(out.meta.conics[0, 0], (1 / 1.3, 0.0, 1 / 1.3))
    close(out.meta.depths[0], (2.0,))
    # alpha falls to 1/255 at sigma = ln(0.6 * 255) = 5.0304 < 3.33^2 / 2; sqrt(2 * 5.0304 * 1.3) = 3.617 px.
    assert out.meta.radii[0, 0].tolist() == [4, 4]


def test_rows_are_y_and_columns_are_x():
    # x = 0.2 at z = 2 moves 1 px to the right, y = 0.4 moves 2 px down: the brightest is row 4, column 3.
    out = splat(ball(2.0, 0.6, RED, x=0.2, y=0.4))
    close(out.alpha[0, 4, 3], (0.6,), 1e-4)  # not exactly: off axis the footprint's slope enters, not its centre
    assert out.alpha[0, ..., 0].argmax().item() == 4 * SIZE + 3


def test_two_gaussians_blend_front_to_back_over_the_background():
    # Given back first. Front: 0.6 red; what is left is 0.4; back: 0.4 * 0.5 = 0.2 green; left: 0.2 of the
    # blue background. Features are over zero. Depth: (0.6 * 2 + 0.2 * 4) / 0.8 = 2.5.
    features = torch.tensor([[10.0, 0.0], [0.0, 100.0]], dtype=torch.float64)
    backgrounds = torch.tensor(BLUE, dtype=torch.float64)
    out = splat(ball(4.0, 0.5, GREEN), ball(2.0, 0.6, RED), features=features, backgrounds=backgrounds)
    close(out.rgb[0, 2, 2], (0.6, 0.2, 0.2))
    close(out.features[0, 2, 2], (2.0, 60.0))
    close(out.alpha[0, 2, 2], (0.8,))
    close(out.depth[0, 2, 2], (2.5,))


def test_equal_depths_blend_by_index():
    close(splat(ball(2.0, 0.6, RED), ball(2.0, 0.5, GREEN)).rgb[0, 2, 2], (0.6, 0.2, 0.0))
    close(splat(ball(2.0, 0.5, GREEN), ball(2.0, 0.6, RED)).rgb[0, 2, 2], (0.3, 0.5, 0.0))


def test_alpha_is_clamped_and_the_pixel_stops_before_the_last_straw():
    # Opacity 1 is clamped to 0.999, which leaves 1e-3. A second would leave 1e-6 <= 1e-4: it is not drawn.
    opaque = [ball(2.0, 1.0, RED), ball(3.0, 1.0, GREEN), ball(4.0, 1.0, BLUE)]
    out = splat(*opaque)
    close(out.rgb[0, 2, 2], (0.999, 0.0, 0.0))
    close(out.alpha[0, 2, 2], (0.999,))
    # With 1e-7 the second is drawn (1e-6 stays), and the third would leave 1e-9.
    out = splat(*opaque, settings=RasterSettings(transmittance_min=1e-7))
    close(out.rgb[0, 2, 2], (0.999, 0.000999, 0.0))
    # What stopped stays stopped: a faint Gaussian behind the one that stopped the pixel is not drawn either.
    out = splat(opaque[0], opaque[1], ball(5.0, 0.1, BLUE))
    close(out.rgb[0, 2, 2], (0.999, 0.0, 0.0))
    close(splat(opaque[0], settings=RasterSettings(alpha_max=0.99)).alpha[0, 2, 2], (0.99,))


def test_the_stop_is_at_or_below_the_limit():
    # alpha 0.5 twice leaves exactly 0.25: with the limit 0.25 the second is not drawn, just below it is.
    pair = [ball(2.0, 0.5, RED), ball(3.0, 0.5, GREEN)]
    close(splat(*pair, settings=RasterSettings(transmittance_min=0.25)).rgb[0, 2, 2], (0.5, 0.0, 0.0))
    close(splat(*pair, settings=RasterSettings(transmittance_min=0.2499)).rgb[0, 2, 2], (0.5, 0.25, 0.0))


def test_faint_pairs_are_skipped():
    # 0.0039 < 1/255 = 0.0039216 is never drawn. 0.004 is drawn at its centre, but 1 px off it is
    # 0.004 * 0.68 < 1/255.
    assert splat(ball(2.0, 0.0039, RED)).alpha.max() == 0
    out = splat(ball(2.0, 0.004, RED))
    close(out.alpha[0, 2, 2], (0.004,))
    assert (out.alpha > 0).sum() == 1
    assert (out.depth > 0).sum() == 1  # elsewhere alpha is 0 and depth is 0, not NaN


def test_the_extent_cuts():
    # Variance 1.3: 1 px off is sigma 0.385, sqrt(2) px off is 0.769. extent 1 cuts at 0.5: a plus.
    out = splat(ball(2.0, 0.6, RED), settings=RasterSettings(extent=1.0))
    assert (out.alpha[0, ..., 0] > 0).int().tolist() == [
        [0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0],
    ]  # fmt: skip


def test_antialiasing_keeps_the_energy():
    # Sharp variance 1, blurred 1.3: opacity times sqrt(1^2 / 1.3^2) = 1 / 1.3.
    out = splat(ball(2.0, 0.6, RED), settings=RasterSettings(antialiased=True))
    close(out.alpha[0, 2, 2], (0.6 / 1.3,))


def test_rotation_turns_the_footprint():
    # Scales (0.4, 0.2, 0.2) turned by 90 degrees about z: 2 px along y, 1 px along x, variances 4.3 and 1.3.
    h = math.sqrt(0.5)
    quats = torch.tensor([[h, 0, 0, h]], dtype=torch.float64) * 3  # normalised on use
    out = splat(((0.0, 0.0, 2.0), (0.4, 0.2, 0.2), 0.6, RED), quats=quats)
    close(out.alpha[0, 2, 3], (0.6 * math.exp(-0.5 / 1.3),))
    close(out.alpha[0, 3, 2], (0.6 * math.exp(-0.5 / 4.3),))
    close(out.meta.conics[0, 0], (1 / 1.3, 0, 1 / 4.3))


def test_near_and_far_planes():
    s = RasterSettings(near=2.0, far=4.0)
    for z, drawn in ((1.99, False), (2.0, True), (4.0, True), (4.01, False), (-2.0, False)):
        out = splat(ball(z, 0.6, RED), settings=s)
        assert (out.alpha.max() > 0) == drawn
        assert (out.meta.radii > 0).all() == drawn


def test_spherical_harmonics_look_from_the_camera():
    # Straight ahead the direction is (0, 0, 1): basis 2 is 0.4886 z, the others of degree 1 vanish.
    # Red 0.5 + 0.4886 * 0.5 = 0.7443; green 0.5 + 0.2821; blue 0.5 - 4.886 clamps to 0. Times 0.6.
    sh = torch.zeros(1, 4, 3, dtype=torch.float64)
    sh[0, 2, 0], sh[0, 0, 1], sh[0, 2, 2] = 0.5, 1.0, -10.0
    mean, scale, opacity = torch.tensor([[0, 0, 2.0]]), torch.full((1, 3), 0.2), torch.tensor([0.6])
    quat = torch.tensor([[1.0, 0, 0, 0]])
    args = [t.double() for t in (mean, quat, scale, opacity)]
    out = fs.rasterize(*args, sh, *camera(), SIZE, SIZE, sh_degree=1)
    close(out.rgb[0, 2, 2], (0.6 * 0.744301, 0.6 * 0.782095, 0.0), 1e-6)
    out = fs.rasterize(*args, sh, *camera(), SIZE, SIZE, sh_degree=0)
    close(out.rgb[0, 2, 2], (0.3, 0.6 * 0.782095, 0.3), 1e-6)


def test_gradients_by_hand():
    # rgb = a1 c1 + (1 - a1) a2 c2 at the centre, a = opacity: d/dc1 = 0.6, d/dc2 = 0.2,
    # d/do1 = c1 - a2 c2, d/do2 = 0.4 c2 (loss: the sum of the channels, c1 = 1, c2 = 2).
    means = torch.tensor([[0, 0, 2.0], [0, 0, 4.0]], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(2, 1)
    opacities = torch.tensor([0.6, 0.5], dtype=torch.float64, requires_grad=True)
    colors = torch.tensor([[1.0, 0, 0], [0, 2.0, 0]], dtype=torch.float64, requires_grad=True)
    out = fs.rasterize(means, quats, torch.full_like(means, 0.2), opacities, colors, *camera(), SIZE, SIZE)
    out.rgb[0, 2, 2].sum().backward()
    close(colors.grad, [[0.6] * 3, [0.2] * 3])
    close(opacities.grad, (1.0 - 0.5 * 2.0, 0.4 * 2.0))


def test_lift_and_weights_by_hand():
    # At the centre the weights are 0.6 and 0.2 (see above); everywhere else the map is zero.
    means = torch.tensor([[0, 0, 4.0], [0, 0, 2.0]], dtype=torch.float64)
    quats = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(2, 1)
    splats = (means, quats, torch.full_like(means, 0.2), torch.tensor([0.5, 0.6], dtype=torch.float64))
    maps = torch.zeros(1, SIZE, SIZE, 2, dtype=torch.float64)
    maps[0, 2, 2] = torch.tensor([1.0, 10.0])
    sums, weights = fs.lift(*splats, *camera(), SIZE, SIZE, maps)
    close(sums, [[0.2, 2.0], [0.6, 6.0]])
    squared, _ = fs.lift(*splats, *camera(), SIZE, SIZE, maps, power=2)
    close(squared, [[0.04, 0.4], [0.36, 3.6]])
    ids, best = fs.topk(*splats, *camera(), SIZE, SIZE, 3)
    assert ids[0, 2, 2].tolist() == [1, 0, -1]
    close(best[0, 2, 2], (0.6, 0.2, 0.0))
    [matrix] = fs.weight_matrix(*splats, *camera(), SIZE, SIZE)
    row = slice(*matrix.indptr[12:14].tolist())
    assert matrix.indices[row].tolist() == [1, 0]
    close(matrix.weights[row], (0.6, 0.2))
    assert matrix.indptr[-1] == len(matrix.weights) == len(matrix.indices)
    shown = fs.contributions(*splats, *camera(), SIZE, SIZE)
    close(shown.sums[0], weights)
    close(shown.maxima[0], (0.2, 0.6))
    assert shown.pixels[0].tolist() == [(matrix.indices == 0).sum(), (matrix.indices == 1).sum()]


# ------------------------------------------------------------------------------------------ dense loop


@pytest.mark.parametrize("chunk", [3, 512])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"antialiased": True},
        {"eps2d": 0.1, "extent": 2.0, "alpha_max": 0.8},
        {"alpha_min": 0.05, "near": 2.8},
    ],
    ids=str,
)
def test_agrees_with_a_dense_loop(make_scene, monkeypatch, chunk, settings):
    monkeypatch.setattr(reference, "CHUNK", chunk)
    settings = RasterSettings(**settings)
    scene = make_scene(150, channels=2, cameras=2, size=0.3).to(torch.float64)
    splats = (scene.means, scene.quats, scene.scales, scene.opacities)
    view = (scene.viewmats, scene.Ks, scene.width, scene.height)
    out = fs.rasterize(
        *splats,
        scene.colors,
        *view,
        features=scene.features,
        backgrounds=scene.backgrounds,
        settings=settings,
    )
    matrices = fs.weight_matrix(*splats, *view, settings=settings)
    for camera_index in range(2):
        true = dense(scene, camera_index, settings)
        assert true.counted.sum(0).max() > 10
        for name in ("rgb", "features", "alpha", "depth"):
            close(getattr(out, name)[camera_index], getattr(true, name), 1e-9)
        m = matrices[camera_index]
        pixels = torch.repeat_interleave(torch.arange(scene.width * scene.height), m.indptr.diff())
        weights = torch.zeros_like(true.weights).flatten(1)
        weights[m.indices, pixels] = m.weights
        close(weights, true.weights.flatten(1), 1e-9)
        assert len(m.weights) == true.counted.sum()


def test_a_needle_keeps_its_determinant_in_single_precision():
    # 1000 px long, 0.5 px thin, at 45 degrees: xx yy - xy^2 in float32 would lose every digit.
    h = math.cos(math.pi / 8), math.sin(math.pi / 8)
    quats = torch.tensor([[h[0], 0, 0, h[1]]])
    args = (torch.tensor([[0, 0, 1.0]]), quats, torch.tensor([[100.0, 0.05, 0.05]]), torch.tensor([0.9]))
    conics = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype) for t in (*args, torch.ones(1, 3), *camera())]
        conics.append(fs.rasterize(*inputs, SIZE, SIZE, backend="reference").meta.conics.double())
    torch.testing.assert_close(conics[0], conics[1], rtol=1e-4, atol=0)


# ------------------------------------------------------------------------------------------ gradients

SMOOTH = RasterSettings(alpha_min=1e-14, transmittance_min=1e-14, extent=8.0)
"""No threshold within reach of finite differences."""


@pytest.mark.parametrize("chunk", [2, 512])
@pytest.mark.parametrize("sh_degree", [None, 2])
@pytest.mark.parametrize("antialiased", [False, True])
def test_gradcheck(make_scene, monkeypatch, chunk, sh_degree, antialiased):
    monkeypatch.setattr(reference, "CHUNK", chunk)
    scene = make_scene(5, channels=2, cameras=2, width=7, height=6, sh_degree=sh_degree, size=0.4, seed=3)
    scene = scene.to(torch.float64)
    names = ["means", "quats", "scales", "opacities", "colors", "features", "viewmats", "backgrounds"]
    inputs = [getattr(scene, n).clone() for n in names]
    inputs[3] = 0.2 + 0.6 * inputs[3]  # away from alpha_max
    for t in inputs:
        t.requires_grad_()
    settings = RasterSettings(**{**vars(SMOOTH), "antialiased": antialiased})

    def render(means, quats, scales, opacities, colors, features, viewmats, backgrounds):
        out = fs.rasterize(
            means, quats, scales, opacities, colors, viewmats, scene.Ks, scene.width, scene.height,
            features=features, backgrounds=backgrounds, sh_degree=sh_degree, settings=settings,
        )  # fmt: skip
        return out.rgb, out.features, out.alpha, out.depth

    assert torch.autograd.gradcheck(render, inputs, eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)


def test_gradcheck_entry_by_entry(make_scene):
    """The same without random projections: every derivative of every output, on a very small image."""
    scene = make_scene(2, channels=1, width=3, height=2, size=0.4, seed=3).to(torch.float64)
    inputs = [
        t.clone().requires_grad_()
        for t in (
            scene.means,
            scene.quats,
            scene.scales,
            0.7 * scene.opacities,
            scene.features,
            scene.viewmats,
        )
    ]

    def render(means, quats, scales, opacities, features, viewmats):
        splats = (means, quats, scales, opacities, scene.colors)
        out = fs.rasterize(*splats, viewmats, scene.Ks, 3, 2, features=features, settings=SMOOTH)
        return out.rgb, out.features, out.alpha, out.depth

    assert torch.autograd.gradcheck(render, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_gradcheck_of_colors_per_camera(make_scene):
    scene = make_scene(4, cameras=2, width=3, height=2, size=0.4).to(torch.float64)
    colors = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)

    def render(colors):
        splats = (scene.means, scene.quats, scene.scales, scene.opacities)
        return fs.rasterize(*splats, colors, scene.viewmats, scene.Ks, scene.width, scene.height).rgb

    assert torch.autograd.gradcheck(render, (colors,))


def gradients(scene, mode, pick, names=("means", "opacities", "colors", "features", "viewmats")):
    leaves = {k: v.clone().requires_grad_() for k, v in scene.tensors().items()}
    out = fs.rasterize(
        leaves["means"], leaves["quats"], leaves["scales"], leaves["opacities"], leaves["colors"],
        leaves["viewmats"], leaves["Ks"], scene.width, scene.height,
        features=leaves["features"], backgrounds=leaves["backgrounds"], geometry_grad=mode, absgrad=True,
    )  # fmt: skip
    pick(out).backward()
    found = {n: torch.zeros_like(leaves[n]) if leaves[n].grad is None else leaves[n].grad for n in names}
    return found, out.meta


def test_what_moves_geometry(make_scene):
    scene = make_scene(30, cameras=2).to(torch.float64)

    def both(out):
        return (out.rgb**2).sum() + (out.features**2).sum() + out.depth.sum()

    def colors_only(out):
        return (out.rgb**2).sum() + out.depth.sum()

    full, _ = gradients(scene, "full", both)
    only, meta_only = gradients(scene, "full", colors_only)
    rgb, meta_rgb = gradients(scene, "rgb", both)
    none, meta_none = gradients(scene, "none", both)
    for name in ("means", "opacities", "viewmats"):
        torch.testing.assert_close(rgb[name], only[name])  # the features pull at nothing
        assert (full[name] - rgb[name]).abs().max() > 1e-3
        assert (none[name] == 0).all()
    for name in ("colors", "features"):
        torch.testing.assert_close(rgb[name], full[name])
        torch.testing.assert_close(none[name], full[name])
    torch.testing.assert_close(meta_rgb.means2d_absgrad, meta_only.means2d_absgrad)
    assert (meta_none.means2d_grad == 0).all()


def test_absgrad_sums_absolute_values_over_pixels(make_scene):
    scene = make_scene(12, cameras=2, width=6, height=5, size=0.4).to(torch.float64)
    seeds = torch.randn(2, 5, 6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, whole = gradients(scene, "full", lambda out: (out.rgb * seeds).sum())
    total, absolute = torch.zeros_like(whole.means2d), torch.zeros_like(whole.means2d)
    for y in range(5):
        for x in range(6):
            only = torch.zeros_like(seeds)
            only[:, y, x] = seeds[:, y, x]
            _, meta = gradients(scene, "full", lambda out, only=only: (out.rgb * only).sum())
            total, absolute = total + meta.means2d_grad, absolute + meta.means2d_grad.abs()
    assert absolute.max() > 0.1
    torch.testing.assert_close(whole.means2d_grad, total)
    torch.testing.assert_close(whole.means2d_absgrad, absolute)


def test_means2d_grad_explains_a_sideways_shift(make_scene):
    # Shifting cx moves all projected centres alike: the sum of means2d_grad is the loss' slope along it.
    scene = make_scene(20).to(torch.float64)
    _, meta = gradients(scene, "full", lambda out: (out.rgb**2).sum())
    losses = []
    for step in (-1e-6, 1e-6):
        Ks = scene.Ks.clone()
        Ks[:, 0, 2] += step
        splats = (scene.means, scene.quats, scene.scales, scene.opacities, scene.colors)
        out = fs.rasterize(*splats, scene.viewmats, Ks, scene.width, scene.height, backgrounds=scene.backgrounds)
        losses.append((out.rgb**2).sum())
    torch.testing.assert_close(meta.means2d_grad[..., 0].sum(), (losses[1] - losses[0]) / 2e-6, rtol=1e-4, atol=0)
