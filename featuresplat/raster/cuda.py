"""The CUDA engine: kernels of cuda/gpu, compiled at run time for the device at hand; float32.

Forward: `_cuda_frame` (projection, depth order, tiles' lists), then `_cuda_forward` (blending). Backward:
`_cuda_backward`. The transpose and the queries: `_cuda_queries`. `_nvrtc` compiles and launches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featuresplat.raster import Contributions, WeightMatrix, _cuda_backward, _cuda_forward, _cuda_queries, _nvrtc
from featuresplat.raster._cuda_frame import check_tensors
from featuresplat.raster._inputs import RasterInputs
from featuresplat.types import RenderOutput

CHECKS_CAMERAS = True
"""A camera that is not finite is found on the device and told with the number of pairs."""

_TENSORS = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats", "Ks", "backgrounds")


def unavailable() -> str | None:
    """None when the kernels can be compiled and run here, else one sentence on why not."""
    return _nvrtc.unavailable()


def _contiguous(inputs: RasterInputs) -> RasterInputs:
    """The same inputs without gaps and without gradients, checked for this backend."""
    check_tensors(inputs)
    changed = {}
    for name in _TENSORS:
        t = getattr(inputs, name)
        if t is not None and (t.requires_grad or not t.is_contiguous()):
            changed[name] = t.detach().contiguous()
    return inputs.replace(**changed) if changed else inputs


def _graph_is_kept() -> bool:
    """Whether the backward pass under way was asked to leave what it needs (``retain_graph``); True where torch does
    not tell."""
    tells = getattr(getattr(torch._C, "_autograd", None), "_get_current_graph_task_keep_graph", None)
    return True if tells is None else tells()


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs: RasterInputs, result: dict, *tensors):  # pyright: ignore
        held = _contiguous(inputs)
        rendered = _cuda_forward.render(held, keep=True)
        result["meta"] = rendered.meta
        ctx.meta = rendered.meta if inputs.absgrad else None
        frame = rendered.frame
        # Tensors that came in or go out live on the graph, the engine's own with the frame.
        ctx.frame = frame
        ctx.inputs = inputs.replace(**dict.fromkeys(_TENSORS))
        ctx.depth_version = rendered.depth._version
        ctx.save_for_backward(*(getattr(held, n) for n in _TENSORS))
        ctx.set_materialize_grads(False)
        return rendered.rgb, rendered.features, rendered.alpha, rendered.depth

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):  # pyright: ignore
        inputs = ctx.inputs.replace(**dict(zip(_TENSORS, ctx.saved_tensors, strict=True)))
        wanted: dict[str, bool] = dict(zip(_TENSORS, ctx.needs_input_grad[2:], strict=True))
        frame, keep = ctx.frame, _graph_is_kept()
        if grads[3] is not None and frame.depth._version != ctx.depth_version:
            raise RuntimeError("the depth image was changed in place; its gradient needs it as it was drawn")
        if not keep:
            ctx.frame = None
        found = _cuda_backward.gradients(inputs, frame, ctx.meta, grads, wanted, keep)
        return (None, None, *(found.get(n) for n in _TENSORS))


def rasterize(inputs: RasterInputs) -> RenderOutput:
    """Forward pass, differentiable; see `featuresplat.raster.rasterize`."""
    tensors = [getattr(inputs, n) for n in _TENSORS]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        result: dict[str, Any] = {}
        rgb, features, alpha, depth = _Rasterize.apply(inputs, result, *tensors)  # pyright: ignore
        return RenderOutput(rgb, features, alpha, depth, result["meta"])
    r = _cuda_forward.render(_contiguous(inputs), keep=False)
    return RenderOutput(r.rgb, r.features, r.alpha, r.depth, r.meta)


def lift(inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Sums [N, D] and weights [N]; see `featuresplat.raster.lift`."""
    return _cuda_queries.lift(_geometry(inputs), maps.detach().contiguous(), power)


def topk(inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights [C, H, W, k]; see `featuresplat.raster.topk`."""
    return _cuda_queries.topk(_geometry(inputs), k)


def contributions(inputs: RasterInputs) -> Contributions:
    """Sums, maxima and pixel counts [C, N]; see `featuresplat.raster.contributions`."""
    return _cuda_queries.contributions(_geometry(inputs))


def weight_matrix(inputs: RasterInputs) -> list[WeightMatrix]:
    """CSR blending weights of each camera; see `featuresplat.raster.weight_matrix`."""
    return _cuda_queries.weight_matrix(_geometry(inputs))


def _geometry(inputs: RasterInputs) -> RasterInputs:
    return _contiguous(inputs.replace(colors=None, features=None, backgrounds=None, sh_degree=None))
