"""The operator: splat Gaussians with any number of feature channels, and its transpose.

One call has the same meaning on every backend (a module of this folder):

- ``reference``: tiled pure torch, float32 or float64; the truth every other backend is tested against.
- ``cpu``: the native engine, float32.
- ``cuda``: the same for NVIDIA GPUs, float32, its kernels compiled when first used.
- ``gsplat``: adapter to the gsplat package, for parity checks on a GPU.

The meaning: project each Gaussian by the local affine approximation (Zwicker et al. 2001), add ``eps2d`` to the
diagonal of its 2D covariance, and blend front to back by camera z (ties by index) with
``alpha = min(alpha_max, opacity * exp(-sigma))``. Colour, features, alpha and depth come from one pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.raster._inputs import (
    GeometryGrad,
    Precision,
    RasterInputs,
    RasterSettings,
    check_cameras,
    check_inputs,
    is_numpy_call,
    to_tensor,
)
from featuresplat.types import RasterMeta, RenderOutput

__all__ = [
    "Contributions",
    "RasterSettings",
    "WeightMatrix",
    "backend_for",
    "contributions",
    "lift",
    "rasterize",
    "topk",
    "weight_matrix",
]


class WeightMatrix(NamedTuple):
    """One camera's blending weights as a sparse matrix, rows = pixels (row-major), columns = Gaussians, CSR.

    ``indptr`` [H*W+1] int64, ``indices`` [nnz] int64 front to back within a row, ``weights`` [nnz] = alpha * T.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor


class Contributions(NamedTuple):
    """What each Gaussian gives to each camera: [C, N] sums, maxima and pixel counts of its blending weights."""

    sums: Tensor
    maxima: Tensor
    pixels: Tensor


class Backend(Protocol):
    """What a module of this folder provides. Inputs are checked before they arrive."""

    def unavailable(self) -> str | None:
        """None when the backend can run here, else one sentence on why not."""
        ...

    def rasterize(self, inputs: RasterInputs) -> RenderOutput: ...
    def lift(self, inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]: ...
    def weight_matrix(self, inputs: RasterInputs) -> list[WeightMatrix]: ...
    def topk(self, inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]: ...
    def contributions(self, inputs: RasterInputs) -> Contributions: ...


def backend_for(means: Tensor, name: str | None = None) -> Any:
    """The backend module for these tensors: the named one, else the fastest that fits their device and dtype.

    float64 goes to ``reference`` (the native engines are float32).

    Raises:
        FeaturesplatError: when the named backend does not exist or cannot run here.
    """
    if name is not None:
        module = registry.load("raster", name)
        reason = module.unavailable()
        if reason:
            raise FeaturesplatError(f"backend '{name}' cannot run here: {reason}", "Run 'featuresplat doctor'.")
        return module
    if means.dtype == torch.float64:
        wanted = ["reference"]
    elif means.device.type == "cuda":
        wanted = ["cuda", "reference"]
    else:
        wanted = ["cpu", "reference"]
    for candidate in wanted:
        if candidate in registry.names("raster"):
            module = registry.load("raster", candidate)
            if module.unavailable() is None:
                return module
    raise FeaturesplatError("no rasterizer backend can run here", "Run 'featuresplat doctor'.")


def _backend(inputs: RasterInputs, name: str | None) -> Any:
    """The backend for a call, cameras checked: by the backend itself where it can do so without waiting."""
    module = backend_for(inputs.means, name)
    if not getattr(module, "CHECKS_CAMERAS", False):
        check_cameras(inputs)
    return module


def rasterize(
    means,
    quats,
    scales,
    opacities,
    colors,
    viewmats,
    Ks,
    width: int,
    height: int,
    *,
    features=None,
    sh_degree: int | None = None,
    backgrounds=None,
    geometry_grad: GeometryGrad = "full",
    absgrad: bool = False,
    settings: RasterSettings | None = None,
    precision: Precision | None = None,
    backend: str | None = None,
) -> RenderOutput:
    """Render Gaussians into C cameras: colour, features, alpha and depth in one differentiable pass.

    Gradients reach means, quats, scales, opacities, colors (through the view direction of spherical harmonics
    too), features, backgrounds and viewmats.

    Args:
        means: [N, 3] centres, world frame.
        quats: [N, 4] wxyz, normalised on use.
        scales: [N, 3] standard deviations (activated, positive).
        opacities: [N] in 0..1 (activated).
        colors: [N, 3], or [C, N, 3] per camera, or with ``sh_degree`` the coefficients [N, K, 3], or None. Colours
            from spherical harmonics are max(0, 0.5 + SH(direction)).
        viewmats: [C, 4, 4] world-to-camera, OpenCV axes.
        Ks: [C, 3, 3] intrinsics in pixels (fx, fy, cx, cy are used); pixel centres at +0.5.
        width, height: image size in pixels.
        features: [N, D], any D >= 0, blended over zero; or None.
        sh_degree: degree to evaluate, 0..4; None when ``colors`` are plain.
        backgrounds: [3] or [C, 3] behind the colours; None is black.
        geometry_grad: what moves geometry (means, quats, scales, opacities, viewmats): ``"full"`` everything,
            ``"rgb"`` all but the features (Feature 3DGS), ``"none"`` nothing.
        absgrad: fill ``out.meta.means2d_grad`` and ``.means2d_absgrad`` during backward.
        settings: constants of the operator.
        precision: of many feature channels on a GPU. ``"fp32"`` is within 2e-5 of the image's maximum, ``"fp16"`` is
            faster and within 1e-3; gradients are float32 either way. Default: the environment variable
            ``FEATURESPLAT_PRECISION``, else ``"fp32"``. The CPU always computes in float32.
        backend: name of a backend; default: the fastest for the tensors' device and dtype.

    NumPy arrays are accepted and then returned (no gradients).

    Blending is linear: an image of ``features @ A`` is exactly the image of ``features``, times ``A``. So project first
    when that leaves fewer channels: ``features=codes @ prompts.T`` costs P channels whatever D is.

    Gaussians with a NaN, an infinity, a zero quaternion or a non-positive scale are skipped.

    Returns:
        RenderOutput.

    Raises:
        FeaturesplatError: wrong shapes, dtypes, devices or a non-finite camera.
    """
    as_numpy = is_numpy_call(means, quats, scales, opacities, colors, features, viewmats, Ks, backgrounds)
    inputs = check_inputs(
        means,
        quats,
        scales,
        opacities,
        colors,
        viewmats,
        Ks,
        width,
        height,
        features=features,
        sh_degree=sh_degree,
        backgrounds=backgrounds,
        geometry_grad=geometry_grad,
        absgrad=absgrad,
        settings=settings,
        precision=precision,
    )
    out = _backend(inputs, backend).rasterize(inputs)
    return _numpy_output(out) if as_numpy else out


def lift(
    means, quats, scales, opacities, viewmats, Ks, width: int, height: int, maps, *, power: int = 1,
    settings: RasterSettings | None = None, backend: str | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """The transpose of `rasterize`: carry per-pixel features back onto the Gaussians.

    With w the blending weight (alpha * T) of Gaussian j at pixel p, returns

        sums[j]    = sum over cameras and pixels of w^power * maps[p]
        weights[j] = sum over cameras and pixels of w^power

    so that sums / weights is the weighted mean feature (Occam's LGS, LUDVIG); add up calls to stream views.

    Args:
        maps: [C, H, W, D] features to lift, at the size of the render. Everything else as in `rasterize`.
        power: 1, or 2 for squared weights.

    Returns:
        sums [N, D] and weights [N]; no gradients.
    """
    as_numpy = is_numpy_call(means, quats, scales, opacities, viewmats, Ks, maps)
    inputs = check_inputs(
        means, quats, scales, opacities, None, viewmats, Ks, width, height, settings=settings
    )  # fmt: skip
    maps_t = to_tensor("maps", maps, inputs.means)
    shape = (len(inputs.viewmats), inputs.height, inputs.width)
    if maps_t is None or maps_t.ndim != 4 or tuple(maps_t.shape[:3]) != shape:
        got = None if maps_t is None else tuple(maps_t.shape)
        raise FeaturesplatError(f"maps: expected {[*shape, 'D']}, got {got}", "Resize the maps to the render first.")
    if power not in (1, 2):
        raise FeaturesplatError(f"power: expected 1 or 2, got {power}", "1 is the mean, 2 squares the weights.")
    with torch.no_grad():
        result = _backend(inputs, backend).lift(inputs, maps_t, power)
    return tuple(t.numpy() for t in result) if as_numpy else result  # pyright: ignore[reportReturnType]


def weight_matrix(
    means, quats, scales, opacities, viewmats, Ks, width: int, height: int, *,
    settings: RasterSettings | None = None, backend: str | None = None,
) -> list[WeightMatrix]:  # fmt: skip
    """The blending weights of each camera as sparse matrices; see `WeightMatrix`. No gradients."""
    inputs = check_inputs(means, quats, scales, opacities, None, viewmats, Ks, width, height, settings=settings)
    with torch.no_grad():
        return _backend(inputs, backend).weight_matrix(inputs)


def topk(
    means, quats, scales, opacities, viewmats, Ks, width: int, height: int, k: int, *,
    settings: RasterSettings | None = None, backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The k Gaussians of greatest weight at each pixel, greatest first (ties: the nearer one first).

    Returns:
        ids [C, H, W, k] int64, -1 where there are fewer, and their weights [C, H, W, k]. No gradients.
    """
    inputs = check_inputs(means, quats, scales, opacities, None, viewmats, Ks, width, height, settings=settings)
    if k < 1:
        raise FeaturesplatError(f"k: expected at least 1, got {k}", "Ask for one or more Gaussians per pixel.")
    with torch.no_grad():
        return _backend(inputs, backend).topk(inputs, k)


def contributions(
    means, quats, scales, opacities, viewmats, Ks, width: int, height: int, *,
    settings: RasterSettings | None = None, backend: str | None = None,
) -> Contributions:  # fmt: skip
    """How much each Gaussian shows in each camera; see `Contributions`. No gradients."""
    inputs = check_inputs(means, quats, scales, opacities, None, viewmats, Ks, width, height, settings=settings)
    with torch.no_grad():
        return _backend(inputs, backend).contributions(inputs)


def _numpy_output(out: RenderOutput) -> RenderOutput:
    """The same output holding NumPy arrays."""

    def convert(t) -> Any:
        return None if t is None else np.asarray(t.detach())

    m: Any = out.meta
    meta = RasterMeta(convert(m.means2d), convert(m.radii), convert(m.depths), convert(m.conics))
    return RenderOutput(convert(out.rgb), convert(out.features), convert(out.alpha), convert(out.depth), meta)
