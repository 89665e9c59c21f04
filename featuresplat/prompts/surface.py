"""What of a scene can be seen: its surface as views meet it, without the haze before their lenses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featuresplat import raster
from featuresplat.types import Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene


GLANCE = 8
"""How many Gaussians of a pixel a glance looks at."""
AROUND = 32
"""Pixels on each side of one that is looked at alone."""
FAINT = 0.1
"""Weight of a pixel up to which hardly anything is there."""


@dataclass(frozen=True)
class Surface:
    """What one camera meets first.

    Attributes:
        depth: float64 [H, W] camera z at which half of a pixel's weight has been met; 0 where there is nothing.
        weight: float64 [H, W] the pixel's weight, haze left out.
        ids: int64 [H, W] the Gaussian met there, -1 where there is none.
        solid: bool [N], False = haze to this camera.
    """

    depth: np.ndarray
    weight: np.ndarray
    ids: np.ndarray
    solid: np.ndarray


def snapshot(scene: Scene, camera: Cameras | None = None) -> Gaussians:
    """The Gaussians at a camera's time."""
    time = None if camera is None or camera.times is None else float(camera.times[0])
    return scene.at(time)


def solid(gaussians: Gaussians, camera: Cameras, weights: Tensor | None = None, settings=None) -> Tensor:
    """bool [N]: not haze to this camera.

    Training hides errors of single views in huge, faint Gaussians right before their lenses. Colours suffer little
    from them, masks and depth do: haze is what spreads over a third of the image at less than 0.6 of the median depth.

    Args:
        weights: [N] summed blending weights in this camera; computed when None.
    """
    if weights is None:
        weights = raster.contributions(*_view(gaussians, camera), settings=settings).sums[0]
    viewmat = camera.viewmats[0].to(gaussians.means)
    depths = gaussians.means @ viewmat[2, :3] + viewmat[2, 3]
    reach = 3.0 * gaussians.log_scales.amax(1).exp() * float(camera.Ks[0, 0, 0]) / depths.clamp_min(1e-9)
    big = reach > 0.35 * max(camera.width, camera.height)
    seen = (weights > 0) & ~big
    if not bool(seen.any()):
        return torch.ones_like(big)
    order = depths[seen].argsort()
    run = weights[seen][order].cumsum(0)
    median = depths[seen][order][int((run >= 0.5 * run[-1]).nonzero()[0, 0])]
    return ~(big & (depths < 0.6 * median))


def surface(gaussians: Gaussians, camera: Cameras, settings: raster.RasterSettings) -> Surface:
    """The surface that one camera sees. Half of the weight is where it is: the mean depth of a pixel lies somewhere
    between the surface and what shines through it.
    """
    matrix = raster.weight_matrix(*_view(gaussians, camera), settings=settings)[0]
    count, shape = len(gaussians), (camera.height, camera.width)
    indptr, indices, weights = (t.cpu().numpy() for t in matrix)
    sums = np.bincount(indices, weights, count).astype(np.float32)
    firm = solid(gaussians, camera, torch.from_numpy(sums).to(gaussians.means.device)).cpu().numpy()
    run = np.concatenate([[0.0], np.cumsum(weights * firm[indices], dtype=np.float64)])
    first, last = indptr[:-1], indptr[1:]
    total = run[last] - run[first]
    if not len(indices):
        empty = np.zeros(shape)
        return Surface(empty, empty, np.full(shape, -1), firm)
    # The first entry of the row at which the running sum reaches half.
    at = np.searchsorted(run, run[first] + 0.5 * total) - 1
    at = np.clip(at, first, np.maximum(last - 1, first)).clip(0, len(indices) - 1)
    ids = np.where(total > 1e-4, indices[at], -1)
    viewmat = camera.viewmats[0].double().cpu()
    depths = (gaussians.means.double().cpu() @ viewmat[2, :3] + viewmat[2, 3]).numpy()
    depth = np.where(ids >= 0, depths[ids], 0.0)
    return Surface(depth.reshape(shape), total.reshape(shape), ids.reshape(shape), firm)


def glance(
    gaussians: Gaussians, camera: Cameras, settings: raster.RasterSettings, most: int = GLANCE
) -> tuple[Surface, np.ndarray]:
    """`surface` from the ``most`` heaviest Gaussians of each pixel alone, and the colours [H, W, 3] that they mix to.

    Several times as fast; the depth differs by a hundredth or more in one pixel out of ten, mostly at edges of depth.
    """
    ids, weights = raster.topk(*_view(gaussians, camera), k=most, settings=settings)
    flat, shares = ids[0].reshape(-1, most), weights[0].reshape(-1, most) * (ids[0].reshape(-1, most) >= 0)
    flat = flat.clamp_min(0)
    sums = torch.zeros(len(gaussians), device=shares.device).index_add_(0, flat.flatten(), shares.flatten())
    firm = solid(gaussians, camera, sums)
    shares = shares * firm[flat]
    viewmat = camera.viewmats[0].to(gaussians.means)
    depths = (gaussians.means @ viewmat[2, :3] + viewmat[2, 3])[flat]  # [P, K]
    order = depths.argsort(dim=1)
    run = shares.gather(1, order).cumsum(1)
    total = run[:, -1]
    at = order.gather(1, (run >= 0.5 * total[:, None]).to(torch.uint8).argmax(1, keepdim=True))
    there = total > 1e-4
    shape = (camera.height, camera.width)
    met = torch.where(there, flat.gather(1, at)[:, 0], -1).view(shape)
    depth = torch.where(there, depths.gather(1, at)[:, 0], 0.0).double().view(shape)
    mixed = torch.einsum("pk,pkc->pc", shares, gaussians.colors[flat]) / total.clamp_min(1e-6)[:, None]
    found = Surface(
        depth.cpu().numpy(), total.double().view(shape).cpu().numpy(), met.cpu().numpy(), firm.cpu().numpy()
    )
    return found, mixed.view(*shape, 3).clamp(0, 1).cpu().numpy()


def met(
    gaussians: Gaussians, camera: Cameras, pixels: np.ndarray, settings: raster.RasterSettings
) -> tuple[np.ndarray, np.ndarray]:
    """`surface` at a few pixels alone: depths [K], 0 where hardly anything is, and world points [K, 3].

    Args:
        pixels: [K, 2] x and y; the pixels that hold them are looked at.
    """
    corners = torch.from_numpy(np.floor(pixels).astype(np.float64)).to(camera.Ks)
    firm = solid(gaussians, camera, settings=settings).cpu().numpy()
    # A small camera around each: how a Gaussian is drawn depends a little on how far outside of the image it lies.
    Ks = camera.Ks.repeat(len(corners), 1, 1)
    Ks[:, :2, 2] -= corners - AROUND
    some = Cameras(camera.viewmats.repeat(len(corners), 1, 1), Ks, 2 * AROUND + 1, 2 * AROUND + 1)
    middle = AROUND * (2 * AROUND + 1) + AROUND
    viewmat = camera.viewmats[0].double().cpu()
    depths = (gaussians.means.double().cpu() @ viewmat[2, :3] + viewmat[2, 3]).numpy()
    out = np.zeros(len(corners))
    for k, matrix in enumerate(raster.weight_matrix(*_view(gaussians, some), settings=settings)):
        row = slice(*matrix.indptr[middle : middle + 2].tolist())
        ids, weights = matrix.indices[row].cpu().numpy(), matrix.weights[row].cpu().numpy().astype(np.float64)
        run = np.cumsum(weights * firm[ids])
        if len(run) and run[-1] > FAINT:
            out[k] = depths[ids[np.searchsorted(run, 0.5 * run[-1])]]
    K = camera.Ks[0].double().cpu().numpy()
    rays = (corners.double().cpu().numpy() + 0.5 - K[:2, 2]) / K[[0, 1], [0, 1]]
    local = np.concatenate([rays * out[:, None], out[:, None]], axis=1)
    pose = camera.c2w[0].double().cpu().numpy()
    return out, local @ pose[:3, :3].T + pose[:3, 3]


def unproject(depth: np.ndarray, camera: Cameras) -> np.ndarray:
    """float64 [H, W, 3] world points of a camera's pixels at ``depth`` [H, W]."""
    K = camera.Ks[0].double().cpu().numpy()
    x = (np.arange(camera.width) + 0.5 - K[0, 2]) / K[0, 0]
    y = (np.arange(camera.height) + 0.5 - K[1, 2]) / K[1, 1]
    local = np.stack(np.broadcast_arrays(x[None] * depth, y[:, None] * depth, depth), -1)
    pose = camera.c2w[0].double().cpu().numpy()
    return local @ pose[:3, :3].T + pose[:3, 3]


def splat(gaussians: Gaussians, camera: Cameras, values: Tensor, settings: raster.RasterSettings) -> Tensor:
    """[H, W, C + 1]: values [N, C] blended into one camera, and last the weight they were blended with; no haze."""
    firm = solid(gaussians, camera, settings=settings)
    some = gaussians[firm]
    ones = torch.ones(len(values), 1).to(values)
    features = torch.cat([values, ones], dim=1)[firm].float()
    means, quats, scales, opacities, *view = _view(some, camera)
    out = raster.rasterize(means, quats, scales, opacities, None, *view, features=features, settings=settings).features
    assert out is not None
    return out[0]


def smaller(camera: Cameras, pixels: int) -> Cameras:
    """The camera at a size of at most about ``pixels`` pixels."""
    factor = min(1.0, (pixels / (camera.width * camera.height)) ** 0.5)
    return camera.resized(max(1, round(camera.width * factor)), max(1, round(camera.height * factor)))


def _view(g: Gaussians, camera: Cameras) -> tuple:
    viewmats, Ks = camera.viewmats.to(g.means), camera.Ks.to(g.means)
    return g.means, g.quats, g.scales, g.opacities, viewmats, Ks, camera.width, camera.height


def still(scene: Scene, gaussians: Gaussians) -> Scene:
    """A scene that holds still at these Gaussians; for asking about places only."""
    return replace(scene, gaussians=gaussians, mode="static", mode_state={}, fields={})
