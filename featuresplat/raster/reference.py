"""The truth: the operator as tiled pure torch, float32 or float64, on any torch device.

Every other backend is tested against this one, so it is written to be read: `_view.py` is the geometry of one
camera, `_blend_chunk` is the blending of one tile. Tiles are processed one at a time, in chunks of Gaussians,
as a matrix of weights [pixels, K] and one matrix product with everything that is blended. The backward pass
visits the tiles again, recomputes their weights and lets autograd differentiate them, so that memory stays
bounded by one chunk and gradients are added into the Gaussians once per tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featuresplat.geometry import sh_to_rgb
from featuresplat.raster import Contributions, WeightMatrix
from featuresplat.raster._inputs import RasterInputs, RasterSettings
from featuresplat.raster._view import TILE, View, view_of
from featuresplat.types import RasterMeta, RenderOutput

CHUNK = 512
"""Gaussians of a tile blended at once: a [256, CHUNK] matrix is the largest there is."""


def unavailable() -> str | None:
    """None: wherever torch runs, this runs."""
    return None


class _Tile(NamedTuple):
    rows: slice
    cols: slice
    chunks: tuple[Tensor, ...]  # ranks, near to far


def _tiles(view: View) -> Iterator[_Tile]:
    """The tiles that have Gaussians, row-major."""
    across = -(-view.width // TILE)
    for t, (start, end) in enumerate(zip(view.offsets, view.offsets[1:], strict=False)):
        if start == end:
            continue
        y, x = TILE * (t // across), TILE * (t % across)
        rows, cols = slice(y, min(y + TILE, view.height)), slice(x, min(x + TILE, view.width))
        yield _Tile(rows, cols, view.ranks[start:end].split(CHUNK))


class _Weights(NamedTuple):
    """Of one chunk, [h, w, K]; ``left`` [h, w] is the transmittance after it, 0 where a pixel stopped."""

    weights: Tensor
    counted: Tensor
    sigma: Tensor
    left: Tensor


def _blend_chunk(tile: _Tile, splats: tuple[Tensor, ...], left: Tensor | None, s: RasterSettings) -> _Weights:
    """Blending weights alpha_k prod_{j<k} (1 - alpha_j) of one chunk of Gaussians at a tile's pixels.

    Args:
        splats: means2d [K, 2], conics [K, 3] and opacities [K], near to far.
        left: [h, w] transmittance before the chunk; None is one everywhere.
    """
    means2d, conics, opacities = splats
    a, b, c = conics.unbind(-1)
    dx, dy = _offsets(tile, means2d)
    # The square terms are per column or per row of pixels: only the mixed term is per pixel.
    sigma = (0.5 * a * dx * dx) + (0.5 * c * dy * dy)[:, None] + (b * dx) * dy[:, None]  # [h, w, K]
    # Rounding may take sigma below zero, for a very large Gaussian so far that the exponential overflows.
    alpha = (opacities * torch.exp(-sigma.clamp_min(0))).clamp_max(s.alpha_max)
    counted = (sigma <= 0.5 * s.extent**2) & (alpha >= s.alpha_min)
    alpha = alpha * counted  # several times as fast as torch.where, and alpha is finite
    after = torch.cumprod(1 - alpha, dim=-1)
    if left is None:
        left = torch.ones_like(after[..., 0])
    else:
        after = left[..., None] * after
    before = torch.cat([left[..., None], after[..., :-1]], dim=-1)
    going = after > s.transmittance_min  # a prefix: the transmittance never rises
    weights = alpha * before * going
    return _Weights(weights, counted & going, sigma, after[..., -1] * going[..., -1])


def _offsets(tile: _Tile, means2d: Tensor) -> tuple[Tensor, Tensor]:
    """Gaussian centre minus pixel centre, [w, K] along x and [h, K] along y."""
    options: dict[str, Any] = {"dtype": means2d.dtype, "device": means2d.device}
    xs = torch.arange(tile.cols.start, tile.cols.stop, **options) + 0.5
    ys = torch.arange(tile.rows.start, tile.rows.stop, **options) + 0.5
    return means2d[:, 0] - xs[:, None], means2d[:, 1] - ys[:, None]


@torch.no_grad()
def _all_weights(view: View) -> Iterator[tuple[_Tile, Tensor, _Weights]]:
    """(tile, ranks [K], weights) for every chunk of every tile, until all pixels of the tile have stopped."""
    p = view.splats
    for tile in _tiles(view):
        left = None
        for ranks in tile.chunks:
            splats = tuple(t.index_select(0, ranks) for t in p[:3])
            found = _blend_chunk(tile, splats, left, view.settings)
            yield tile, ranks, found
            left = found.left
            if not left.any():
                break


class _Absgrad:
    """Where the backward pass of a call leaves the gradients of the projected centres."""

    def __init__(self, meta: RasterMeta, camera: int, ids: Tensor):
        self.meta, self.camera, self.ids = meta, camera, ids

    def store(self, grad: Tensor, absolute: Tensor) -> None:
        m = self.meta
        if m.means2d_grad is None or m.means2d_absgrad is None:
            m.means2d_grad, m.means2d_absgrad = torch.zeros_like(m.means2d), torch.zeros_like(m.means2d)
        m.means2d_grad[self.camera].index_copy_(0, self.ids, grad)
        m.means2d_absgrad[self.camera].index_copy_(0, self.ids, absolute)


class _Blend(torch.autograd.Function):
    """Blend ``values`` [V, X] and ``features`` [N, D] of one view into [H, W, X] and [H, W, D]."""

    @staticmethod
    def forward(ctx, view: View, split: bool, absgrad: _Absgrad | None, *tensors):  # pyright: ignore
        means2d, _, _, values, features = tensors
        out = means2d.new_zeros(view.height, view.width, values.shape[1])
        out_f = None if features is None else means2d.new_zeros(view.height, view.width, features.shape[1])
        for tile, ranks, found in _all_weights(view):
            w = found.weights
            if features is None or out_f is None:
                out[tile.rows, tile.cols] += w @ values.index_select(0, ranks)
                continue
            both = torch.cat([values.index_select(0, ranks), features.index_select(0, view.ids[ranks])], dim=1)
            blended = w @ both
            out[tile.rows, tile.cols] += blended[..., : out.shape[-1]]
            out_f[tile.rows, tile.cols] += blended[..., out.shape[-1] :]
        ctx.view, ctx.split, ctx.absgrad = view, split, absgrad
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        return out, out_f

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g_out: Tensor | None, g_feat: Tensor | None):  # pyright: ignore
        view, needs = ctx.view, list(ctx.needs_input_grad[3:])
        if ctx.absgrad is not None:
            needs[0] = True
        grads = [torch.zeros_like(t) if n else None for t, n in zip(ctx.saved_tensors, needs, strict=True)]
        absolute = None if ctx.absgrad is None else torch.zeros_like(view.splats.means2d)
        for tile in _tiles(view):
            lefts = _lefts(tile, view)
            g_left = None
            for ranks, left in reversed(list(zip(tile.chunks, lefts, strict=False))):
                g_left = _chunk_backward(ctx, tile, ranks, left, g_left, (g_out, g_feat), grads, absolute)
        if ctx.absgrad is not None:
            ctx.absgrad.store(grads[0], absolute)
        return (None, None, None, *grads)


@torch.no_grad()
def _lefts(tile: _Tile, view: View) -> list[Tensor | None]:
    """The transmittance before each chunk that any pixel of the tile still reaches."""
    lefts: list[Tensor | None] = [None]
    for ranks in tile.chunks[:-1]:
        splats = tuple(t.index_select(0, ranks) for t in view.splats[:3])
        left = _blend_chunk(tile, splats, lefts[-1], view.settings).left
        if not left.any():
            break
        lefts.append(left)
    return lefts


def _chunk_backward(ctx, tile: _Tile, ranks, left, g_left, g_images, grads, absolute) -> Tensor | None:
    """Differentiate one chunk, add into ``grads``; the gradient of the transmittance before it, [h, w]."""
    needs = [g is not None for g in grads]
    moves = any(needs[:3])  # whether any gradient goes through the weights
    rows = [ranks, ranks, ranks, ranks, ctx.view.ids[ranks]]
    leaves: list[Any] = [
        None if t is None else t.detach().index_select(0, r).requires_grad_(n)
        for t, r, n in zip(ctx.saved_tensors, rows, needs, strict=True)
    ]
    if left is not None:
        left = left.detach().requires_grad_(moves)
    with torch.enable_grad():
        found = _blend_chunk(tile, tuple(leaves[:3]), left, ctx.view.settings)  # pyright: ignore
        w = found.weights
        outputs, seeds = [], []
        g_out, g_feat = (None if g is None else g[tile.rows, tile.cols] for g in g_images)
        if g_out is not None and g_feat is not None and not ctx.split:
            outputs, seeds = (
                [w @ torch.cat([leaves[3], leaves[4]], dim=1)],
                [torch.cat([g_out, g_feat], dim=-1)],
            )
        else:
            if g_out is not None:
                outputs, seeds = [w @ leaves[3]], [g_out]
            if g_feat is not None:
                outputs, seeds = [*outputs, (w.detach() if ctx.split else w) @ leaves[4]], [*seeds, g_feat]
        if g_left is not None:
            outputs, seeds = [*outputs, found.left], [*seeds, g_left]
        wanted = [t for t in (*leaves, left, found.sigma) if t is not None and t.requires_grad]
        graph = [(o, g) for o, g in zip(outputs, seeds, strict=True) if o.requires_grad]
        if not graph or not wanted:
            return None
        given = torch.autograd.grad([o for o, _ in graph], wanted, [g for _, g in graph], allow_unused=True)
    found_grads = {id(t): g for t, g in zip(wanted, given, strict=True)}
    for grad, leaf, row in zip(grads, leaves, rows, strict=True):
        g = None if leaf is None else found_grads.get(id(leaf))
        if grad is not None and g is not None:
            grad.index_add_(0, row, g)
    g_sigma = found_grads.get(id(found.sigma))
    if absolute is not None and g_sigma is not None:
        dx, dy = _offsets(tile, leaves[0].detach())  # pyright: ignore
        a, b, c = leaves[1].detach().unbind(-1)  # pyright: ignore
        along = (g_sigma * (a * dx + b * dy[:, None]), g_sigma * (b * dx + (c * dy)[:, None]))
        absolute.index_add_(0, ranks, torch.stack([t.abs().sum((0, 1)) for t in along], dim=-1))
    return None if left is None else found_grads.get(id(left))


def _view_colors(inputs: RasterInputs, camera: int, ids: Tensor) -> Tensor | None:
    """[V, 3] colours of the Gaussians ``ids`` as this camera sees them."""
    colors = inputs.colors
    if colors is None:
        return None
    if inputs.sh_degree is None:
        return (colors[camera] if colors.ndim == 3 else colors).index_select(0, ids)
    R, t = inputs.viewmats[camera, :3, :3], inputs.viewmats[camera, :3, 3]
    centre = -(R.T @ t)
    directions = torch.nn.functional.normalize(inputs.means.index_select(0, ids) - centre, dim=-1)
    return sh_to_rgb(colors.index_select(0, ids), directions, inputs.sh_degree)


def rasterize(inputs: RasterInputs) -> RenderOutput:
    """Forward pass, differentiable; see `featuresplat.raster.rasterize`."""
    if inputs.geometry_grad == "none":
        frozen = ("means", "quats", "scales", "opacities", "viewmats")
        inputs = inputs.replace(**{name: getattr(inputs, name).detach() for name in frozen})
    n, cameras = len(inputs.means), len(inputs.viewmats)
    new = inputs.means.new_zeros
    radii = torch.zeros(cameras, n, 2, dtype=torch.int32, device=inputs.means.device)
    meta = RasterMeta(new(cameras, n, 2), radii, new(cameras, n), new(cameras, n, 3))
    absgrad = inputs.absgrad and inputs.geometry_grad != "none"
    if inputs.absgrad and not absgrad:
        meta.means2d_grad, meta.means2d_absgrad = new(cameras, n, 2), new(cameras, n, 2)
    frames: list[tuple[Tensor, Tensor | None]] = []
    for camera in range(cameras):
        view = view_of(inputs, camera)
        p = view.splats
        for whole, part in zip((meta.means2d, meta.radii, meta.depths, meta.conics),
                               (p.means2d, view.radii, p.depths, p.conics), strict=True):  # fmt: skip
            whole[camera].index_copy_(0, view.ids, part.detach())
        colors = _view_colors(inputs, camera, view.ids)
        values = torch.stack([torch.ones_like(p.depths), p.depths], dim=-1)
        values = values if colors is None else torch.cat([values, colors], dim=-1)
        sink = _Absgrad(meta, camera, view.ids) if absgrad else None
        split = inputs.geometry_grad == "rgb"
        blended = _Blend.apply(view, split, sink, p.means2d, p.conics, p.opacities, values, inputs.features)
        frames.append(blended)  # pyright: ignore[reportArgumentType]
    h, w = inputs.height, inputs.width
    out = torch.stack([f[0] for f in frames]) if frames else new(0, h, w, 2 if inputs.colors is None else 5)
    alpha, rgb, features = out[..., :1], None, None
    shown = alpha > 0
    depth = torch.where(shown, out[..., 1:2] / torch.where(shown, alpha, 1), 0)
    if inputs.colors is not None:
        rgb = out[..., 2:5]
        if inputs.backgrounds is not None:
            rgb = rgb + (1 - alpha) * inputs.backgrounds[:, None, None, :]
    if inputs.features is not None:
        maps = [f[1] for f in frames if f[1] is not None]
        features = torch.stack(maps) if maps else new(0, h, w, inputs.features.shape[1])
    return RenderOutput(rgb, features, alpha, depth, meta)


@torch.no_grad()
def lift(inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """The transpose: sums [N, D] and weights [N]; see `featuresplat.raster.lift`."""
    n = len(inputs.means)
    sums, weights = maps.new_zeros(n, maps.shape[-1]), maps.new_zeros(n)
    for camera in range(len(inputs.viewmats)):
        view = view_of(inputs, camera)
        for tile, ranks, found in _all_weights(view):
            w = found.weights.flatten(0, 1).pow(power)  # [pixels, K]
            ids = view.ids[ranks]
            sums.index_add_(0, ids, w.T @ maps[camera, tile.rows, tile.cols].flatten(0, 1))
            weights.index_add_(0, ids, w.sum(0))
    return sums, weights


def _pixel_ids(tile: _Tile, width: int, device: torch.device) -> Tensor:
    """[h, w] row-major pixel numbers of a tile."""
    rows = torch.arange(tile.rows.start, tile.rows.stop, device=device)
    return rows[:, None] * width + torch.arange(tile.cols.start, tile.cols.stop, device=device)


@torch.no_grad()
def weight_matrix(inputs: RasterInputs) -> list[WeightMatrix]:
    """CSR blending weights of each camera; see `featuresplat.raster.weight_matrix`."""
    device, count = inputs.means.device, inputs.width * inputs.height
    matrices = []
    for camera in range(len(inputs.viewmats)):
        view = view_of(inputs, camera)
        pixels = [torch.zeros(0, dtype=torch.long, device=device)]
        ids, weights = [pixels[0]], [inputs.means.new_zeros(0)]
        for tile, ranks, found in _all_weights(view):
            y, x, k = found.counted.nonzero(as_tuple=True)
            pixels.append(_pixel_ids(tile, inputs.width, device)[y, x])
            ids.append(view.ids[ranks[k]])
            weights.append(found.weights[y, x, k])
        pixel = torch.cat(pixels)
        order = torch.argsort(pixel, stable=True)  # chunks came near to far, and stay so within a pixel
        indptr = torch.zeros(count + 1, dtype=torch.long, device=device)
        indptr[1:] = torch.bincount(pixel, minlength=count).cumsum(0)
        matrices.append(WeightMatrix(indptr, torch.cat(ids)[order], torch.cat(weights)[order]))
    return matrices


@torch.no_grad()
def topk(inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest weights of each pixel; see `featuresplat.raster.topk`."""
    shape = (len(inputs.viewmats), inputs.height, inputs.width, k)
    best_ids = torch.full(shape, -1, dtype=torch.long, device=inputs.means.device)
    best = inputs.means.new_zeros(shape)
    for camera in range(len(inputs.viewmats)):
        view = view_of(inputs, camera)
        for tile, ranks, found in _all_weights(view):
            here = (camera, tile.rows, tile.cols)
            ids = torch.where(found.counted, view.ids[ranks], -1)
            # Earlier chunks stand first, so a stable sort keeps the nearer one of equal weights in front.
            weights, order = torch.cat([best[here], found.weights], -1).sort(stable=True, dim=-1, descending=True)
            best[here] = weights[..., :k]
            best_ids[here] = torch.cat([best_ids[here], ids], -1).gather(-1, order)[..., :k]
    return best_ids, best


@torch.no_grad()
def contributions(inputs: RasterInputs) -> Contributions:
    """Sums, maxima and pixel counts [C, N]; see `featuresplat.raster.contributions`."""
    shape = (len(inputs.viewmats), len(inputs.means))
    sums, maxima = inputs.means.new_zeros(shape), inputs.means.new_zeros(shape)
    pixels = torch.zeros(shape, dtype=torch.long, device=inputs.means.device)
    for camera in range(shape[0]):
        view = view_of(inputs, camera)
        for _, ranks, found in _all_weights(view):
            ids = view.ids[ranks]
            sums[camera].index_add_(0, ids, found.weights.sum((0, 1)))
            maxima[camera, ids] = maxima[camera, ids].maximum(found.weights.amax((0, 1)))
            pixels[camera].index_add_(0, ids, found.counted.sum((0, 1)))
    return Contributions(sums, maxima, pixels)
