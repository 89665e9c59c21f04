"""Gradients.

One kernel goes back to front over each tile and leaves a record for each (Gaussian, tile) pair; another adds up each
Gaussian's records and differentiates the projection. Many feature channels get their own gradients from the transpose
of blending (`_cuda_lift`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _cuda_options as options
from featuresplat.raster._cuda_forward import Stops
from featuresplat.raster._cuda_frame import Frame, blocks
from featuresplat.raster._cuda_lift import transpose
from featuresplat.raster._inputs import RasterInputs
from featuresplat.types import RasterMeta

_GEOMETRY = ("means", "quats", "scales", "opacities", "viewmats")
_FIXED_FLOATS = 12
"""Floats of a record before those of feature channels; see backward.cu."""


def gradients(
    inputs: RasterInputs, frame: Frame, stops: Stops, meta: RasterMeta, alpha: Tensor, depth: Tensor, incoming,
    wanted: dict[str, bool],
) -> dict[str, Tensor]:  # fmt: skip
    """Gradients by name, of the inputs that are ``wanted``.

    Args:
        incoming: gradients of rgb, features, alpha and depth; None where the loss does not use them.
    """
    v_rgb, v_features, v_alpha, v_depth = (None if g is None else g.contiguous() for g in incoming)
    if inputs.geometry_grad == "none":
        wanted = {n: w and n not in _GEOMETRY for n, w in wanted.items()}
    if inputs.absgrad:
        meta.means2d_grad, meta.means2d_absgrad = torch.zeros_like(meta.means2d), torch.zeros_like(meta.means2d)
    out: dict[str, Tensor] = {}
    if wanted["backgrounds"] and inputs.backgrounds is not None:
        out["backgrounds"] = (
            torch.zeros_like(inputs.backgrounds) if v_rgb is None else ((1 - alpha) * v_rgb).sum((1, 2))
        )
    moves = any(wanted[n] for n in _GEOMETRY) or (inputs.absgrad and inputs.geometry_grad != "none")
    rows = inputs.features
    dim = 0 if rows is None else rows.shape[1]
    if dim == 0:
        v_features = None
    if rows is not None and wanted["features"]:
        out["features"] = torch.zeros_like(rows)
    features_move = v_features is not None and moves and inputs.geometry_grad == "full"
    colored = v_rgb is not None or ((v_alpha is not None or v_depth is not None) and moves)
    if not (colored or v_features is not None) or frame.pairs == 0:
        _no_geometry(inputs, wanted, out)
        return out
    if moves and inputs.settings.alpha_max >= 1 and inputs.settings.transmittance_min <= 0:
        raise FeaturesplatError(
            "gradients through opaque pixels need alpha_max below 1 or transmittance_min above 0",
            "Change one of the two settings.",
        )
    work = _Backward(inputs, frame, stops, meta, alpha, depth, (v_rgb, v_features, v_alpha, v_depth), wanted, out)
    work.run(moves, colored, features_move)
    return out


def _no_geometry(inputs: RasterInputs, wanted: dict[str, bool], out: dict[str, Tensor]) -> None:
    for name in (*_GEOMETRY, "colors"):
        tensor = getattr(inputs, name)
        if wanted[name] and tensor is not None:
            out[name] = torch.zeros_like(tensor)


class _Backward:
    """One backward pass."""

    def __init__(self, inputs, frame, stops, meta, alpha, depth, incoming, wanted, out):
        self.inputs, self.frame, self.stops, self.meta = inputs, frame, stops, meta
        self.alpha, self.depth = alpha, depth
        self.v_rgb, self.v_features, self.v_alpha, self.v_depth = incoming
        self.wanted, self.out = wanted, out

    def run(self, moves: bool, colored: bool, features_move: bool) -> None:
        """Fill ``out``."""
        rows, out = self.inputs.features, self.out
        dim = 0 if rows is None else rows.shape[1]
        few = self.v_features is not None and dim <= options.few(self.frame)
        row_grads = self.v_features is not None and "features" in out
        geometry = moves or (colored and self.wanted["colors"] and self.v_rgb is not None)
        beside = dim if few and (features_move or row_grads) else 0
        records = None
        if geometry or (few and row_grads):
            wide = features_move and not few
            records = self._records(colored, beside, wide, moves, features_move)
            if beside and row_grads:
                self._gather_rows(records, 0, beside)
        if row_grads and not few:
            assert self.v_features is not None
            transpose(self.frame, self.inputs, self.v_features, 1, out["features"], None, self.stops.last)
        if geometry and records is not None:
            self._gather(records, moves)
        else:
            _no_geometry(self.inputs, self.wanted, out)

    def _records(self, colored, channels, wide, moves, features_move) -> Tensor:
        """Queue the pass over the tiles; [pairs, floats]."""
        f, inputs = self.frame, self.inputs
        width = _FIXED_FLOATS + -(-channels // 4) * 4
        records = f.empty("the gradients of tiles", (f.pairs, width))
        s = inputs.settings
        rows = inputs.features
        dim = 0 if rows is None else rows.shape[1]
        absolute = inputs.absgrad and moves
        values: dict[str, Any] = {
            "offsets": f.offsets, "entries": f.entries, "slots": f.slots, "written": f.written, "rows": rows,
            "backgrounds": inputs.backgrounds, "v_rgb": self.v_rgb, "v_features": self.v_features,
            "v_alpha": self.v_alpha, "v_depth": self.v_depth, "alpha": self.alpha, "depth": self.depth,
            "last": self.stops.last, "left": self.stops.left, "records": records, "n": f.gaussians, "dim": dim,
            "width": f.width, "height": f.height, "tiles": f.tiles, "tiles_x": f.tiles_x,
            "alpha_max": s.alpha_max,
        }  # fmt: skip
        matrix = options.matrix_units(f)
        constants = {
            "COLORS": int(colored), "CHANNELS": channels, "WIDE": int(wide), "GEOMETRY": int(moves),
            "FEATURES_MOVE": int(features_move), "ABSOLUTE": int(absolute),
            "MATRIX": int(matrix), "ALIGNED": options.aligned(dim, rows, self.v_features),
        }  # fmt: skip
        constants |= options.backward_batch(constants, f.gpu.shared_limit)
        shared = options.backward_shared_bytes(constants)
        f.launch("blend_backward", "backward.cu", "BackwardArgs", f.all_tiles, 256, values, constants, shared)
        return records

    def _gather_rows(self, records: Tensor, channel: int, channels: int) -> None:
        f, out = self.frame, self.out["features"]
        f.launch("gather_rows", "gather.cu", "GatherRowsArgs", blocks(f.gaussians * channels, 256), 256, {
            "counts": f.counts, "starts": f.starts, "records": records, "v_rows": out, "n": f.gaussians,
            "dim": out.shape[1], "channel": channel, "cameras": f.cameras, "channels": channels,
            "record": records.shape[1], "offset": _FIXED_FLOATS,
        })  # fmt: skip

    def _gather(self, records: Tensor, moves: bool) -> None:
        """Queue the sums over each Gaussian's pairs, and the derivatives of the projection."""
        f, inputs, out, device = self.frame, self.inputs, self.out, self.frame.device
        for name in ("means", "quats", "scales", "opacities"):
            if self.wanted[name]:
                out[name] = f.empty(f"the gradient of {name}", getattr(inputs, name).shape)
        colors = inputs.colors
        kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
        if self.wanted["colors"] and colors is not None:
            out["colors"] = torch.zeros_like(colors)
        count, views = blocks(f.gaussians, 128), None
        if self.wanted["viewmats"]:
            views = torch.empty(count, f.cameras, 12, dtype=torch.float64, device=device)
        absolute = inputs.absgrad and moves
        f.launch("gather_gradients", "gather.cu", "GatherArgs", count, 128, {
            "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
            "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "splats": f.splats, "counts": f.counts,
            "starts": f.starts, "tile_keys": f.tile_keys, "records": records, "v_means": out.get("means"),
            "v_quats": out.get("quats"), "v_scales": out.get("scales"), "v_opacities": out.get("opacities"),
            "v_colors": out.get("colors"), "v_means2d": self.meta.means2d_grad if absolute else None,
            "v_means2d_abs": self.meta.means2d_absgrad if absolute else None, "v_views": views, "n": f.gaussians,
            "camera_colors": 3 * f.gaussians if kind == 1 and colors is not None and colors.ndim == 3 else 0,
            "eps2d": inputs.settings.eps2d, "cameras": f.cameras, "width": f.width, "height": f.height,
            "tiles": f.tiles, "tiles_x": f.tiles_x, "small_keys": int(f.tile_keys.dtype == torch.int16),
            "color_kind": kind if self.v_rgb is not None else 0, "sh_degree": inputs.sh_degree or 0,
            "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
            "antialiased": int(inputs.settings.antialiased), "record": records.shape[1], "moves": int(moves),
        })  # fmt: skip
        if views is not None:
            grad = torch.zeros_like(inputs.viewmats)
            grad[:, :3] = views.sum(0).reshape(f.cameras, 3, 4)
            out["viewmats"] = grad
