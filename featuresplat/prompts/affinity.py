"""A field in which Gaussians of one object are alike, learned from class-agnostic masks of the photographs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from featuresplat import raster
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.graph import graph_of, to_numpy
from featuresplat.prompts.surface import smaller, snapshot, solid
from featuresplat.types import Cameras, FeatureField, Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

TEACHER = "affinity"
"""What an affinity field gives as its teacher."""
PIXELS = 20_000
SAMPLES = 384
MARGIN = 0.2
"""Pixels of different masks are pushed apart until their cosine is below."""
ALIKE = 0.6
"""Codes whose cosine is above belong to one object."""
SAMPLE = 1500
RATE = 0.05


@dataclass(frozen=True)
class _View:
    """A training view: int64 [H*W] the smallest mask over each pixel, -1 = none, and which masks nest."""

    camera: Cameras
    labels: Tensor
    nested: Tensor  # bool [M, M]: one of the two lies in the other
    solid: Tensor


def train(
    scene: Scene,
    masks: Callable[[str], Sequence[Tensor]],
    dim: int = 32,
    steps: int = 300,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureField:
    """Train an affinity field: contrastive, with negatives, which GaussianGrasper lacks (after SAGA, Cen et al. 2023).

    Pixels of one mask attract each other, pixels of different masks repel; a mask inside another is neither with it.

    Args:
        scene: a trained scene; its training views are used.
        masks: name of a photograph -> bool [H, W] masks of it, any size, may overlap; empty where there are none.
        dim: channels.
        steps: of one view each.
        progress: called as ``progress(step, steps)``.

    Returns:
        Unit codes [N, dim].

    Raises:
        FeaturesplatError: no channels or steps, or no view has two masks to tell apart.
    """
    if dim < 1 or steps < 1:
        raise FeaturesplatError(
            f"affinity: expected dim and steps of at least 1, got {dim} and {steps}", "32 and 300 are usual."
        )
    gaussians = snapshot(scene)
    views = _views(scene, gaussians, masks)
    if not views:
        raise FeaturesplatError(
            "affinity: no training view has two masks to tell apart", "Use a teacher that makes masks, such as sam."
        )
    generator = torch.Generator().manual_seed(seed)
    count, device = len(gaussians), gaussians.means.device
    start = normalize(torch.randn(count, dim, generator=generator), dim=1).to(device)
    codes = torch.nn.Parameter(start)
    optimizer = torch.optim.Adam([codes], lr=RATE, eps=1e-15)
    settings = scene.raster_settings()
    order: list[int] = []
    for step in range(steps):
        if not order:
            order = torch.randperm(len(views), generator=generator).tolist()
        view = views[order.pop()]
        loss = _loss(_render(gaussians, codes, view, settings), view, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(step + 1, steps)
    return FeatureField(_smooth(gaussians, codes.detach()), TEACHER, info={"teacher": {"dim": dim, "steps": steps}})


def clusters(scene: Scene, field: FeatureField, seed: int = 0) -> Tensor:
    """int64 [N]: objects, -1 = none: groups of alike codes (average linkage of a sample, all others join the nearest
    group), each split into what hangs together in space.
    """
    graph = graph_of(scene.gaussians.means)
    codes = normalize(field.codes.detach().float(), dim=1).cpu()
    solid = (scene.gaussians.opacities > 0.2).cpu().nonzero()[:, 0]
    if len(solid) < 2:
        return torch.zeros(len(codes), dtype=torch.int64, device=field.codes.device)
    drawn = torch.randperm(len(solid), generator=torch.Generator().manual_seed(seed))[:SAMPLE]
    sample = codes[solid[drawn]]
    groups = fcluster(linkage(sample.double().numpy(), "average", metric="cosine"), 1 - ALIKE, "distance") - 1
    members = torch.from_numpy(groups).long()
    sizes = members.bincount()
    large = (sizes >= max(3, len(sample) // 500)).nonzero()[:, 0]
    means = normalize(torch.stack([sample[members == k].mean(0) for k in large.tolist()]), dim=1)
    near = (codes @ means.T).max(1)
    label = torch.where(near.values > ALIKE, near.indices, -1).numpy()
    part, sizes = graph.parts(label >= 0, label[graph.rows] == label[graph.cols])
    part[(part >= 0) & (np.append(sizes, 0)[part] < 5)] = -1
    return torch.from_numpy(part).to(field.codes.device)


def alike(field: FeatureField, members: Tensor) -> Tensor:
    """[N] in 0..1: cosine of each Gaussian with the mean of some ``members`` (bool or indices), negative ones 0."""
    codes = normalize(field.codes.float(), dim=1)
    return (codes @ normalize(codes[members].mean(0), dim=0)).clamp(0, 1)


def _views(scene: Scene, gaussians: Gaussians, masks: Callable[[str], Sequence[Tensor]]) -> list[_View]:
    names = scene.names("train") or list(scene.cameras.names)
    out = []
    for name in names:
        found = list(masks(name))
        if len(found) < 2:
            continue
        camera = smaller(scene.cameras[list(scene.cameras.names).index(name)], PIXELS)
        planes = torch.stack([m.float() for m in found])[:, None]
        small = interpolate(planes, (camera.height, camera.width), mode="area")[:, 0] > 0.5
        small = small[small.flatten(1).sum(1) >= 4]
        if len(small) < 2:
            continue
        small = small[small.flatten(1).sum(1).argsort(descending=True)]  # smaller ones are written over larger ones
        labels = torch.full((camera.height * camera.width,), -1)
        for k, mask in enumerate(small):
            labels[mask.flatten()] = k
        flat = small.flatten(1).float()
        shared, sizes = flat @ flat.T, flat.sum(1)
        nested = shared > 0.5 * torch.minimum(sizes[:, None], sizes[None, :])
        firm = solid(gaussians, camera, settings=scene.raster_settings())
        out.append(_View(camera, labels, nested, firm))
    return out


def _render(gaussians: Gaussians, codes: Tensor, view: _View, settings: raster.RasterSettings) -> Tensor:
    """[H*W, D] unit features of a view, differentiable in the codes."""
    some = gaussians[view.solid]
    viewmats, Ks = view.camera.viewmats.to(some.means), view.camera.Ks.to(some.means)
    out = raster.rasterize(
        some.means, some.quats, some.scales, some.opacities, None, viewmats, Ks, view.camera.width, view.camera.height,
        features=normalize(codes, dim=1)[view.solid], geometry_grad="none", settings=settings,
    ).features  # fmt: skip
    assert out is not None
    return normalize(out[0].flatten(0, 1), dim=1)


def _loss(features: Tensor, view: _View, generator: torch.Generator) -> Tensor:
    """Attraction within masks and repulsion between them, over pixels drawn so that small masks count as large ones."""
    inside = (view.labels >= 0).nonzero()[:, 0]
    labels = view.labels[inside]
    rarity = 1.0 / labels.bincount().float()[labels].sqrt()
    drawn = inside[torch.multinomial(rarity, min(SAMPLES, len(inside)), replacement=True, generator=generator)]
    chosen = features[drawn.to(features.device)]
    cosines = chosen @ chosen.T
    a = view.labels[drawn]
    same = (a[:, None] == a[None, :]).to(features.device)
    apart = (~view.nested[a][:, a]).to(features.device)
    pull = (1 - cosines)[same].mean()
    push = (cosines - MARGIN).clamp_min(0)[apart]
    return pull + (push.mean() if len(push) else 0.0)


def _smooth(gaussians: Gaussians, codes: Tensor) -> Tensor:
    """Unit codes, each moved half way to the mean of its neighbours: what no view sees has none of its own."""
    codes = normalize(codes, dim=1)
    graph = graph_of(gaussians.means)
    around = graph.matrix() @ to_numpy(codes)
    return normalize(codes + normalize(torch.from_numpy(around).to(codes), dim=1), dim=1)
