"""Gradients.

One kernel goes back to front over each patch of pixels and adds up what each splat receives; another differentiates the
projection. Many feature channels get their own gradients from the transpose of blending (`_cuda_lift`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _cuda_options as options
from featuresplat.raster._cuda_frame import Frame, blocks
from featuresplat.raster._cuda_lift import transpose
from featuresplat.raster._cuda_memory import Cleared
from featuresplat.raster._inputs import RasterInputs
from featuresplat.types import RasterMeta

_GEOMETRY = ("means", "quats", "scales", "opacities", "viewmats")
_GATHERED = ("means", "quats", "scales", "opacities", "colors")
_FIXED_FLOATS = 12
"""Floats that a splat receives before those of feature channels; see backward.cuh."""


def gradients(
    inputs: RasterInputs, frame: Frame, meta: RasterMeta, incoming, wanted: dict[str, bool], keep: bool
) -> dict[str, Tensor]:
    """Gradients by name, of the inputs that are ``wanted``.

    Args:
        incoming: gradients of rgb, features, alpha and depth; None where the loss does not use them.
        keep: whether the frame will be used again; else its memory is let go piece by piece to make room.
    """
    v_rgb, v_features, v_alpha, v_depth = (None if g is None else g.contiguous() for g in incoming)
    if inputs.geometry_grad == "none":
        wanted = {n: w and n not in _GEOMETRY for n, w in wanted.items()}
    if inputs.absgrad:
        meta.means2d_grad, meta.means2d_absgrad = torch.zeros_like(meta.means2d), torch.zeros_like(meta.means2d)
    out: dict[str, Tensor] = {}
    if wanted["backgrounds"] and inputs.backgrounds is not None:
        out["backgrounds"] = torch.zeros_like(inputs.backgrounds)
        if v_rgb is not None:
            out["backgrounds"] = (frame.left_of_pixels() * v_rgb).sum((1, 2))
    moves = any(wanted[n] for n in _GEOMETRY) or (inputs.absgrad and inputs.geometry_grad != "none")
    rows = inputs.features
    dim = 0 if rows is None else rows.shape[1]
    if dim == 0:
        v_features = None
    features_move = v_features is not None and moves and inputs.geometry_grad == "full"
    colored = v_rgb is not None or ((v_alpha is not None or v_depth is not None) and moves)
    if not (colored or v_features is not None) or frame.pairs == 0:
        _no_geometry(inputs, wanted, out)
        if rows is not None and wanted["features"]:
            out["features"] = torch.zeros_like(rows)
        return out
    if moves and inputs.settings.alpha_max >= 1 and inputs.settings.transmittance_min <= 0:
        raise FeaturesplatError(
            "gradients through opaque pixels need alpha_max below 1 or transmittance_min above 0",
            "Change one of the two settings.",
        )
    work = _Backward(inputs, frame, meta, (v_rgb, v_features, v_alpha, v_depth), wanted, out, keep)
    work.run(moves, colored, features_move)
    return out


def _no_geometry(inputs: RasterInputs, wanted: dict[str, bool], out: dict[str, Tensor]) -> None:
    for name in (*_GEOMETRY, "colors"):
        tensor = getattr(inputs, name)
        if wanted[name] and tensor is not None:
            out[name] = torch.zeros_like(tensor)


class _Backward:
    """One backward pass."""

    def __init__(self, inputs, frame, meta, incoming, wanted, out, keep):
        self.inputs, self.frame, self.meta = inputs, frame, meta
        self.v_rgb, self.v_features, self.v_alpha, self.v_depth = incoming
        self.wanted, self.out, self.keep = wanted, out, keep

    def run(self, moves: bool, colored: bool, features_move: bool) -> None:
        """Fill ``out``. What is used up is let go before there has to be room for more."""
        inputs, out, f = self.inputs, self.out, self.frame
        rows = inputs.features
        dim = 0 if rows is None else rows.shape[1]
        few = self.v_features is not None and dim <= options.few()
        row_grads = self.v_features is not None and self.wanted["features"]
        geometry = moves or (colored and self.wanted["colors"] and self.v_rgb is not None)
        beside = dim if few and (features_move or row_grads) else 0
        cleared = None
        if rows is not None and self.wanted["features"]:
            cleared = Cleared("the gradient of features", tuple(rows.shape), rows.device)
        try:
            if few and cleared is not None:
                out["features"], cleared = cleared.wait(), None
            sums = None
            if geometry or (few and row_grads):
                wide = features_move and not few
                sums = self._sums(colored and geometry, geometry, beside, wide, moves, features_move)
            if not self.keep:
                f.left = f.depth = None
                if few or not row_grads:
                    f.slab = None
            if geometry and sums is not None:
                self._gather(sums, moves)
            else:
                _no_geometry(inputs, self.wanted, out)
            if beside and row_grads and sums is not None and options.deterministic():
                self._gather_rows(sums, out["features"])
            del sums  # room for the transpose
        finally:
            if cleared is not None:
                out["features"] = cleared.wait()
        if row_grads and not few:
            assert self.v_features is not None
            transpose(f, inputs, self.v_features, 1, out["features"], None, f.last)

    def _make_room(self) -> None:
        """For what `_gather` adds to."""
        found = []
        for name in _GATHERED:
            tensor = getattr(self.inputs, name)
            if self.wanted[name] and tensor is not None:
                self.out[name] = self.frame.empty(f"the gradient of {name}", tensor.shape)
                found.append(self.out[name])
        if found:
            torch._foreach_zero_(found)  # one kernel for all  # pyright: ignore[reportPrivateImportUsage]

    def _sums(
        self, colored: bool, geometry: bool, channels: int, wide: bool, moves: bool, features_move: bool
    ) -> Tensor | None:
        """Queue the pass over the tiles: what each splat receives, [splats, floats]; see backward.cuh. Gradients of few
        feature channels go where they belong at once, unless they are to be added up in order. None when there is
        nothing else."""
        f, inputs = self.frame, self.inputs
        rows = inputs.features
        dim = 0 if rows is None else rows.shape[1]
        matrix, ordered = options.matrix_units(f), options.deterministic()
        width = _FIXED_FLOATS + (-(-channels // 4) * 4 if ordered else 0)
        hit_ends, total = self._hits() if ordered else (None, f.splat_capacity)
        sums = None
        if ordered or geometry:
            sums = f.empty("the gradients of splats", (total, width)).zero_()
        values: dict[str, Any] = {
            **f.lists(), "rows": rows,
            "backgrounds": inputs.backgrounds, "v_rgb": self.v_rgb, "v_features": self.v_features,
            "v_alpha": self.v_alpha, "v_depth": self.v_depth, "depth": f.depth,
            "last": f.last, "left": f.left, "written": f.written, "hit_ends": hit_ends, "sums": sums,
            "v_rows": self.out.get("features") if channels and not ordered else None,
            "dim": dim, "width": f.width, "height": f.height, "tiles": f.tiles,
            "tiles_x": f.tiles_x, "alpha_max": inputs.settings.alpha_max,
        }  # fmt: skip
        constants = {
            "COLORS": int(colored), "CHANNELS": channels, "WIDE": int(wide), "GEOMETRY": int(moves),
            "FEATURES_MOVE": int(features_move), "ABSOLUTE": int(inputs.absgrad and moves), "MATRIX": int(matrix),
            "ORDERED": int(ordered), "ALIGNED": options.aligned(dim, rows, self.v_features),
        }  # fmt: skip
        constants |= options.backward_shape(constants, f.gpu.shared_limit, dim)
        shared, warps = options.backward_shared_bytes(constants), constants["WARPS"]
        grid = f.all_tiles * 8 // warps
        f.launch("blend_backward", "backward.cuh", "BackwardArgs", grid, 32 * warps, values, constants, shared)
        if hit_ends is None or sums is None:
            return sums
        out = f.empty("the gradients of splats", (f.splat_capacity, width))
        self._over_hits(
            "sum_hits", blocks(f.splat_capacity * width // 4, 256), hit_ends, records=sums, sums=out, record=width
        )
        return out

    def _hits(self) -> tuple[Tensor, int]:
        """Where the records of each pair end, one for each patch it reaches, and how many there are."""
        f = self.frame
        hits = torch.empty(f.pairs, dtype=torch.int64, device=f.device)
        self._over_hits("count_hits", blocks(f.pairs, 256), hits)
        ends = hits.cumsum(0)
        return ends, int(ends[-1])

    def _over_hits(self, kernel: str, grid: int, hits: Tensor, **values) -> None:
        f = self.frame
        f.launch(kernel, "gather.cu", "HitsArgs", grid, 256, {
            "masks": f.masks, "written": f.written, "ends": f.ends, "hits": hits, "records": None, "sums": None,
            "pairs": f.pairs, "splats": f.splat_capacity, "record": 0,
        } | values)  # fmt: skip

    def _gather_rows(self, sums: Tensor, v_rows: Tensor) -> None:
        f, dim = self.frame, v_rows.shape[1]
        for camera in range(f.cameras):
            grid = blocks(min(f.gaussians, f.splat_capacity) * dim, 256)
            f.launch("gather_rows", "gather.cu", "RowsArgs", grid, 256, {
                "firsts": f.firsts, "splats": f.splats, "sums": sums, "v_rows": v_rows, "dim": dim, "camera": camera,
                "record": sums.shape[1],
            })  # fmt: skip

    def _gather(self, sums: Tensor, moves: bool) -> None:
        """Queue the derivatives of the projection."""
        self._make_room()
        f, inputs, out, device = self.frame, self.inputs, self.out, self.frame.device
        colors = inputs.colors
        kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
        count, views = blocks(min(f.gaussians, f.splat_capacity), 128), None
        if self.wanted["viewmats"]:
            views = torch.zeros(f.cameras, count, 12, dtype=torch.float64, device=device)
        absolute = inputs.absgrad and moves
        values = {
            "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
            "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "firsts": f.firsts, "splats": f.splats,
            "sums": sums, "v_means": out.get("means"), "v_quats": out.get("quats"), "v_scales": out.get("scales"),
            "v_opacities": out.get("opacities"), "v_colors": out.get("colors"),
            "v_means2d": self.meta.means2d_grad if absolute else None,
            "v_means2d_abs": self.meta.means2d_absgrad if absolute else None, "v_views": None, "n": f.gaussians,
            "camera_colors": 3 * f.gaussians if kind == 1 and colors is not None and colors.ndim == 3 else 0,
            "eps2d": inputs.settings.eps2d, "camera": 0, "width": f.width, "height": f.height,
            "color_kind": kind if self.v_rgb is not None else 0, "sh_degree": inputs.sh_degree or 0,
            "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
            "antialiased": int(inputs.settings.antialiased), "record": sums.shape[1], "moves": int(moves),
        }  # fmt: skip
        for camera in range(f.cameras):
            values |= {"camera": camera, "v_views": None if views is None else views[camera]}
            f.launch("gather_gradients", "gather.cu", "GatherArgs", count, 128, values)
        if views is not None:
            grad = torch.zeros_like(inputs.viewmats)
            grad[:, :3] = views.sum(1).reshape(f.cameras, 3, 4)
            out["viewmats"] = grad
