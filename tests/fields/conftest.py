"""A small scene with cameras, and maps of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from featuresplat import raster
from featuresplat.fields.maps import Maps, resize
from featuresplat.scene import Scene
from featuresplat.types import Cameras, Gaussians


@dataclass
class Toy:
    """A scene with the dense blending weights of its views.

    Attributes:
        scene: N Gaussians, C cameras of 24x18 pixels.
        weights: C matrices [H*W, N].
    """

    scene: Scene
    weights: list[Tensor]

    def maps(self, values: Tensor, mask: Tensor | None = None) -> Maps:
        """Of values [C, h, w, F]."""
        cameras = self.scene.cameras
        return Maps(cameras, values.shape[-1], lambda i: values[i], lambda i: None if mask is None else mask[i])

    def random_maps(self, channels: int, seed: int = 0, size: tuple[int, int] = (18, 24)) -> Maps:
        generator = torch.Generator().manual_seed(seed)
        return self.maps(torch.randn(len(self.scene.cameras), *size, channels, generator=generator))

    def true_maps(self, channels: int, seed: int = 0, size: tuple[int, int] = (18, 24)) -> Maps:
        """Renders of features that the Gaussians do have: maps that agree with each other."""
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(60, channels, generator=generator)
        full = [(w @ features).view(18, 24, channels) for w in self.weights]
        return self.maps(torch.stack([resize(m, *size) for m in full]))


@pytest.fixture(scope="session")
def toy(make_scene) -> Toy:
    s = make_scene(gaussians=60, cameras=4, width=24, height=18, sh_degree=0, seed=3, size=0.3)
    g = Gaussians(s.means, s.quats, s.scales.log(), s.opacities.logit(), s.colors[:, :1], s.colors[:, 1:])
    cameras = Cameras(s.viewmats, s.Ks, 24, 18, names=[f"view_{i}.png" for i in range(4)])
    scene = Scene(g, cameras, info={"split": {"train": list(cameras.names), "test": []}})
    csr = raster.weight_matrix(
        g.means, g.quats, g.scales, g.opacities, s.viewmats, s.Ks, 24, 18, settings=scene.raster_settings()
    )
    dense = []
    for m in csr:
        rows = torch.repeat_interleave(torch.arange(24 * 18), m.indptr.diff())
        dense.append(torch.zeros(24 * 18, 60).index_put_((rows, m.indices), m.weights))
    return Toy(scene, dense)
