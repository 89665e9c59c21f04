"""Removing an object and filling the hole it leaves.

Behind an object there is what other views have seen, and under it what nobody has: its place on the support. That is
paved with new Gaussians in the colours of the ground around. Then what lies around the hole is fitted again to the
photographs, looking only at pixels that do not show the object.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator
from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes, gaussian_filter
from scipy.spatial import KDTree, QhullError
from torch import Tensor

from featuresplat import raster
from featuresplat.datasets import Dataset, load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.exposure import transform
from featuresplat.geometry import rotmat_to_quat
from featuresplat.losses import photometric
from featuresplat.prompts.pieces import Pieces, pieces_of
from featuresplat.prompts.surface import smaller, splat
from featuresplat.types import SH_C0, Cameras, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

STEPS, PIXELS = 120, 60_000
RATES = {"sh0": 5e-3, "shN": 2.5e-4, "logit_opacities": 2e-2, "log_scales": 2e-3}
"""Adam's learning rates of the local fit; positions stay, so that nothing drifts into the hole."""


def removed_and_filled(scene: Scene, mask: Tensor, steps: int = STEPS, seed: int = 0) -> Scene:
    """The scene without the Gaussians of ``mask`` [N], the hole filled.

    Where the photographs are gone, the ground is paved but nothing is fitted, with a warning.
    """
    pieces = pieces_of(scene, scene.gaussians)
    ground = None if pieces.plane is None else _Ground(scene, mask, pieces)
    patch = None if ground is None else ground.pavement()
    fresh, out = 0, scene.rows(~mask)
    if ground is not None and patch is not None:
        fresh = len(patch.gaussians)
        # Shreds of the object that belong to nothing would hover over the pavement.
        mask = mask | torch.from_numpy(ground.shreds()).to(mask.device)
        out = type(scene).cat([scene.rows(~mask), patch])
    dataset = _photographs(scene)
    if dataset is None:
        warnings.warn("the photographs of this run are gone: the hole is paved, but not fitted to them.", stacklevel=2)
        return out
    return _fitted(scene, mask, out, fresh, dataset, steps, seed)


def _photographs(scene: Scene) -> Dataset | None:
    source = scene.info.get("source")
    if not source or scene.config is None or not Path(source).exists():
        return None
    try:
        return load_dataset(Path(source), scene.config.data)
    except FeaturesplatError:
        return None


class _Ground:
    """The support around removed Gaussians, in cells as large as it is rough."""

    def __init__(self, scene: Scene, mask: Tensor, pieces: Pieces):
        assert pieces.plane is not None
        self.scene, self.gone = scene, mask.cpu().numpy()
        self.normal, self.point, self.cell = pieces.plane
        centres = scene.gaussians.means.detach().double().cpu().numpy()
        self.heights = (centres - self.point) @ self.normal / self.cell
        self.axes = np.linalg.svd(self.normal[None])[2][1:]
        self.flat = (centres - self.point) @ self.axes.T
        self.ids, self.rest = pieces.ids.cpu().numpy(), pieces.scores.shape[1] - 1
        self.solid = (scene.gaussians.opacities > 0.3).cpu().numpy()
        self.support = (self.ids == 0) & self.solid
        self.standing = self.gone & self.solid & (self.heights < 20) & (self.heights > -6)
        self.foot, self.low = self._footprint()

    def _footprint(self) -> tuple[np.ndarray, np.ndarray]:
        """bool [A, B] cells that the removed ones stood on, and where cell 0, 0 begins; empty where on none."""
        nothing = np.zeros((0, 0), bool), np.zeros(2)
        if self.standing.sum() < 3 or (self.support & self.gone).sum() > 0.5 * self.support.sum():
            return nothing  # they hang in the air, or are the support itself
        places = self.flat[self.standing]
        low = places.min(0) - 8 * self.cell
        shape = tuple(((places.max(0) - low) / self.cell).astype(int) + 9)
        if shape[0] * shape[1] > 4_000_000:
            return nothing
        out = np.zeros(shape, bool)
        out[tuple(((places - low) / self.cell).astype(int).T)] = True
        filled = binary_fill_holes(binary_closing(out, iterations=2))
        assert filled is not None
        return filled, low

    def covered(self) -> np.ndarray:
        """bool [N]: over the footprint."""
        at = ((self.flat - self.low) / self.cell).astype(int)
        inside = ((at >= 0) & (at < np.array(self.foot.shape))).all(1)
        out = np.zeros(len(at), bool)
        out[inside] = self.foot[tuple(at[inside].T)]
        return out

    def shreds(self) -> np.ndarray:
        """bool [N]: what is over the footprint, no higher than the removed ones were, and belongs to no object."""
        top = np.quantile(self.heights[self.gone & self.solid], 0.98)
        loose = (self.ids == 0) | (self.ids == self.rest)
        return self.covered() & loose & (self.heights > 0.5) & (self.heights < top) & ~self.gone

    def pavement(self) -> Scene | None:
        """Gaussians for the footprint, as a scene; None where there is no footprint or no ground around it.

        They are copies of the nearest Gaussians of the ground around, so that fields and states come along; colours
        are interpolated across.
        """
        if not self.foot.any():
            return None
        places = self.flat[self.standing]
        reach = 2 * np.ptp(places, axis=0).max() + 20 * self.cell
        # Ground that no view sees has any colour.
        near = self.support & ~self.gone & (np.abs(self.heights) < 4) & ~self.covered() & _shown(self.scene)
        near &= np.abs(self.flat - places.mean(0)).max(1) < reach
        if near.sum() < 8:
            return None
        scene, g, at = self.scene, self.scene.gaussians, near.nonzero()[0]
        spots = self.low + (np.argwhere(binary_dilation(self.foot)) + 0.5) * self.cell
        device = g.means.device
        colors = _across(self.flat[near], g.colors[torch.from_numpy(at).to(device)].cpu().numpy(), spots)
        level = _across(self.flat[near], self.heights[near, None] * self.cell, spots)
        nearest = at[np.asarray(KDTree(self.flat[near]).query(spots)[1])]
        frame = torch.from_numpy(np.stack([self.axes[0], np.cross(self.normal, self.axes[0]), self.normal], 1))
        means = torch.from_numpy(self.point + spots @ self.axes + level * self.normal)
        count = len(spots)
        new = Gaussians(
            means=means.to(g.means),
            quats=rotmat_to_quat(frame)[None].repeat(count, 1).to(g.means),
            log_scales=(torch.tensor([0.6, 0.6, 0.1]) * self.cell).log().repeat(count, 1).to(g.means),
            logit_opacities=torch.full((count,), 2.2).to(g.means),
            sh0=((torch.from_numpy(colors)[:, None] - 0.5) / SH_C0).to(g.means),
            shN=torch.zeros(count, *g.shN.shape[1:]).to(g.means),
        )
        return replace(scene.rows(torch.from_numpy(nearest).to(device)), gaussians=new)


def _shown(scene: Scene, views: int = 8) -> np.ndarray:
    """bool [N]: makes up a fifth of a pixel in one of some views."""
    g, out = scene.gaussians, torch.zeros(len(scene.gaussians), device=scene.gaussians.means.device)
    for i in np.unique(np.linspace(0, len(scene.cameras) - 1, views).round().astype(int)):
        camera = smaller(scene.cameras[int(i)], PIXELS)
        viewmats, Ks = camera.viewmats.to(g.means), camera.Ks.to(g.means)
        found = raster.contributions(
            g.means, g.quats, g.scales, g.opacities, viewmats, Ks, camera.width, camera.height,
            settings=scene.raster_settings(),
        )  # fmt: skip
        out = torch.maximum(out, found.maxima[0])
    return (out > 0.2).cpu().numpy()


def _across(places: np.ndarray, values: np.ndarray, spots: np.ndarray) -> np.ndarray:
    """Values [M, C] at places [M, 2] interpolated to spots [S, 2]: neighbours are averaged first, as they are noisy."""
    tree = KDTree(places)
    around = np.asarray(tree.query(places, min(8, len(places)))[1]).reshape(len(places), -1)
    smooth = np.median(values[around], axis=1)
    out = NearestNDInterpolator(places, smooth)(spots)
    try:
        linear = LinearNDInterpolator(places, smooth)(spots)
    except QhullError:
        return out
    return np.where(np.isfinite(linear), linear, out)


def _fitted(scene: Scene, mask: Tensor, out: Scene, fresh: int, dataset: Dataset, steps: int, seed: int) -> Scene:
    """The scene ``out``, its last ``fresh`` Gaussians and what lies around the hole fitted to the photographs."""
    g = out.gaussians
    centres = g.means.detach().double().cpu().numpy()
    gone = scene.gaussians.means[mask].detach().double().cpu().numpy()
    reach = 0.25 * float(np.linalg.norm(np.ptp(gone, axis=0))) if len(gone) else 0.0
    active = np.isfinite(KDTree(gone).query(centres, distance_upper_bound=max(reach, 1e-9))[0])
    active[len(g) - fresh :] = True
    rows = torch.from_numpy(active.nonzero()[0]).to(g.means.device)
    views = _views(scene, mask, dataset)
    if not views or not len(rows):
        return out
    free = {k: getattr(g, k)[rows].clone().requires_grad_(getattr(g, k).numel() > 0) for k in RATES}
    groups = [{"params": [p], "lr": RATES[k]} for k, p in free.items() if p.requires_grad]
    optimizer = torch.optim.Adam(groups, eps=1e-15)
    generator = torch.Generator().manual_seed(seed)
    settings = scene.raster_settings()
    for step in range(steps):
        if step % len(views) == 0:
            order = torch.randperm(len(views), generator=generator).tolist()
        camera, truth, look, delta = views[order[step % len(views)]]
        now = replace(g, **{k: getattr(g, k).index_copy(0, rows, p) for k, p in free.items()})
        rgb = _rgb(now, camera, settings, scene.info.get("background"))
        if delta is not None:
            rgb = transform(rgb, delta)
        loss = photometric(rgb, truth, 0.2, look)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    final = {k: getattr(g, k).index_copy(0, rows, p.detach()) for k, p in free.items()}
    return replace(out, gaussians=replace(g, **final))


def _rgb(g: Gaussians, camera: Cameras, settings: raster.RasterSettings, background: Any) -> Tensor:
    """[H, W, 3], differentiable."""
    behind = torch.tensor(background).to(g.means) if background and any(background) else None
    viewmats, Ks = camera.viewmats.to(g.means), camera.Ks.to(g.means)
    out = raster.rasterize(
        g.means, g.quats, g.scales, g.opacities, g.sh, viewmats, Ks, camera.width, camera.height,
        sh_degree=g.sh_degree, backgrounds=behind, geometry_grad="full", settings=settings,
    )  # fmt: skip
    assert out.rgb is not None
    return out.rgb[0]


def _views(scene: Scene, mask: Tensor, dataset: Dataset) -> list[tuple[Cameras, Tensor, Tensor, Tensor | None]]:
    """Training views that show the object: camera, photograph [H, W, 3], pixels to look at, colour transform."""
    names, out = scene.names("train"), []
    delta = scene.mode_state.get("exposure.delta")
    values = mask.float()[:, None]
    for i in dataset.train:
        name = dataset.cameras.names[i]
        if name not in scene.cameras.names:
            continue
        camera = smaller(scene.cameras[list(scene.cameras.names).index(name)], PIXELS)
        shown = splat(scene.gaussians, camera, values, scene.raster_settings())[..., 0].cpu().numpy()
        if (shown > 0.5).mean() < 1e-4:
            continue
        # Fringes of the object, and the blur of its edge, are not to be learned again.
        hidden = np.logical_or(binary_dilation(shown > 0.1, iterations=3), gaussian_filter(shown, 2.0) > 0.05)
        image = dataset.image(i).permute(2, 0, 1)[None].float() / 255
        photo = torch.nn.functional.interpolate(image, (camera.height, camera.width), mode="area")[0].permute(1, 2, 0)
        own = delta[names.index(name)] if delta is not None and name in names else None
        look = torch.from_numpy(~hidden).to(mask.device)
        out.append((camera, photo.contiguous().to(mask.device), look, own))
    return out
