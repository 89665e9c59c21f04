"""The matched workload: synthetic Gaussians with the statistics of a trained scene, from a fixed seed.

Scales U[1e-4, 0.02] and opacities U[0, 1] are given; what remains to be matched is where the Gaussians are.
Three tenths of them are in front of the camera, spread over the image as trained scenes have it: a thin even
cover, dense clusters and one very dense spot. The constants below were fitted to the reference statistics:

                                   asked for    1 M, 1920x1080    112 k, 640x360
    tile intersections             2.2 M        2.31 M            0.234 M
    median Gaussians a tile        178          174               184
    maximum Gaussians a tile       5.7 k        5.6 k             1.4 k
    contributing pairs a pixel     53           53.7              53.0

``python benchmarks/workloads.py`` counts them again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FOCAL = 1000.0  # pixels, at every image size: a smaller image is a crop with fewer Gaussians, not a thumbnail
NEAR, FAR = 1.1, 6.0  # depths, log-uniform
SEEN = 0.3  # share in front of the camera; the rest lies behind it
EVEN = 0.18  # share that covers the image evenly; the rest is in clusters
CLUSTERS, CLUSTER_SIZE, CLUSTER_CONTRAST = 48, 0.06, 0.9
PEAK, PEAK_SIZE = 0.02, 0.004  # share and size of the very dense spot in the middle


@dataclass(frozen=True)
class Workload:
    """Inputs of ``featuresplat.rasterize``, float32; one camera at the origin looking along +z."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3]
    viewmats: Tensor  # [1, 4, 4]
    Ks: Tensor  # [1, 3, 3]
    width: int
    height: int

    def features(self, channels: int) -> Tensor:
        """[N, channels] normal features, fixed by the seed 1."""
        return torch.randn(len(self.means), channels, generator=torch.Generator().manual_seed(1))


def matched(gaussians: int = 1_000_000, width: int = 1920, height: int = 1080, seed: int = 0) -> Workload:
    """The reference workload; the small one is ``matched(112_000, 640, 360)``.

    The density per tile is the same at every size as long as gaussians / (width * height) is.
    """
    g = torch.Generator().manual_seed(seed)
    aspect = torch.tensor([height / width, 1.0])

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    centres = uniform(CLUSTERS, 2)
    weights = torch.exp(CLUSTER_CONTRAST * normal(CLUSTERS))
    radii = CLUSTER_SIZE * torch.exp(0.5 * normal(CLUSTERS))
    which = torch.multinomial(weights, gaussians, replacement=True, generator=g)
    at = centres[which] + radii[which, None] * normal(gaussians, 2) * aspect
    at = torch.where((uniform(gaussians) < EVEN)[:, None], uniform(gaussians, 2), at)
    at = torch.where((uniform(gaussians) < PEAK)[:, None], 0.5 + PEAK_SIZE * normal(gaussians, 2) * aspect, at)
    at = at - at.floor()  # wrapped around, so that all of them fall into the image
    depths = NEAR * (FAR / NEAR) ** uniform(gaussians)
    offsets = (at - 0.5) * torch.tensor([float(width), float(height)])
    means = torch.cat([offsets / FOCAL * depths[:, None], depths[:, None]], dim=1)
    means = torch.where((uniform(gaussians) < SEEN)[:, None], means, -means)
    return Workload(
        means=means,
        quats=normal(gaussians, 4),
        scales=1e-4 + (0.02 - 1e-4) * uniform(gaussians, 3),
        opacities=uniform(gaussians),
        colors=uniform(gaussians, 3),
        viewmats=torch.eye(4)[None],
        Ks=torch.tensor([[[FOCAL, 0, width / 2], [0, FOCAL, height / 2], [0, 0, 1]]]),
        width=width,
        height=height,
    )


def statistics(w: Workload) -> dict[str, float]:
    """What the workload reaches, counted by the reference backend."""
    from featuresplat.raster import contributions
    from featuresplat.raster._inputs import check_inputs
    from featuresplat.raster._view import view_of

    splats = (w.means, w.quats, w.scales, w.opacities)
    inputs = check_inputs(*splats, None, w.viewmats, w.Ks, w.width, w.height)
    per_tile = torch.tensor(view_of(inputs, 0).offsets).diff()
    pairs = contributions(*splats, w.viewmats, w.Ks, w.width, w.height, backend="reference").pixels.sum()
    return {
        "gaussians": len(w.means),
        "tile_intersections": int(per_tile.sum()),
        "median_per_tile": int(per_tile.median()),
        "max_per_tile": int(per_tile.max()),
        "pairs_per_pixel": round(float(pairs) / (w.width * w.height), 1),
    }


if __name__ == "__main__":
    torch.set_num_threads(2)
    for size in ((1_000_000, 1920, 1080), (112_000, 640, 360)):
        print(f"{size[1]}x{size[2]}", statistics(matched(*size)))
