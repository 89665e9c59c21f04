"""The frame that training works in: centred on the cameras, scaled to a camera extent of one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from featuresplat.types import Cameras, Gaussians, PointCloud


@dataclass(frozen=True)
class Normalization:
    """x_train = (x - center) * scale, computed in float64; no rotation, so spherical harmonics stay as they are.

    Learning rates, the near plane and size limits then mean the same in every scene, and coordinates far from the
    origin lose nothing to float32.
    """

    center: Tensor
    scale: float

    @staticmethod
    def of(cameras: Cameras, points: PointCloud | None) -> Normalization:
        """Centre: the mean camera position. Scale: 1 / (1.1 * greatest distance of a camera from it).

        Where the cameras hardly move (a single view, a turning head), the median distance of the points takes the
        place of the camera distances.
        """
        positions = cameras.positions.double()
        center = positions.mean(0)
        extent = 1.1 * float((positions - center).norm(dim=1).max())
        if points is not None and len(points):
            reach = float((points.xyz.double() - center).norm(dim=1).median())
            if extent < 0.01 * reach:
                extent = reach
        return Normalization(center, 1.0 / extent if extent > 0 else 1.0)

    def cameras(self, cameras: Cameras) -> Cameras:
        """World-to-camera matrices for the training frame."""
        viewmats = cameras.viewmats.double().clone()
        moved = viewmats[:, :3, :3] @ self.center + viewmats[:, :3, 3]
        viewmats[:, :3, 3] = moved * self.scale
        return replace(cameras, viewmats=viewmats)

    def points(self, points: PointCloud) -> PointCloud:
        return PointCloud(((points.xyz.double() - self.center) * self.scale).float(), points.rgb.float())

    def undo(self, gaussians: Gaussians) -> Gaussians:
        """From the training frame back to the data's own."""
        g = gaussians.detach()
        means = (g.means.double() / self.scale + self.center.to(g.means.device)).to(g.means.dtype)
        offset = float(torch.log(torch.tensor(self.scale, dtype=torch.float64)))
        return replace(g, means=means, log_scales=g.log_scales - offset)

    def undo_viewmats(self, viewmats: Tensor) -> Tensor:
        """World-to-camera matrices [C, 4, 4] of the training frame, for the data's own."""
        out = viewmats.double().clone()
        out[:, :3, 3] = out[:, :3, 3] / self.scale - (out[:, :3, :3] @ self.center)
        return out

    def units(self) -> dict:
        """As scene.json keeps it."""
        return {"center": self.center.tolist(), "scale": self.scale}
