"""Coloured points as Gaussians: the start of a training, and a way to look at a point cloud."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.spatial import KDTree

from featuresplat.errors import FeaturesplatError
from featuresplat.types import SH_C0, Gaussians, PointCloud

LONE_SCALE = 0.01
"""Standard deviation, in world units, of a point that has no neighbour at another place."""


def gaussians_from_points(
    points: PointCloud,
    sh_degree: int = 0,
    opacity: float = 0.1,
    neighbours: int = 3,
    scale: float = 1.0,
) -> Gaussians:
    """Round Gaussians at the points, as wide as the points are apart.

    The standard deviation is ``scale`` times the mean distance to the nearest ``neighbours`` points (Kerbl et
    al. 2023). Points at one and the same place count as neighbours of each other until all are; then the
    nearest other places decide, so that no scale is zero. Rotations are the identity, higher harmonics zero.

    Args:
        points: M points, world frame; rows with NaN are left out, with a warning.
        sh_degree: 0 to 4.
        opacity: strictly between 0 and 1.
        neighbours: at least 1; fewer points than that use all there are.
        scale: factor on the distances.

    Returns:
        Gaussians, float32, on the device of ``points.xyz``.

    Raises:
        FeaturesplatError: no points, wrong shapes, or a number out of its range.
    """
    _check(points, sh_degree, opacity, neighbours, scale)
    xyz, rgb = points.xyz.detach().float(), points.rgb.detach().float()
    good = xyz.isfinite().all(dim=1) & rgb.isfinite().all(dim=1)
    if not bool(good.all()):
        warnings.warn(f"points: left out {int((~good).sum())} of {len(good)} that are NaN or infinite.", stacklevel=2)
        xyz, rgb = xyz[good], rgb[good]
    if len(xyz) == 0:
        raise FeaturesplatError("points: expected at least one finite point, got none.", "Check the point cloud.")
    distances = torch.from_numpy(mean_neighbour_distance(xyz.cpu().double().numpy(), neighbours)).to(xyz)
    count = len(xyz)
    quats = xyz.new_zeros(count, 4)
    quats[:, 0] = 1.0
    return Gaussians(
        means=xyz.clone(),
        quats=quats,
        log_scales=(distances * scale).log()[:, None].repeat(1, 3),
        logit_opacities=torch.logit(xyz.new_full((count,), opacity)),
        sh0=((rgb - 0.5) / SH_C0)[:, None],
        shN=xyz.new_zeros(count, (sh_degree + 1) ** 2 - 1, 3),
    )


def mean_neighbour_distance(xyz: np.ndarray, neighbours: int = 3) -> np.ndarray:
    """[M] mean distance of points [M, 3] to their nearest ``neighbours`` others, always above zero.

    A point whose neighbours all share its place takes the distance that its place has among the other places,
    and :data:`LONE_SCALE` when there is no other place.
    """
    distance = _mean_distance(xyz, neighbours)
    # Below this, float32 positions cannot be told apart.
    least = 1e-7 * max(float(np.abs(xyz).max()), 1e-30)
    crowded = distance <= least
    if crowded.any():
        places, place_of = np.unique(xyz, axis=0, return_inverse=True)
        distance[crowded] = _mean_distance(places, neighbours)[place_of.reshape(-1)[crowded]]
        distance = np.where(distance > least, distance, LONE_SCALE if len(places) == 1 else max(least, 1e-12))
    return distance


def _mean_distance(xyz: np.ndarray, neighbours: int) -> np.ndarray:
    wanted = min(neighbours, len(xyz) - 1)
    if wanted < 1:
        return np.zeros(len(xyz))
    distances, _ = KDTree(xyz).query(xyz, k=wanted + 1, workers=-1)  # [M, wanted + 1], the point itself first
    return distances[:, 1:].mean(axis=1)


def _check(points: PointCloud, sh_degree: int, opacity: float, neighbours: int, scale: float) -> None:
    shapes = tuple(points.xyz.shape), tuple(points.rgb.shape)
    if shapes != ((len(points), 3),) * 2:
        raise FeaturesplatError(
            f"points: expected xyz and rgb of [M, 3], got {shapes[0]} and {shapes[1]}.", "Transpose?"
        )
    if sh_degree not in range(5):
        raise FeaturesplatError(f"sh_degree: expected 0 to 4, got {sh_degree}.", "Choose one of them.")
    if not 0.0 < opacity < 1.0:
        raise FeaturesplatError(f"opacity: expected a number between 0 and 1, got {opacity}.", "0.1 is usual.")
    if neighbours < 1 or not scale > 0.0:
        raise FeaturesplatError(
            f"expected at least 1 neighbour and a scale above 0, got {neighbours} and {scale}.",
            "3 and 1.0 are usual.",
        )
