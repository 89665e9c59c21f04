"""Closed forms that carry maps onto Gaussians, streamed view by view.

With w_pj the blending weight of Gaussian j at pixel p and M_p the map there:

- ``mean``: sum_p w_pj M_p / sum_p w_pj (Occam's LGS, LUDVIG);
- ``squared``: the same with w^2, so that what shows dimly counts less;
- ``centre``: the map at the projected centre, by the Gaussian's summed weight in the view;
- ``robust``: the mean of the views' own means m_vj, each weighted by exp((cos(m_vj, x_j) - 1) / 0.15) and solved by
  five passes: a view that contradicts the others is heard no more;
- ``cg``: argmin_x sum_p |sum_j w_pj x_j - M_p|^2 + ridge |x - mean|^2 by conjugate gradients: what renders best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError
from featuresplat.fields.maps import Maps, Progress, principal_axes, second_moment, silent
from featuresplat.fields.views import Views
from featuresplat.scene import Scene

METHODS = ("mean", "squared", "centre", "robust", "cg")
PASSES, SHARPNESS = 5, 0.15
RIDGE, ITERATIONS = 1e-3, 10
AXES = 32
"""Main directions of the maps in which `robust` compares views and `cg` solves; the rest follows the mean."""
SEEN = 1e-3
"""Summed blending weight, in pixels, below which a Gaussian was not seen."""


@dataclass(frozen=True)
class Lifted:
    """What a lift gives: codes [N, F] in the maps' space and confidence [N], the summed blending weight in pixels.

    Gaussians that no view shows have confidence 0 and the mean code of their four nearest neighbours that were seen.
    """

    codes: Tensor
    confidence: Tensor


def lift(
    scene: Scene,
    maps: Maps,
    method: str = "mean",
    *,
    basis: Tensor | None = None,
    memory: float = 1.0,
    backend: str | None = None,
    progress: Progress = silent,
) -> Lifted:
    """Carry maps onto the Gaussians of a scene.

    Memory beside the result [N, F]: the map of one view, and blocks of K channels so that (2 N + H W) K floats stay
    within ``memory``.

    Args:
        scene: its geometry.
        maps: of some of its views.
        method: one of `METHODS`.
        basis: [F, K] to lift the maps' projections on, in place of their F channels; codes are [N, K] then.
        memory: GiB.

    Raises:
        FeaturesplatError: no such method, no maps, a map of another number of channels.
    """
    if method not in METHODS:
        raise FeaturesplatError(f"lift: got '{method}'.", f"Use one of {', '.join(METHODS)}.")
    if len(maps) == 0:
        raise FeaturesplatError("lift: there are no maps.", "Give the maps of at least one view.")
    views = Views(scene, maps, backend)
    with torch.no_grad():
        job = _Lift(views, basis, memory, progress)
        codes, weights = getattr(job, f"_{method}")()
        return _with_unseen_filled(scene, codes, weights)


class _Lift:
    def __init__(self, views: Views, basis: Tensor | None, memory: float, progress: Progress):
        self.views, self.progress = views, progress
        self.basis = None if basis is None else basis.to(views.device)
        self.dim = views.maps.dim if basis is None else basis.shape[1]
        self.bytes = int(memory * (1 << 30))

    # The five methods: each gives codes [N, K] and confidence [N].

    def _mean(self) -> tuple[Tensor, Tensor]:
        return self._weighted(1)

    def _squared(self) -> tuple[Tensor, Tensor]:
        return self._weighted(2)

    def _centre(self) -> tuple[Tensor, Tensor]:
        views, n = self.views, self.views.count
        sums, weights = torch.zeros(n, self.dim, device=views.device), torch.zeros(n, device=views.device)
        total = torch.zeros_like(weights)
        for i in self.progress(range(len(views)), "lift"):
            found = views.maps[i]
            camera = views.camera(i, (found.shape[0], found.shape[1]))
            shown, centres = views.contributions(i, camera)
            where = centres / centres.new_tensor([camera.width, camera.height])  # 0..1
            inside = (shown > SEEN) & ((where >= 0) & (where <= 1)).all(1)
            mask = views.mask(i, camera)
            if mask is not None:
                inside &= _sample(mask[..., None], where)[:, 0] > 0.5
            rows = inside.nonzero()[:, 0]
            for part in rows.split(1 << 14):
                values = _sample(found, where[part])
                values = values if self.basis is None else values @ self.basis
                sums[part] += shown[part, None] * values
            weights[rows] += shown[rows]
            total += shown * self._pixels(i, camera)
        return _divided(sums, weights), total * (weights > 0)

    def _robust(self) -> tuple[Tensor, Tensor]:
        views, axes = self.views, self._axes()
        compared = _PerView(lambda i: self._lifted(i, basis=axes)[0], len(views), self.bytes)
        current = compared(0).clone()
        for i in self.progress(range(1, len(views)), "lift"):
            current += compared(i)
        for step in range(PASSES):
            last, total = F.normalize(current, dim=1), torch.zeros_like(current)
            for i in self.progress(range(len(views)), f"pass {step + 1} of {PASSES}"):
                sums = compared(i)
                total += _agreement(sums, last)[:, None] * sums
            current = total
        last = F.normalize(current, dim=1)
        agreed = [_agreement(compared(i), last).half() for i in range(len(views))]
        del compared
        return self._weighted(1, lambda i: agreed[i].float())

    def _cg(self) -> tuple[Tensor, Tensor]:
        """Solve for the correction of the mean, in the maps' main directions."""
        views, axes = self.views, self._axes()
        mean, confidence = self._mean()
        start = mean if self.basis is not None else mean @ axes if axes is not None else mean
        # Right-hand side A^T (M - A mean), and the diagonal of A^T A as preconditioner.
        residual, diagonal = torch.zeros_like(start), torch.zeros(len(start), device=start.device)
        for i in self.progress(range(len(views)), "residual"):
            values, camera = self._cells(i, axes)
            residual += views.lift(i, values - views.splat(start, camera), camera)[0]
            diagonal += views.lift(i, values[..., :1], camera, power=2)[1]
        ridge = RIDGE * diagonal.mean()
        cameras = [views.camera(i) for i in range(len(views))]

        def normal(x: Tensor, step: int) -> Tensor:
            out = ridge * x
            for i in self.progress(range(len(views)), f"iteration {step + 1} of {ITERATIONS}"):
                out += views.lift(i, views.splat(x, cameras[i]), cameras[i])[0]
            return out

        correction = conjugate_gradients(normal, residual, 1 / (diagonal + ridge)[:, None], ITERATIONS)
        full = correction if axes is None or self.basis is not None else correction @ axes.T
        return mean + full, confidence

    # What they share.

    def _axes(self) -> Tensor | None:
        """[F, K] main directions of the maps; None where the K channels that are lifted are few themselves."""
        if self.basis is not None:
            return self.basis
        if self.dim <= AXES:
            return None
        return principal_axes(second_moment(self.views.maps, progress=self.progress), AXES)[0].to(self.views.device)

    def _cells(self, i: int, basis: Tensor | None, channels: slice | None = None):
        return self.views.cells(i, channels, basis)

    def _lifted(self, i: int, power: int = 1, basis: Tensor | None = None, channels: slice | None = None):
        values, camera = self._cells(i, basis, channels)
        return (*self.views.lift(i, values, camera, power), camera)

    def _weighted(self, power: int, trust: Callable[[int], Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Sums over views of trust * A^T M by sums of trust * A^T 1."""
        views, n = self.views, self.views.count
        codes = torch.zeros(n, self.dim, device=views.device)
        weights, total = torch.zeros(n, device=views.device), torch.zeros(n, device=views.device)
        blocks = self._blocks()
        for k, block in enumerate(blocks):
            word = "lift" if len(blocks) == 1 else f"channels {block.start}-{block.stop - 1}"
            for i in self.progress(range(len(views)), word):
                channels, basis = (block, None) if self.basis is None else (None, self.basis[:, block])
                sums, seen, camera = self._lifted(i, power, basis, channels)
                heard = None if trust is None else trust(i)
                codes[:, block] += sums if heard is None else sums * heard[:, None]
                if k == 0:
                    weights += seen if heard is None else seen * heard
                    total += (seen if heard is None else seen * heard) * self._pixels(i, camera)
        return _divided(codes, weights), total

    def _blocks(self) -> list[slice]:
        """Channels at a time, so that sums and one resized map stay within the memory."""
        pixels = max(w * h for w, h in self.views.maps.cameras.sizes)
        size = max(1, self.bytes // (4 * (2 * self.views.count + 2 * pixels)))
        return [slice(k, min(k + size, self.dim)) for k in range(0, self.dim, size)]

    def _pixels(self, i: int, camera) -> float:
        """Pixels of the photograph that one pixel of the render stands for."""
        full = self.views.maps.cameras[i]
        return full.width * full.height / (camera.width * camera.height)


class _PerView:
    """Sums [N, K] per view, kept as half floats with a scale per row as long as all fit, else made again each time."""

    def __init__(self, make: Callable[[int], Tensor], count: int, limit: int):
        self.make, self.count, self.limit = make, count, limit
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, i: int) -> Tensor:
        if i in self.kept:
            shares, scale = self.kept[i]
            return shares.float() * scale
        sums = self.make(i)
        if self.count * (2 * sums.numel() + 4 * len(sums)) <= self.limit:
            scale = sums.abs().amax(dim=1, keepdim=True)
            self.kept[i] = ((sums / scale.clamp_min(1e-30)).half(), scale)
        return sums


def conjugate_gradients(
    normal: Callable[[Tensor, int], Tensor],
    rhs: Tensor,
    preconditioner: Tensor,
    iterations: int,
    tolerance: float = 1e-4,
) -> Tensor:
    """x with normal(x) = rhs [N, K], each column by itself, from x = 0 (Hestenes and Stiefel 1952, Jacobi).

    Args:
        normal: applies a symmetric positive definite operator to [N, K]; also told the iteration.
        preconditioner: [N, 1], an approximate inverse of its diagonal.
    """
    x, residual = torch.zeros_like(rhs), rhs.clone()
    z = preconditioner * residual
    direction, energy = z.clone(), (residual * z).sum(0)
    first = energy.clone().clamp_min(1e-30)
    for step in range(iterations):
        applied = normal(direction, step)
        length = energy / (direction * applied).sum(0).clamp_min(1e-30)
        x += length * direction
        residual -= length * applied
        z = preconditioner * residual
        previous, energy = energy, (residual * z).sum(0)
        if bool((energy <= tolerance**2 * first).all()):
            break
        direction = z + energy / previous.clamp_min(1e-30) * direction
    return x


def _agreement(sums: Tensor, current: Tensor) -> Tensor:
    """[N] how much each Gaussian's mean in one view counts, by its angle to the mean of all, of unit length."""
    return ((F.normalize(sums, dim=1) * current).sum(1).sub(1) / SHARPNESS).exp()


def _divided(sums: Tensor, weights: Tensor) -> Tensor:
    return sums.div_(weights.clamp_min(1e-12)[:, None])


def _sample(values: Tensor, where: Tensor) -> Tensor:
    """[M, K] bilinear samples of a map [h, w, K] at M places in 0..1 (x, y), cell centres at (k + 0.5) / size."""
    h, w = values.shape[:2]
    x, y = where[:, 0] * w - 0.5, where[:, 1] * h - 0.5
    x0, y0 = x.floor(), y.floor()
    out = torch.zeros(len(where), values.shape[2], device=where.device)
    for dy in (0, 1):
        for dx in (0, 1):
            cx, cy = (x0 + dx).long().clamp(0, w - 1), (y0 + dy).long().clamp(0, h - 1)
            weight = (1 - (x - x0 - dx).abs()) * (1 - (y - y0 - dy).abs())
            cells = values[cy.cpu(), cx.cpu()].to(where.device, torch.float32)
            out += weight[:, None] * cells
    return out


def _with_unseen_filled(scene: Scene, codes: Tensor, weights: Tensor) -> Lifted:
    seen = weights > SEEN
    confidence = torch.where(seen, weights, 0.0)
    if bool(seen.all()) or not bool(seen.any()):
        return Lifted(codes, confidence)
    import numpy as np
    from scipy.spatial import KDTree

    means = scene.gaussians.means.detach().cpu().numpy()
    known = seen.cpu().numpy() & np.isfinite(means).all(1)
    unknown = ~seen.cpu().numpy() & np.isfinite(means).all(1)
    if known.any() and unknown.any():
        count = min(4, int(known.sum()))
        _, near = KDTree(means[known]).query(means[unknown], k=count)
        rows = torch.from_numpy(np.flatnonzero(known)[near.reshape(-1, count)])
        codes[torch.from_numpy(unknown).to(codes.device)] = codes[rows.to(codes.device)].mean(1)
    return Lifted(codes, confidence)
