"""What a backend is handed: checked tensors and the constants of the operator."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError

GeometryGrad = Literal["full", "rgb", "none"]
Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class RasterSettings:
    """The constants of the operator; the defaults are ours, parity tests set a peer's.

    Attributes:
        near, far: camera z outside of [near, far] is not drawn.
        eps2d: added to the diagonal of the 2D covariance, square pixels.
        extent: a Gaussian ends where the exponent exceeds extent^2 / 2 (standard deviations).
        alpha_max: alpha is clamped to this. gsplat 1.5.3 has 0.999, INRIA and later gsplat 0.99.
        alpha_min: (pixel, Gaussian) pairs below this are skipped.
        transmittance_min: a pixel stops before the Gaussian that would bring its transmittance to this or less.
        antialiased: scale opacities by sqrt(det(cov2d) / det(cov2d + eps2d I)) (Mip-Splatting).
    """

    near: float = 0.01
    far: float = 1e10
    eps2d: float = 0.3
    extent: float = 3.33
    alpha_max: float = 0.999
    alpha_min: float = 1.0 / 255.0
    transmittance_min: float = 1e-4
    antialiased: bool = False


_DEFAULTS = RasterSettings()


@dataclass(frozen=True)
class RasterInputs:
    """Checked inputs of one call: all tensors on one device, of one floating dtype. Shapes as in `rasterize`.

    ``colors`` is [N, 3], [C, N, 3] or, when ``sh_degree`` is not None, [N, K, 3]; or None.
    ``backgrounds`` is [C, 3] or None. ``viewmats`` [C, 4, 4], ``Ks`` [C, 3, 3]. ``precision`` is of the products of
    weights and features, for backends that have a choice.
    """

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor | None
    features: Tensor | None
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    sh_degree: int | None = None
    backgrounds: Tensor | None = None
    geometry_grad: GeometryGrad = "full"
    absgrad: bool = False
    settings: RasterSettings = RasterSettings()
    precision: Precision = "fp32"

    def replace(self, **changes) -> RasterInputs:
        return replace(self, **changes)


def is_numpy_call(*arrays) -> bool:
    """True when arrays were given and every one of them is a NumPy array."""
    given = [a for a in arrays if a is not None]
    return bool(given) and all(isinstance(a, np.ndarray) for a in given)


def to_tensor(name: str, value: Any, like: Tensor | None = None) -> Tensor | None:
    """A floating tensor on ``like``'s device; NumPy arrays share memory where they can."""
    if value is None:
        return None
    if like is not None and isinstance(value, Tensor) and value.dtype == like.dtype and value.device == like.device:
        return value
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value) if any(s < 0 for s in value.strides) else value)
        if value.dtype not in (torch.float32, torch.float64) or (like is not None and value.dtype != like.dtype):
            value = value.to(torch.float32 if like is None else like.dtype)
    if not isinstance(value, Tensor):
        raise FeaturesplatError(
            f"{name}: expected a torch tensor or a NumPy array, got {type(value).__name__}",
            "Convert it first.",
        )
    if value.dtype not in (torch.float32, torch.float64):
        raise FeaturesplatError(f"{name}: expected float32 or float64, got {value.dtype}", "Cast it with .float().")
    if like is not None and (value.dtype != like.dtype or value.device != like.device):
        raise FeaturesplatError(
            f"{name}: is {value.dtype} on {value.device}, means are {like.dtype} on {like.device}",
            "Give every tensor the dtype and device of means.",
        )
    return value


def _expect(name: str, tensor: Tensor, *shapes: tuple) -> None:
    """Raise unless the shape matches one of ``shapes`` (-1 = anything)."""
    got = tuple(tensor.shape)
    for shape in shapes:
        if got == shape or (len(shape) == len(got) and all(s in (-1, g) for s, g in zip(shape, got, strict=True))):
            return
    wanted = " or ".join(str(list(s)).replace("-1", "any") for s in shapes)
    raise FeaturesplatError(f"{name}: expected {wanted}, got {got}", "See help(featuresplat.rasterize) for the shapes.")


def check_inputs(
    means: Any,
    quats: Any,
    scales: Any,
    opacities: Any,
    colors: Any,
    viewmats: Any,
    Ks: Any,
    width: int,
    height: int,
    *,
    features: Any = None,
    sh_degree: int | None = None,
    backgrounds: Any = None,
    geometry_grad: GeometryGrad = "full",
    absgrad: bool = False,
    settings: RasterSettings | None = None,
    precision: Precision | None = None,
) -> RasterInputs:
    """Validate shapes, dtypes and devices, and pack them. What cameras hold is for `check_cameras`.

    Raises:
        FeaturesplatError: naming the argument, what was expected and what came.
    """
    means = to_tensor("means", means)
    if not isinstance(means, Tensor):
        raise FeaturesplatError("means: expected [N, 3], got None", "Give the centres of the Gaussians.")
    _expect("means", means, (-1, 3))
    required = {"quats": quats, "scales": scales, "opacities": opacities, "viewmats": viewmats, "Ks": Ks}
    checked = _check_required(means, required)
    n, c = means.shape[0], checked["viewmats"].shape[0]
    colors = to_tensor("colors", colors, means)
    if colors is not None:
        _check_colors(colors, n, c, sh_degree)
    features = to_tensor("features", features, means)
    if features is not None:
        _expect("features", features, (n, -1))
    backgrounds = to_tensor("backgrounds", backgrounds, means)
    if backgrounds is not None:
        _expect("backgrounds", backgrounds, (3,), (c, 3))
        backgrounds = backgrounds.expand(c, 3)
    if int(width) <= 0 or int(height) <= 0:
        raise FeaturesplatError(f"width, height: expected positive, got {width} x {height}", "Give the image size.")
    if geometry_grad not in ("full", "rgb", "none"):
        raise FeaturesplatError(f"geometry_grad: got '{geometry_grad}'", "Use 'full', 'rgb' or 'none'.")
    precision = precision or os.environ.get("FEATURESPLAT_PRECISION") or "fp32"  # pyright: ignore
    if precision not in ("fp32", "fp16"):
        raise FeaturesplatError(f"precision: got '{precision}'", "Use 'fp32' or 'fp16'.")
    return RasterInputs(
        means=means,
        colors=colors,
        features=features,
        width=int(width),
        height=int(height),
        sh_degree=None if colors is None else sh_degree,
        backgrounds=backgrounds,
        geometry_grad=geometry_grad,
        absgrad=absgrad,
        settings=settings or _DEFAULTS,
        precision=precision,
        **checked,
    )


def _check_required(means: Tensor, values: dict[str, Any]) -> dict[str, Tensor]:
    """What every call has beside the means, as tensors of the right shapes."""
    checked: dict[str, Tensor] = {}
    for name, value in values.items():
        tensor = to_tensor(name, value, means)
        if tensor is None:
            raise FeaturesplatError(f"{name}: is required, got None", "See help(featuresplat.rasterize).")
        checked[name] = tensor
    n = means.shape[0]
    _expect("quats", checked["quats"], (n, 4))
    _expect("scales", checked["scales"], (n, 3))
    _expect("opacities", checked["opacities"], (n,))
    _expect("viewmats", checked["viewmats"], (-1, 4, 4))
    _expect("Ks", checked["Ks"], (checked["viewmats"].shape[0], 3, 3))
    return checked


def _check_colors(colors: Tensor, n: int, c: int, sh_degree: int | None) -> None:
    """Plain colours of n Gaussians, for all of c cameras or for each, or enough coefficients of the degree."""
    if sh_degree is None:
        _expect("colors", colors, (n, 3), (c, n, 3))
        return
    if sh_degree not in (0, 1, 2, 3, 4):
        raise FeaturesplatError(f"sh_degree: expected 0 to 4, got {sh_degree}", "Degrees 0 to 4 are known.")
    _expect("colors", colors, (n, -1, 3))
    if colors.shape[1] < (sh_degree + 1) ** 2:
        raise FeaturesplatError(
            f"colors: sh_degree {sh_degree} needs {(sh_degree + 1) ** 2} coefficients, got {colors.shape[1]}",
            "Lower sh_degree or give more coefficients.",
        )


def check_cameras(inputs: RasterInputs) -> None:
    """Raise when a camera is not finite. Looks at values, so on a GPU it waits for all work queued before."""
    if not (torch.isfinite(inputs.viewmats).all() and torch.isfinite(inputs.Ks).all()):
        raise FeaturesplatError("viewmats, Ks: a camera holds NaN or infinity", "Drop that camera or mend its pose.")
