"""A scene's blending weights in the views that maps were made of: the operator and its transpose, view by view."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat import raster
from featuresplat.fields.maps import Maps, mask_at, resize
from featuresplat.scene import Scene
from featuresplat.types import Cameras, Gaussians

Operands = tuple[Tensor, Tensor, Tensor, Tensor]
COARSE = 8
"""A map whose cells are at least so many pixels is lifted at half the photograph's size: two to four times faster, and
half a point of mIoU less on truth (`benchmarks/fields.py`), which no such teacher is exact enough to show."""


class Views:
    """The geometry of a scene, held still, seen from the cameras of ``maps``.

    With A_v [pixels, N] the blending weights of view v: `splat` is A_v x and `lift` is A_v^T m.
    """

    def __init__(self, scene: Scene, maps: Maps, backend: str | None = None):
        self.scene, self.maps, self.backend = scene, maps, backend
        self.settings = scene.raster_settings()
        self.device = scene.gaussians.means.device
        self._geometry: tuple[float | None, Operands] | None = None

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def count(self) -> int:
        """N."""
        return len(self.scene.gaussians)

    def camera(self, i: int, cells: tuple[int, int] | None = None) -> Cameras:
        """View i at the size it is lifted at; ``cells`` (h, w) is the size of its map, where that is known."""
        camera = self.maps.cameras[i]
        h, w = cells or tuple(self.maps[i].shape[:2])
        if min(camera.height / h, camera.width / w) < COARSE:
            return camera
        return camera.resized(max(1, (camera.width + 1) // 2), max(1, (camera.height + 1) // 2))

    def cells(self, i: int, channels: slice | None = None, basis: Tensor | None = None) -> tuple[Tensor, Cameras]:
        """Map i at the size of its render [H, W, K], and that camera: some channels, or a projection on [F, K]."""
        found = self.maps[i]
        camera = self.camera(i, (found.shape[0], found.shape[1]))
        found = (found if channels is None else found[..., channels]).to(self.device)
        if basis is not None:
            found = found.float() @ basis
        return resize(found, camera.height, camera.width), camera

    def mask(self, i: int, camera: Cameras) -> Tensor | None:
        """[H, W] share of each pixel that counts, or None."""
        found = mask_at(self.maps.mask(i), camera.height, camera.width)
        return None if found is None else found.to(self.device)

    def lift(self, i: int, values: Tensor, camera: Cameras, power: int = 1) -> tuple[Tensor, Tensor]:
        """Sums [N, K] of w^power values over the pixels of view i that count, and weights [N], sums of w^power."""
        mask = self.mask(i, camera)
        if mask is not None:
            values = torch.cat([values * mask[..., None], mask[..., None]], dim=-1)
        means, quats, scales, opacities, viewmats, Ks = self._operands(camera)
        sums, weights = raster.lift(
            means, quats, scales, opacities, viewmats, Ks, camera.width, camera.height, values[None], power=power,
            settings=self.settings, backend=self.backend,
        )  # fmt: skip
        return (sums, weights) if mask is None else (sums[:, :-1], sums[:, -1])

    def splat(self, values: Tensor, camera: Cameras) -> Tensor:
        """[H, W, K]: values [N, K] blended over zero; gradients reach ``values`` only."""
        means, quats, scales, opacities, viewmats, Ks = self._operands(camera)
        out = raster.rasterize(
            means, quats, scales, opacities, None, viewmats, Ks, camera.width, camera.height,
            features=values, geometry_grad="none", settings=self.settings, backend=self.backend,
        )  # fmt: skip
        assert out.features is not None
        return out.features[0]

    def contributions(self, i: int, camera: Cameras) -> tuple[Tensor, Tensor]:
        """Summed blending weight [N] and projected centres [N, 2] in pixels of view i."""
        means, quats, scales, opacities, viewmats, Ks = self._operands(camera)
        found = raster.contributions(
            means, quats, scales, opacities, viewmats, Ks, camera.width, camera.height,
            settings=self.settings, backend=self.backend,
        )  # fmt: skip
        local = means @ viewmats[0, :3, :3].T + viewmats[0, :3, 3]
        z = local[:, 2].clamp_min(1e-9)
        centres = torch.stack([Ks[0, k, k] * local[:, k] / z + Ks[0, k, 2] for k in (0, 1)], dim=1)
        return found.sums[0], centres

    def _operands(self, camera: Cameras) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """means, quats, scales, opacities at the camera's time, viewmats, Ks."""
        time = None if camera.times is None else float(camera.times[0])
        if self._geometry is None or self._geometry[0] != time:
            with torch.no_grad():
                g: Gaussians = self.scene.gaussians if time is None else self.scene.at(time)
                self._geometry = (time, (g.means.detach(), g.quats.detach(), g.scales.detach(), g.opacities.detach()))
        viewmats, Ks = camera.viewmats.to(self.device, torch.float32), camera.Ks.to(self.device, torch.float32)
        return (*self._geometry[1], viewmats, Ks)
