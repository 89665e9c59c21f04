"""Blending forward: one pass for colour, alpha and depth, which also says where each pixel stops; features beside it
(few channels) or after it on the matrix units (many)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from featuresplat.raster import _cuda_options as options
from featuresplat.raster._cuda_frame import Frame, blocks, launch, make_frame
from featuresplat.raster._inputs import RasterInputs
from featuresplat.types import RasterMeta


@dataclass
class Rendered:
    """Images as in `RenderOutput`, and what the backward pass needs."""

    rgb: Tensor | None
    features: Tensor | None
    alpha: Tensor
    depth: Tensor
    meta: RasterMeta
    frame: Frame


def empty_meta(inputs: RasterInputs) -> RasterMeta:
    c, n, device = len(inputs.viewmats), len(inputs.means), inputs.means.device
    return RasterMeta(
        torch.empty(c, n, 2, device=device), torch.empty(c, n, 2, dtype=torch.int32, device=device),
        torch.empty(c, n, device=device), torch.empty(c, n, 3, device=device),
    )  # fmt: skip


def bad_rows(rows: Tensor, only_if: Tensor | None) -> Tensor:
    """[N] uint8, not 0 for rows with a number that is not finite."""
    out = torch.empty(len(rows), dtype=torch.uint8, device=rows.device)
    values = {"rows": rows, "bad": out, "only_if": only_if, "n": len(rows), "dim": rows.shape[1]}
    launch(rows.device, "check_rows", "check.cu", "CheckArgs", blocks(len(rows), 8), 256, values)
    return out


def greatest(frame: Frame, rows: Tensor) -> Tensor:
    """[1] int32, the bits of the greatest magnitude among the rows of drawn Gaussians."""
    out = torch.zeros(1, dtype=torch.int32, device=rows.device)
    frame.launch("greatest_magnitude", "check.cu", "GreatestArgs", min(2048, blocks(frame.splat_capacity, 8)), 256, {
        "rows": rows, "firsts": frame.firsts, "splats": frame.splats, "bits": out,
        "dim": rows.shape[1], "capacity": frame.splat_capacity, "cameras": frame.cameras,
    })  # fmt: skip
    return out


def render(inputs: RasterInputs, keep: bool) -> Rendered:
    """Queue a whole forward pass. ``inputs`` are contiguous; without ``keep`` the frame is not needed afterwards."""
    meta = empty_meta(inputs)
    rows = inputs.features
    late = rows is not None and options.checked_late(rows, device=inputs.means.device)
    exclude = None if rows is None or late or rows.numel() == 0 else partial(bad_rows, rows, None)
    # Where pixels stop is needed by whatever comes after the colours.
    last = keep or (rows is not None and rows.shape[1] > options.few())
    front = make_frame(inputs, meta, exclude, last=last)
    frame = front.frame
    shape = (frame.cameras, frame.height, frame.width)
    rgb = None if inputs.colors is None else frame.empty("the colour image", (*shape, 3))
    alpha, depth = frame.empty("the alpha image", (*shape, 1)), frame.empty("the depth image", (*shape, 1))
    features = None
    if inputs.features is not None:
        features = frame.empty("the feature image", (*shape, inputs.features.shape[1]))
    if keep:
        frame.left, frame.depth = frame.empty("the transmittances", (*shape, 1)), depth.detach()
    out = Rendered(rgb, features, alpha, depth, meta, frame)
    halves = inputs.precision == "fp16" and rows is not None and rows.shape[1] > options.few()
    while True:  # once more should the lists have had too little room
        sick = torch.zeros(1, dtype=torch.int32, device=frame.device) if late else None
        most = greatest(frame, rows) if halves and rows is not None else None
        blend(inputs, out, most, sick, None)
        if rows is not None and sick is not None:
            drop_bad(inputs, out, bad_rows(rows, sick), sick)
            blend(inputs, out, most, None, sick)
        if not front.settle():
            break
    return out


def drop_bad(inputs: RasterInputs, out: Rendered, bad: Tensor, sick: Tensor) -> None:
    """Queue taking the Gaussians that are ``bad`` [N] out of the tiles' lists, should ``sick`` [1] be set."""
    f, m = out.frame, out.meta
    f.launch("drop_bad", "check.cu", "DropArgs", blocks(f.splat_capacity, 256), 256, {
        "only_if": sick, "bad": bad, "firsts": f.firsts, "splats": f.splats, "means2d": m.means2d, "radii": m.radii,
        "depths": m.depths, "conics": m.conics, "n": f.gaussians, "capacity": f.splat_capacity, "cameras": f.cameras,
    })  # fmt: skip


def blend(
    inputs: RasterInputs, out: Rendered, most: Tensor | None, sick: Tensor | None, only_if: Tensor | None
) -> None:
    """Queue the blending of all images.

    Args:
        most: [1] bits of the greatest feature: asks for float16 operands.
        sick: [1] is set when a feature that is not finite came up.
        only_if: [1] everything is left as it is while this is 0.
    """
    dim = 0 if out.features is None else out.features.shape[-1]
    few = dim <= options.few()
    blend_pixels(inputs, out, 1, dim if few else 0, only_if)
    if few:
        return
    if options.matrix_units(out.frame):
        blend_features(inputs, out, most, sick, only_if)
    else:
        blend_pixels(inputs, out, 0, options.FEW, only_if)


def blend_features(
    inputs: RasterInputs, out: Rendered, most: Tensor | None, sick: Tensor | None, only_if: Tensor | None
) -> None:
    """Features on matrix units; see `blend`."""
    f, rows, image = out.frame, inputs.features, out.features
    assert rows is not None
    assert image is not None
    dim = image.shape[-1]
    shape = options.features_shape(dim, int(most is not None), f.gpu.arch)
    values = {
        **f.lists(), "rows": rows, "last": f.last,
        "most": most, "out": image, "sick": sick, "only_if": only_if, "dim": dim,
        "width": f.width, "height": f.height,
        "tiles": f.tiles, "tiles_x": f.tiles_x, "alpha_max": inputs.settings.alpha_max,
    }  # fmt: skip
    constants = {**shape, "HALF": int(most is not None), "ALIGNED": options.aligned(dim, rows, image)}
    grid = (f.all_tiles * 8 // shape["WARPS"], blocks(dim, 32 * shape["QUADS"]))
    f.launch("blend_features", "features.cu", "FeaturesArgs", grid, 32 * shape["WARPS"], values, constants)


def blend_pixels(inputs: RasterInputs, out: Rendered, rgb: int, channels: int, only_if: Tensor | None) -> None:
    """The scalar kernel: colours (``rgb`` = 1) and ``channels`` features a block."""
    f, s = out.frame, inputs.settings
    dim = 0 if out.features is None else out.features.shape[-1]
    values: dict[str, Any] = {
        **f.lists(), "rows": inputs.features,
        "backgrounds": inputs.backgrounds, "rgb": out.rgb, "features": out.features, "alpha": out.alpha,
        "depth": out.depth, "last": f.last, "left": f.left, "only_if": only_if, "dim": dim,
        "width": f.width, "height": f.height, "tiles": f.tiles, "tiles_x": f.tiles_x, "alpha_max": s.alpha_max,
        "transmittance_min": s.transmittance_min,
    }  # fmt: skip
    grid = (f.all_tiles, blocks(dim, channels) if channels else 1)
    f.launch("blend", "blend.cu", "BlendArgs", grid, 256, values, {"RGB": rgb, "CHANNELS": channels})
