"""A second opinion: our inputs handed to the gsplat package (>= 1.5), for parity checks on a GPU.

What gsplat fixes when it is built cannot be set here: alpha_max 0.999 (release 1.5.3; its main branch has
0.99), alpha_min 1/255, transmittance_min 1e-4 and an extent of 3.33. It neither skips non-finite Gaussians
nor tells its blending weights, so `weight_matrix`, `topk` and `contributions` are not offered.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import sh_to_rgb
from featuresplat.raster import Contributions, WeightMatrix
from featuresplat.raster._inputs import RasterInputs, RasterSettings
from featuresplat.types import RasterMeta, RenderOutput

_FIXED = ("extent", "alpha_max", "alpha_min", "transmittance_min")


def unavailable() -> str | None:
    """None when gsplat and a CUDA device are here, else one sentence on what is missing."""
    if importlib.util.find_spec("gsplat") is None:
        return "the package gsplat is not installed"
    if not torch.cuda.is_available():
        return "gsplat needs an NVIDIA GPU, and torch sees none"
    return None


def _colors(inputs: RasterInputs) -> Tensor | None:
    """[C, N, 3] colours, spherical harmonics evaluated here so that they can share a call with features."""
    if inputs.colors is None:
        return None
    shape = (len(inputs.viewmats), len(inputs.means), 3)
    if inputs.sh_degree is None:
        return inputs.colors.expand(shape)
    R, t = inputs.viewmats[:, :3, :3], inputs.viewmats[:, :3, 3]
    centres = -(R.mT @ t[..., None])[..., 0]  # [C, 3]
    directions = torch.nn.functional.normalize(inputs.means - centres[:, None], dim=-1)
    return sh_to_rgb(inputs.colors, directions, inputs.sh_degree)


def _splat(inputs: RasterInputs, values: Tensor | None) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """(blended [C, H, W, X], depth, alpha, gsplat's by-products) of ``values`` [C, N, X]."""
    s, default = inputs.settings, RasterSettings()
    changed = [name for name in _FIXED if getattr(s, name) != getattr(default, name)]
    if changed or inputs.absgrad:
        what = ", ".join([*changed, *(["absgrad"] if inputs.absgrad else [])])
        raise FeaturesplatError(f"backend 'gsplat' cannot set {what}", "Use another backend.")
    call = importlib.import_module("gsplat").rasterization
    nothing = inputs.means.new_zeros(len(inputs.viewmats), len(inputs.means), 0)
    image, alpha, by = call(
        inputs.means,
        inputs.quats,
        inputs.scales,
        inputs.opacities,
        nothing if values is None else values.contiguous(),
        inputs.viewmats,
        inputs.Ks,
        inputs.width,
        inputs.height,
        near_plane=s.near,
        far_plane=s.far,
        eps2d=s.eps2d,
        packed=False,
        render_mode="ED" if values is None else "RGB+ED",
        rasterize_mode="antialiased" if s.antialiased else "classic",
    )
    return image[..., :-1], image[..., -1:], alpha, by


def rasterize(inputs: RasterInputs) -> RenderOutput:
    """Forward pass, differentiable; see `featuresplat.raster.rasterize`."""
    frozen = inputs.replace(
        **{name: getattr(inputs, name).detach() for name in ("means", "quats", "scales", "opacities", "viewmats")}
    )
    if inputs.geometry_grad == "none":
        inputs = frozen
    colors, features = _colors(inputs), inputs.features
    if features is not None:
        features = features.expand(len(inputs.viewmats), *features.shape)
    together = [t for t in (colors, None if inputs.geometry_grad == "rgb" else features) if t is not None]
    image, depth, alpha, by = _splat(inputs, torch.cat(together, dim=-1) if together else None)
    rgb = image[..., :3] if colors is not None else None
    if rgb is not None and inputs.backgrounds is not None:
        rgb = rgb + (1 - alpha) * inputs.backgrounds[:, None, None, :]
    blended = None
    if features is not None:
        apart = inputs.geometry_grad == "rgb"
        blended = _splat(frozen, features)[0] if apart else image[..., 0 if colors is None else 3 :]
    meta = RasterMeta(*(by[name].detach() for name in ("means2d", "radii", "depths", "conics")))
    return RenderOutput(rgb, blended, alpha, depth, meta)


def lift(inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """The transpose, as the gradient of a splat; see `featuresplat.raster.lift`. Only ``power`` 1."""
    if power != 1:
        raise FeaturesplatError("backend 'gsplat' lifts with power 1 only", "Use another backend.")
    maps = torch.cat([maps, torch.ones_like(maps[..., :1])], dim=-1)
    with torch.enable_grad():
        values = maps.new_zeros(len(inputs.means), maps.shape[-1], requires_grad=True)
        image = _splat(inputs, values.expand(len(maps), *values.shape))[0]
        (grad,) = torch.autograd.grad(image, values, maps)
    return grad[:, :-1], grad[:, -1]


def _not_offered(what: str) -> FeaturesplatError:
    return FeaturesplatError(f"backend 'gsplat' does not tell {what}", "Use another backend.")


def weight_matrix(inputs: RasterInputs) -> list[WeightMatrix]:
    """Not offered: raises."""
    raise _not_offered("its blending weights")


def topk(inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]:
    """Not offered: raises."""
    raise _not_offered("which Gaussians a pixel shows")


def contributions(inputs: RasterInputs) -> Contributions:
    """Not offered: raises."""
    raise _not_offered("what a Gaussian contributes")
