"""What `test_contract.py` and `test_queries.py` compare with, and how closely."""

from __future__ import annotations

from dataclasses import replace

import torch
from dense_truth import dense

import featuresplat as fs
from featuresplat.raster import _nvrtc

FORWARD, GRADIENT = 2e-5, 1e-4
"""Errors allowed, relative to the largest value of the output or gradient."""
BAND = 1e-4

LEAVES = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats", "backgrounds")


def device_of(backend: str) -> str:
    """Where a backend's tensors live; ``cuda`` takes CPU tensors while the host emulator stands in for the GPU."""
    return "cpu" if backend in ("cpu", "reference") or "cpu" in _nvrtc.stand_ins else "cuda"


def render(scene, backend, leaves=None, **options):
    given = {**scene.tensors(), **(leaves or {})}
    colors = options.pop("colors", given["colors"])
    options.setdefault("features", given["features"])
    options.setdefault("backgrounds", given["backgrounds"])
    return fs.rasterize(
        given["means"], given["quats"], given["scales"], given["opacities"], colors, given["viewmats"],
        given["Ks"], scene.width, scene.height, backend=backend, **options,
    )  # fmt: skip


def clear_pixels(scene, settings=None) -> torch.Tensor:
    """[C, H, W] which pixels are out of the band; at least 97 % of them."""
    plain = replace(scene, colors=scene.means)  # colours have no say in the weights
    clear = torch.stack([dense(plain, c, settings).margin > BAND for c in range(len(scene.viewmats))])
    assert (~clear).double().mean() <= 0.03
    return clear


def seeds_for(out, clear):
    """Random incoming gradients for each image; zero within the band."""
    g = torch.Generator().manual_seed(7)
    images = {"rgb": out.rgb, "features": out.features, "alpha": out.alpha, "depth": out.depth}
    return {
        name: torch.randn(image.shape, generator=g) * clear[..., None]
        for name, image in images.items()
        if image is not None
    }


def close(name, got, true, tolerance):
    assert got is not None, name
    got = got.detach().cpu().double()
    assert got.shape == true.shape, (name, got.shape, true.shape)
    assert torch.isfinite(got).all(), name
    if true.numel():
        scale = float(true.abs().max())
        error = float((got - true).abs().max())
        assert error <= tolerance * max(scale, 1e-12), f"{name}: {error / max(scale, 1e-12):.2e} of its maximum"


def run(scene, backend, device, dtype, seeds, leaves=LEAVES, **options):
    """(output, gradients by name) of one backend."""
    moved = scene.to(device, dtype)
    tensors = {n: getattr(moved, n).clone().requires_grad_() for n in leaves}
    out = render(moved, backend, tensors, **options)
    loss = sum((getattr(out, n) * s.to(device, dtype)).sum() for n, s in seeds.items())
    grads = {n: torch.zeros_like(t) for n, t in tensors.items()}
    if isinstance(loss, torch.Tensor) and loss.requires_grad:
        found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
        grads = {n: grads[n] if g is None else g for n, g in zip(tensors, found, strict=True)}
    return out, grads


def check(scene, backend, forward=FORWARD, gradient=GRADIENT, loss=("rgb", "features", "alpha", "depth"), **options):
    """The whole contract for one scene and one set of options; returns the backend's output.

    Args:
        loss: the images that the gradients come from.
    """
    clear = clear_pixels(scene, options.get("settings"))
    with torch.no_grad():
        shape = render(scene.to(torch.float64), "reference", **{k: v for k, v in options.items() if k != "absgrad"})
    seeds = {name: seed for name, seed in seeds_for(shape, clear).items() if name in loss}
    true, true_grads = run(scene, "reference", "cpu", torch.float64, seeds, **options)
    out, grads = run(scene, backend, device_of(backend), torch.float32, seeds, **options)
    for name in ("rgb", "features", "alpha", "depth"):
        expected, got = getattr(true, name), getattr(out, name)
        if expected is None:
            assert got is None
            continue
        assert got.shape == expected.shape
        assert torch.isfinite(got).all()
        close(name, got.cpu() * clear[..., None], expected.detach() * clear[..., None], forward)
    for name, expected in true_grads.items():
        close(f"gradient of {name}", grads[name], expected, gradient)
    check_meta(scene, out.meta, true.meta, gradient if options.get("absgrad") else None)
    return out


def check_meta(scene, meta, true, absgrad):
    assert meta.radii.dtype == torch.int32
    drawn, expected = (meta.radii.cpu() > 0).all(-1), (true.radii > 0).all(-1)
    # Within a pixel of the image's border or of a depth plane the culling may differ.
    size = torch.tensor([scene.width, scene.height], dtype=torch.float64)
    slack = torch.minimum(true.means2d + true.radii, size - (true.means2d - true.radii)).amin(-1)
    sure = expected & (slack > 1.5)
    assert (drawn & sure).sum() == sure.sum()
    assert (drawn & ~expected).sum() <= 0.01 * expected.numel()
    both = drawn & expected
    assert ((meta.radii.cpu() - true.radii)[both].abs() <= 1).all()
    for name in ("means2d", "depths", "conics"):
        close(name, getattr(meta, name).cpu()[both], getattr(true, name)[both], FORWARD)
    if absgrad is not None:
        close("means2d_grad", meta.means2d_grad, true.means2d_grad, absgrad)
        close("means2d_absgrad", meta.means2d_absgrad, true.means2d_absgrad, absgrad)
