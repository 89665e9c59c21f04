"""The native engine: C++ threads and vector instructions, float32, the same results for any thread count.

This module hands tensors to the library of cuda/ (see cuda/engine.h) and gradients back to autograd.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import Contributions, WeightMatrix, _native, _pool
from featuresplat.raster._inputs import RasterInputs
from featuresplat.types import RasterMeta, RenderOutput


def unavailable() -> str | None:
    """None when the native library can be used, else one sentence on why not."""
    return _native.unavailable()


_P = ctypes.c_void_p


class _Call(ctypes.Structure):
    """``fs_call`` of cuda/engine.h."""

    _fields_ = [
        *[(name, ctypes.c_int64) for name in ("gaussians", "cameras", "width", "height", "dim")],
        *[(name, _P) for name in ("means", "quats", "scales", "opacities", "colors", "features")],
        *[(name, _P) for name in ("viewmats", "Ks", "backgrounds")],
        ("camera_colors", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("color_kind", "sh_degree", "sh_rows", "antialiased")],
        *[(name, ctypes.c_double) for name in ("near", "far", "eps2d", "extent", "alpha_max", "alpha_min")],
        ("transmittance_min", ctypes.c_double),
    ]  # fmt: skip


class _Images(ctypes.Structure):
    """``fs_images`` of cuda/engine.h."""

    _fields_ = [(name, _P) for name in ("rgb", "features", "alpha", "depth", "means2d", "radii", "depths", "conics")]


class _Gradients(ctypes.Structure):
    """``fs_gradients`` of cuda/engine.h."""

    _fields_ = [
        *[(name, _P) for name in ("rgb", "features", "alpha", "depth")],
        *[(name, _P) for name in ("means", "quats", "scales", "opacities", "colors", "feature_rows")],
        *[(name, _P) for name in ("backgrounds", "viewmats", "means2d", "means2d_abs")],
        ("features_move_geometry", ctypes.c_int32),
    ]  # fmt: skip


class _Plan:
    """Owns what the engine keeps from a forward call for its backward."""

    def __init__(self) -> None:
        self.handle = _P()
        self._free = _native.library().fs_free

    def __del__(self) -> None:
        if self.handle:
            self._free(self.handle)


_TENSORS = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats", "Ks", "backgrounds")


def _tensors(inputs: RasterInputs) -> list[Tensor | None]:
    """The tensors of a call, in the order of ``_TENSORS``.

    Raises:
        FeaturesplatError: not float32 on the CPU.
    """
    means = inputs.means
    if means.dtype != torch.float32:
        raise FeaturesplatError(
            f"backend 'cpu' computes in float32, got {means.dtype}",
            "Use backend='reference', or cast with .float().",
        )
    if means.device.type != "cpu":
        raise FeaturesplatError(f"backend 'cpu' got tensors on {means.device}", "Move them with .cpu().")
    return [getattr(inputs, name) for name in _TENSORS]


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(inputs: RasterInputs, tensors: list[Tensor | None]) -> _Call:
    """The C view of a call. ``tensors`` are contiguous and must outlive it."""
    means, colors, features = tensors[0], tensors[4], tensors[5]
    s = inputs.settings
    call = _Call(len(means), len(inputs.viewmats), inputs.width, inputs.height)  # pyright: ignore
    call.dim = 0 if features is None else features.shape[1]
    for name, tensor in zip(_TENSORS, tensors, strict=True):
        setattr(call, name, _pointer(tensor))
    if colors is not None:
        call.color_kind = 1 if inputs.sh_degree is None else 2
        if inputs.sh_degree is not None:
            call.sh_degree, call.sh_rows = inputs.sh_degree, colors.shape[1]
        elif colors.ndim == 3:
            call.camera_colors = 3 * colors.shape[1]
    call.antialiased = s.antialiased
    call.near, call.far, call.eps2d, call.extent = s.near, s.far, s.eps2d, s.extent
    call.alpha_max, call.alpha_min, call.transmittance_min = s.alpha_max, s.alpha_min, s.transmittance_min
    return call


def _check(code: int) -> None:
    if code:
        text = _native.library().fs_error().decode()
        raise FeaturesplatError(f"the native engine failed: {text}", "Use fewer Gaussians, channels or pixels.")


def _contiguous(inputs: RasterInputs) -> list[Tensor | None]:
    return [None if t is None else t.detach().contiguous() for t in _tensors(inputs)]


def _empty_images(inputs: RasterInputs) -> tuple[list[Tensor | None], RasterMeta]:
    """Uninitialised rgb, features, alpha, depth and by-products."""
    c, n = len(inputs.viewmats), len(inputs.means)
    shape = (c, inputs.height, inputs.width)
    images = [
        None if inputs.colors is None else _pool.empty((*shape, 3)),
        None if inputs.features is None else _pool.empty((*shape, inputs.features.shape[1])),
        _pool.empty((*shape, 1)),
        _pool.empty((*shape, 1)),
    ]
    meta = RasterMeta(
        torch.empty(c, n, 2), torch.empty(c, n, 2, dtype=torch.int32), torch.empty(c, n), torch.empty(c, n, 3)
    )
    return images, meta


def _render(inputs: RasterInputs, tensors: list[Tensor | None], meta: RasterMeta, images, plan: _Plan | None) -> None:
    call = _call(inputs, tensors)
    out = _Images(*map(_pointer, (*images, meta.means2d, meta.radii, meta.depths, meta.conics)))
    handle = None if plan is None else ctypes.byref(plan.handle)
    _check(_native.library().fs_render(ctypes.byref(call), ctypes.byref(out), handle))


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: RasterInputs, meta: RasterMeta, images, *tensors):  # pyright: ignore
        held = _contiguous(inputs)
        plan = _Plan()
        _render(inputs, held, meta, images, plan)
        ctx.plan, ctx.meta = plan, meta
        # Only shapes and constants may stay on ctx: tensors go through save_for_backward.
        ctx.inputs = inputs.replace(**dict.fromkeys(_TENSORS))
        ctx.shapes = [None if t is None else t.shape for t in tensors]
        ctx.save_for_backward(*held, images[2], images[3])
        ctx.set_materialize_grads(False)
        return tuple(images)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):  # pyright: ignore
        *held, alpha, depth = ctx.saved_tensors
        inputs = ctx.inputs.replace(**dict(zip(_TENSORS, held, strict=True)))
        wanted = list(ctx.needs_input_grad[3:])
        return (None, None, None, *_backward(inputs, held, alpha, depth, grads, wanted, ctx.plan, ctx.meta))


def _backward(inputs: RasterInputs, held, alpha, depth, grads, wanted, plan: _Plan, meta: RasterMeta):
    """Gradients in the order of ``_TENSORS``; None where nobody asks."""
    grads = [None if g is None else g.contiguous() for g in grads]
    if inputs.geometry_grad == "none":
        still = ("colors", "features", "backgrounds")
        wanted = [w and name in still for w, name in zip(wanted, _TENSORS, strict=True)]
    wanted[7] = False  # Ks
    out = [_pool.empty(t.shape) if w else None for t, w in zip(held, wanted, strict=True)]
    g = _Gradients()
    g.rgb, g.features, g.alpha, g.depth = map(_pointer, grads)
    names = ("means", "quats", "scales", "opacities", "colors", "feature_rows", "viewmats", "", "backgrounds")
    for name, tensor in zip(names, out, strict=True):
        if name:
            setattr(g, name, _pointer(tensor))
    if inputs.absgrad:
        both = torch.zeros_like(meta.means2d), torch.zeros_like(meta.means2d)
        meta.means2d_grad, meta.means2d_absgrad = both
        if inputs.geometry_grad != "none":
            g.means2d, g.means2d_abs = map(_pointer, both)
    g.features_move_geometry = inputs.geometry_grad != "rgb"
    call, lib = _call(inputs, held), _native.library()
    rendered = _Images(None, None, alpha.data_ptr(), depth.data_ptr())
    _check(lib.fs_backward(plan.handle, ctypes.byref(call), ctypes.byref(rendered), ctypes.byref(g)))
    return out


def rasterize(inputs: RasterInputs) -> RenderOutput:
    """Forward pass, differentiable; see `featuresplat.raster.rasterize`."""
    tensors = _tensors(inputs)
    images, meta = _empty_images(inputs)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        rendered: Any = _Rasterize.apply(inputs, meta, images, *tensors)
    else:
        _render(inputs, _contiguous(inputs), meta, images, None)
        rendered = images
    rgb, features, alpha, depth = rendered
    return RenderOutput(rgb, features, alpha, depth, meta)


def _camera_call(inputs: RasterInputs) -> tuple[_Call, list[Tensor | None]]:
    """The C view of a call without colours and features, and the tensors that must outlive it."""
    held = _contiguous(inputs.replace(colors=None, features=None, backgrounds=None, sh_degree=None))
    return _call(inputs.replace(sh_degree=None), held), held


def lift(inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Sums [N, D] and weights [N]; see `featuresplat.raster.lift`."""
    call, held = _camera_call(inputs)
    maps = maps.detach().contiguous()
    n, dim = len(inputs.means), maps.shape[-1]
    sums, weights = _pool.empty((n, dim)), torch.empty(n)
    addresses = _addresses(sums, weights)
    source, lib = _P(maps.data_ptr()), _native.library()
    _check(lib.fs_lift(ctypes.byref(call), source, ctypes.c_int64(dim), power, *addresses))
    del held
    return sums, weights


def topk(inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights [C, H, W, k]; see `featuresplat.raster.topk`."""
    call, held = _camera_call(inputs)
    shape = (len(inputs.viewmats), inputs.height, inputs.width, k)
    ids, weights = torch.empty(shape, dtype=torch.long), torch.empty(shape)
    _check(_native.library().fs_topk(ctypes.byref(call), ctypes.c_int64(k), *_addresses(ids, weights)))
    del held
    return ids, weights


def contributions(inputs: RasterInputs) -> Contributions:
    """Sums, maxima and pixel counts [C, N]; see `featuresplat.raster.contributions`."""
    call, held = _camera_call(inputs)
    shape = (len(inputs.viewmats), len(inputs.means))
    sums, maxima, pixels = torch.empty(shape), torch.empty(shape), torch.empty(shape, dtype=torch.long)
    _check(_native.library().fs_contributions(ctypes.byref(call), *_addresses(sums, maxima, pixels)))
    del held
    return Contributions(sums, maxima, pixels)


def weight_matrix(inputs: RasterInputs) -> list[WeightMatrix]:
    """CSR blending weights of each camera; see `featuresplat.raster.weight_matrix`."""
    call, held = _camera_call(inputs)
    lib, found = _native.library(), []
    for camera in range(len(inputs.viewmats)):
        plan, indptr = _Plan(), torch.empty(inputs.height * inputs.width + 1, dtype=torch.long)
        code = lib.fs_weight_rows(
            ctypes.byref(call), ctypes.c_int64(camera), *_addresses(indptr), ctypes.byref(plan.handle)
        )
        _check(code)
        count = int(indptr[-1])
        indices, weights = torch.empty(count, dtype=torch.long), torch.empty(count)
        _check(lib.fs_weight_entries(plan.handle, *_addresses(indptr, indices, weights)))
        found.append(WeightMatrix(indptr, indices, weights))
    del held
    return found


def _addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [_P(t.data_ptr()) for t in tensors]


def profile() -> dict[str, float]:
    """Milliseconds of each stage of this process' last call.

    Forward: ``project``, ``sort``, ``bin``, ``blend``. Backward, lift: ``tiles``, ``gather`` (feature sums to
    Gaussians), ``project_backward``.
    """
    values = (ctypes.c_double * 7)()
    _native.library().fs_timings(values)
    names = ("project", "sort", "bin", "blend", "tiles", "gather", "project_backward")
    return dict(zip(names, values, strict=True))
