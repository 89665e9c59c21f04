"""Sick input: no crash, no silent corruption; a skipped Gaussian or a clear error."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import device_of
from hypothesis import given, settings
from hypothesis import strategies as st

import featuresplat as fs
from featuresplat import FeaturesplatError, registry

BACKENDS = [n for n in registry.names("raster") if n != "gsplat"]
NAN, INF = math.nan, math.inf
ODD = [NAN, INF, -INF, 0.0, -0.0, -1.0, 1e-38, 1e-30, 1e-12, 1e-4, 1.0, 50.0, 1e6, 1e12, 1e25, 3e38]
"""Values that go anywhere; the healthy range is around 0.1 to 3."""

LEAVES = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats")

quick = settings(max_examples=60, deadline=None, derandomize=True)


def need(backend: str) -> str:
    module = registry.load("raster", backend)
    if reason := module.unavailable():
        pytest.skip(f"{backend}: {reason}")
    return device_of(backend)


def render(scene, backend, device, sh_degree=None, antialiased=False):
    """(output, gradients by name)."""
    leaves = {n: getattr(scene, n).to(device).requires_grad_() for n in LEAVES}
    out = fs.rasterize(
        *(leaves[n] for n in LEAVES[:5]), leaves["viewmats"], scene.Ks.to(device), scene.width, scene.height,
        features=leaves["features"], backgrounds=scene.backgrounds.to(device), sh_degree=sh_degree,
        absgrad=True, settings=fs.RasterSettings(antialiased=antialiased), backend=backend,
    )  # fmt: skip
    loss = (out.rgb**2).sum() + (out.features**2).sum() + out.depth.sum() + out.alpha.sum()
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return out, {n: g for n, g in zip(LEAVES, grads, strict=True) if g is not None}


def without_nan(out, grads):
    for name in ("rgb", "features", "alpha", "depth"):
        assert not torch.isnan(getattr(out, name)).any(), name
    assert ((out.alpha >= 0) & (out.alpha <= 1 + 1e-6)).all()
    assert (out.meta.radii >= 0).all()
    for name in ("means2d", "depths", "conics", "means2d_grad", "means2d_absgrad"):
        value = getattr(out.meta, name)
        drawn = (out.meta.radii > 0).all(-1)
        assert not torch.isnan(value[drawn]).any(), name
    for name, grad in grads.items():
        assert not torch.isnan(grad).any(), f"gradient of {name}"


changes = st.lists(
    st.tuples(
        st.sampled_from(["means", "quats", "scales", "opacities", "colors", "features"]),
        st.integers(0, 11),
        st.integers(0, 3),
        st.sampled_from(ODD),
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(changes=changes, sh=st.booleans(), antialiased=st.booleans())
def test_any_value_anywhere(make_scene, backend, changes, sh, antialiased):
    device = need(backend)
    scene = make_scene(12, channels=3, cameras=2, width=20, height=18, sh_degree=1 if sh else None, size=0.4)
    for name, row, column, value in changes:
        values = getattr(scene, name)[row].reshape(-1)
        # Finite colours of 1e38 overflow in any sum: that is arithmetic, not corruption.
        if name in ("colors", "features") and 1e6 < abs(value) < INF:
            value = 1e6
        values[column % len(values)] = value
        if name == "opacities":
            scene.opacities[row] = value
    without_nan(*render(scene, backend, device, 1 if sh else None, antialiased))


SPLAT = ("means", "quats", "scales", "opacities", "colors", "features")
SICK = [
    *((name, bad) for name in SPLAT for bad in (NAN, INF, -INF)),
    *((name, bad) for name in ("scales", "opacities") for bad in (0.0, -1.0)),
    ("opacities", 0.003),
    ("quats", "zero"),
    ("means", "behind"),
    ("means", "off screen"),
]


def make_sick(scene, row: int, column: int, kind) -> None:
    name, bad = kind
    R, t = scene.viewmats[0, :3, :3], scene.viewmats[0, :3, 3]
    if bad == "zero":
        scene.quats[row] = 0
    elif bad in ("behind", "off screen"):
        scene.means[row] = -R.T @ t + (-2 * R[2] if bad == "behind" else 90 * R[0] + R[2])
    elif name == "opacities":
        scene.opacities[row] = bad
    else:
        values = getattr(scene, name)[row]
        values[column % len(values)] = bad


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(
    sick=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 3), st.sampled_from(SICK)),
        min_size=1,
        max_size=5,
        unique_by=lambda s: s[0],
    ),
    antialiased=st.booleans(),
)
def test_the_sick_leave_the_healthy_alone(make_scene, backend, sick, antialiased):
    """Gaussians inserted anywhere between the healthy ones, each sick in one way."""
    device = need(backend)
    healthy = make_scene(12, channels=3, width=20, height=18, size=0.4)
    rows = [row for row, _, _ in sick]
    order = [*range(12)]
    for row in sorted(rows, reverse=True):
        order.insert(row, 0)  # a copy of the first, about to fall ill
    added = [i + n for n, i in enumerate(sorted(rows))]
    mixed = replace(healthy, **{n: getattr(healthy, n)[order].clone() for n in LEAVES[:6]})
    for at, (_, column, kind) in zip(added, sorted(sick, key=lambda s: s[0]), strict=True):
        make_sick(mixed, at, column, kind)
    kept = [i for i in range(len(order)) if i not in added]
    out, grads = render(mixed, backend, device, antialiased=antialiased)
    true, true_grads = render(healthy, backend, device, antialiased=antialiased)
    without_nan(out, grads)
    for name in ("rgb", "features", "alpha", "depth"):
        torch.testing.assert_close(getattr(out, name), getattr(true, name), rtol=0, atol=2e-6)
    assert (out.meta.radii[:, added] == 0).all()
    for name in LEAVES[:6]:
        assert (grads[name][added] == 0).all(), name
        scale = float(true_grads[name].abs().max())
        torch.testing.assert_close(grads[name][kept], true_grads[name], rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("backend", BACKENDS)
@quick
@given(
    entries=st.lists(
        st.tuples(st.sampled_from([(0, 0), (1, 1), (0, 2), (1, 2), (2, 2), (0, 1)]), st.sampled_from(ODD)),
        min_size=1, max_size=3,
    ),
    pose=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from(ODD)), max_size=2),
)  # fmt: skip
def test_degenerate_cameras(make_scene, backend, entries, pose):
    device = need(backend)
    scene = make_scene(12, channels=2, width=20, height=18, size=0.4)
    for (i, j), value in entries:
        scene.Ks[0, i, j] = value
    for i, j, value in pose:
        scene.viewmats[0, i, j] = value
    finite = torch.isfinite(scene.Ks).all() and torch.isfinite(scene.viewmats).all()
    if not finite:
        with pytest.raises(FeaturesplatError, match="a camera holds NaN or infinity"):
            render(scene, backend, device)
        return
    without_nan(*render(scene, backend, device))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["means", "quats", "scales", "opacities"])
def test_the_transpose_and_the_queries_skip_the_sick(make_scene, backend, name):
    device = need(backend)
    scene = make_scene(12, width=20, height=18, size=0.4)
    getattr(scene, name)[5] = NAN
    scene = scene.to(device)
    splats = (scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, scene.Ks, 20, 18)
    sums, weights = fs.lift(*splats, torch.ones(1, 18, 20, 2, device=device), backend=backend)
    assert torch.isfinite(sums).all()
    assert weights[5] == 0
    assert weights.max() > 0
    assert not (fs.topk(*splats, 4, backend=backend)[0] == 5).any()
    [matrix] = fs.weight_matrix(*splats, backend=backend)
    assert not (matrix.indices == 5).any()
    assert torch.isfinite(matrix.weights).all()
    shown = fs.contributions(*splats, backend=backend)
    assert (shown.sums[0, 5], shown.maxima[0, 5], shown.pixels[0, 5]) == (0, 0, 0)


# ------------------------------------------------------------------------------------------ check_inputs

WRONG = [
    ({"means": None}, "means: expected [N, 3], got None"),
    ({"means": torch.zeros(12, 2)}, "means: expected [any, 3], got (12, 2)"),
    ({"quats": torch.zeros(5, 4)}, "quats: expected [12, 4], got (5, 4)"),
    ({"quats": None}, "quats: is required, got None"),
    ({"scales": torch.zeros(12)}, "scales: expected [12, 3], got (12,)"),
    ({"opacities": torch.zeros(12, 1)}, "opacities: expected [12], got (12, 1)"),
    ({"opacities": torch.zeros(12).double()}, "opacities: is torch.float64 on cpu, means are torch.float32"),
    ({"opacities": torch.zeros(12).int()}, "opacities: expected float32 or float64, got torch.int32"),
    ({"opacities": [0.5] * 12}, "opacities: expected a torch tensor or a NumPy array, got list"),
    ({"colors": torch.zeros(12, 4)}, "colors: expected [12, 3] or [1, 12, 3], got (12, 4)"),
    ({"colors": torch.zeros(2, 12, 3)}, "colors: expected [12, 3] or [1, 12, 3], got (2, 12, 3)"),
    ({"viewmats": torch.eye(4)}, "viewmats: expected [any, 4, 4], got (4, 4)"),
    ({"Ks": torch.eye(3)}, "Ks: expected [1, 3, 3], got (3, 3)"),
    ({"viewmats": torch.full((1, 4, 4), NAN)}, "viewmats, Ks: a camera holds NaN or infinity"),
    ({"Ks": torch.full((1, 3, 3), INF)}, "viewmats, Ks: a camera holds NaN or infinity"),
    ({"features": torch.zeros(11, 4)}, "features: expected [12, any], got (11, 4)"),
    ({"backgrounds": torch.zeros(4)}, "backgrounds: expected [3] or [1, 3], got (4,)"),
    ({"width": 0}, "width, height: expected positive, got 0 x 18"),
    ({"height": -3}, "width, height: expected positive, got 20 x -3"),
    ({"geometry_grad": "some"}, "geometry_grad: got 'some'"),
    ({"sh_degree": 5, "colors": torch.zeros(12, 36, 3)}, "sh_degree: expected 0 to 4, got 5"),
    ({"sh_degree": 2, "colors": torch.zeros(12, 4, 3)}, "colors: sh_degree 2 needs 9 coefficients, got 4"),
    ({"backend": "cqu"}, "raster: there is none called 'cqu'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[m for _, m in WRONG])
def test_wrong_arguments_are_named(make_scene, change, message):
    scene = make_scene(12)
    arguments = {n: getattr(scene, n) for n in ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")}
    with pytest.raises(FeaturesplatError) as caught:
        fs.rasterize(**{**arguments, "width": 20, "height": 18, **change})
    assert caught.value.message.startswith(message)
    assert caught.value.hint.endswith((".", "?"))


def test_wrong_maps_power_and_k(make_scene):
    scene = make_scene(12)
    splats = (scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, scene.Ks, 20, 18)
    for maps, power, message in (
        (torch.zeros(1, 18, 21, 2), 1, r"maps: expected \[1, 18, 20, 'D'\], got \(1, 18, 21, 2\)"),
        (None, 1, "maps: expected .* got None"),
        (torch.zeros(1, 18, 20, 2), 3, "power: expected 1 or 2, got 3"),
    ):
        with pytest.raises(FeaturesplatError, match=message):
            fs.lift(*splats, maps, power=power)
    with pytest.raises(FeaturesplatError, match="k: expected at least 1, got 0"):
        fs.topk(*splats, 0)


def test_numpy_follows_the_dtype_of_means(make_scene):
    arrays = {k: v.numpy() for k, v in make_scene(4).tensors().items()}
    names = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks")
    expected = fs.rasterize(*(arrays[n] for n in names), 9, 9)
    arrays["quats"], arrays["Ks"] = arrays["quats"].astype(np.float64), arrays["Ks"].astype(np.float16)
    out = fs.rasterize(*(arrays[n] for n in names), 9, 9)
    assert out.rgb.dtype == np.float32
    np.testing.assert_allclose(out.rgb, expected.rgb, atol=1e-2)  # half-precision intrinsics
