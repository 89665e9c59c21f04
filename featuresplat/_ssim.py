"""The native fused L1 + D-SSIM: its C signature and its place in autograd."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from featuresplat.raster import _native


@cache
def _function():
    """The C function, or None when the native library is missing or older than it."""
    if _native.unavailable() is not None:
        return None
    function = getattr(_native.library(), "fs_photometric", None)
    if function is not None:
        pointer, i64 = ctypes.c_void_p, ctypes.c_int64
        function.argtypes = [pointer] * 3 + [i64] * 3 + [ctypes.c_double] * 2 + [pointer] * 4
        function.restype = ctypes.c_int
    return function


def usable(render: Tensor, truth: Tensor) -> bool:
    """Whether the native code takes these images: float32 [H, W, 1..8] on the CPU, the truth without gradient."""
    fits = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in (render, truth))
    return fits and 1 <= render.shape[-1] <= 8 and not truth.requires_grad and _function() is not None


def photometric(render: Tensor, truth: Tensor, dssim: float, weight: Tensor | None, count: float) -> Tensor:
    """sum(weight * ((1 - dssim) |render - truth| + dssim (1 - SSIM))) / count, differentiable in ``render``.

    Args:
        render, truth: [H, W, C] float32, C at most 8.
        weight: [H, W, C] zeros and ones, or None for all ones; where it is 0 the two images must be equal.
        count: what the sum is divided by.
    """
    return _Photometric.apply(render, truth, dssim, weight, count)  # pyright: ignore[reportReturnType]


class _Photometric(torch.autograd.Function):
    @staticmethod
    def forward(ctx, render, truth, dssim, weight, count):
        render, truth = render.contiguous(), truth.contiguous()
        height, width, channels = render.shape
        wanted = ctx.needs_input_grad[0]
        grad = torch.empty_like(render) if wanted else None
        maps = torch.empty(3, *render.shape) if wanted else None
        weight = None if weight is None else weight.to(torch.float32).contiguous()
        sums = torch.empty(2, height, dtype=torch.float64)
        loss = torch.empty(1, dtype=torch.float64)
        pointers = [None if t is None else t.data_ptr() for t in (render, truth, weight, maps, sums, grad, loss)]
        _function()(*pointers[:3], height, width, channels, float(dssim), float(count), *pointers[3:])  # pyright: ignore
        if grad is not None:
            ctx.save_for_backward(grad)
        return loss[0].to(torch.float32)

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        (grad,) = ctx.saved_tensors
        return upstream[0] * grad, None, None, None, None
