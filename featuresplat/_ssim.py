"""L1 + D-SSIM and its gradient in one pass, on the CPU's engine (cuda/ssim.h) or the GPU's (cuda/gpu/ssim.cu)."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from featuresplat.raster import _native, _nvrtc

TILE = 16


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
    """Whether one pass does these images: float32 on one device, the truth without gradient; [H, W, 1..8] on a CPU."""
    fits = all(t.dtype == torch.float32 for t in (render, truth)) and not truth.requires_grad
    if not fits or render.device != truth.device or render.numel() == 0:
        return False
    if render.device.type == "cpu":
        return 1 <= render.shape[-1] <= 8 and _function() is not None
    return render.device.type == "cuda" and render.shape[-1] <= 65535 and _nvrtc.unavailable() is None


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
        weight = None if weight is None else weight.to(torch.float32).contiguous()
        one_pass = _on_cpu if render.device.type == "cpu" else _on_gpu
        loss, grad = one_pass(render, truth, float(dssim), weight, float(count), ctx.needs_input_grad[0])
        if grad is not None:
            ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, *upstream):
        (grad,) = ctx.saved_tensors
        return upstream[0] * grad, None, None, None, None


def _on_cpu(render, truth, dssim: float, weight, count: float, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The loss and, if ``wanted``, its gradient; tensors are contiguous."""
    height, width, channels = render.shape
    grad = torch.empty_like(render) if wanted else None
    maps = torch.empty(3, *render.shape) if wanted else None
    sums = torch.empty(2, height, dtype=torch.float64)
    loss = torch.empty(1, dtype=torch.float64)
    pointers = [None if t is None else t.data_ptr() for t in (render, truth, weight, maps, sums, grad, loss)]
    _function()(*pointers[:3], height, width, channels, dssim, count, *pointers[3:])  # pyright: ignore
    return loss[0].to(torch.float32), grad


class _Args(ctypes.Structure):
    """``SsimArgs`` of cuda/gpu/ssim.cu."""

    _fields_ = [
        *[(name, ctypes.c_void_p) for name in ("render", "truth", "weight", "maps", "losses", "grad")],
        *[(name, ctypes.c_int32) for name in ("height", "width", "channels")],
        *[(name, ctypes.c_float) for name in ("dssim", "scale")],
    ]


def _on_gpu(render, truth, dssim: float, weight, count: float, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The same on the GPU, without waiting for it."""
    height, width, channels = render.shape
    grid = (-(-width // TILE), -(-height // TILE), channels)
    grad = torch.empty_like(render) if wanted else None
    maps = render.new_empty(3, *render.shape) if wanted else None
    losses = render.new_empty(grid[0] * grid[1] * grid[2], dtype=torch.float64)
    pointers = [None if t is None else t.data_ptr() for t in (render, truth, weight, maps, losses, grad)]
    args = _Args(*pointers, height, width, channels, dssim, 1 / count)
    gpu = _nvrtc.launcher(render.device)
    gpu.launch("ssim_maps", grid, TILE * TILE, 0, args)
    if grad is not None:
        gpu.launch("ssim_grad", grid, TILE * TILE, 0, args)
    return losses.sum().to(torch.float32), grad
