"""Flat pieces among points on surfaces: tables, floors, walls, the faces of boxes.

Where things stand on a table, or two faces meet, a neighbourhood has points of both, and whatever smooth is fitted to
it rounds off the edge. What is flat over many points can be told apart first.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

FEWEST = 60
"""Points that make a flat piece."""
MOST = 32
TRIES, REFINED = 256, 8
"""Points whose planes are tried for each piece, and how many of these planes are fitted to their points."""
NEAR, STRAYING = 0.12, 3.0
"""A point lies in a plane up to so many spacings from it, or so many times what points stray from their surface."""
ALIKE = 0.85
"""Cosine between a point's normal and the plane's from which on it may lie in it: at edges normals are blends."""
APART = 3.0
"""Points of a piece hang together over at most so many times the median distance to the fourth nearest of it."""


def flat_pieces(
    points: Tensor, normals: Tensor, spacing: float, straying: float, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Planes in each of which many points lie that hang together, the largest first: RANSAC with the points' own
    normals for candidates (Schnabel et al. 2007).

    Args:
        points, normals: [P, 3], float64; normals of either sign.
        spacing: median distance between points. straying: their noise, in spacings.

    Returns:
        [K, 4] unit normals n and offsets d, n x = d; [P] the piece of each point, -1 where there is none.
    """
    near = max(NEAR, STRAYING * straying) * spacing
    draw = torch.Generator().manual_seed(seed)
    piece, planes = torch.full((len(points),), -1), []
    while len(planes) < MOST:
        free = (piece < 0).nonzero()[:, 0]
        if len(free) < FEWEST:
            break
        xyz, along = points[free], normals[free]
        tried = torch.randperm(len(free), generator=draw)[:TRIES]
        sizes = _members(xyz, along, xyz[tried], along[tried], near).sum(1)
        found = [_refined(xyz, along, tried[k], near) for k in sizes.argsort(descending=True, stable=True)[:REFINED]]
        plane, inside = max(found, key=lambda f: int(f[1].sum()))
        if int(inside.sum()) < FEWEST:
            break
        piece[free[inside]] = len(planes)
        planes.append(plane)
    if not planes:
        return points.new_zeros(0, 4), piece
    _take_edges(points, torch.stack(planes), piece, near)
    return torch.stack(planes), piece


def _take_edges(points: Tensor, planes: Tensor, piece: Tensor, near: float) -> None:
    """Give points without a piece that lie in the plane of one beside them to it: at edges no normal agrees."""
    free = (piece < 0).nonzero()[:, 0]
    least, to = torch.full((len(free),), near, dtype=points.dtype), torch.full((len(free),), -1)
    for k, plane in enumerate(planes):
        own = KDTree(points[piece == k].numpy())
        reach = APART * np.median(own.query(own.data, k=5)[0][:, 4])
        beside = torch.from_numpy(own.query(points[free].numpy(), workers=-1)[0] < reach)
        off = (points[free] @ plane[:3] - plane[3]).abs()
        nearer = beside & (off < least)
        least[nearer], to[nearer] = off[nearer], k
    piece[free] = to


def _refined(points: Tensor, normals: Tensor, start: Tensor, near: float) -> tuple[Tensor, Tensor]:
    """The plane [4] that begins as that of one point, fitted to those that lie in it and hang together; which [P]."""
    middle, normal = points[start], normals[start]
    inside = _members(points, normals, middle[None], normal[None], near)[0]
    for _ in range(3):
        if int(inside.sum()) < FEWEST:
            break
        middle = points[inside].mean(0)
        moved = points[inside] - middle
        normal = torch.linalg.eigh(moved.T @ moved)[1][:, 0]
        inside = _members(points, normals, middle[None], normal[None], near)[0]
        inside[inside.clone()] = _together(points[inside])
    return torch.cat([normal, (normal @ middle)[None]]), inside


def _members(points: Tensor, normals: Tensor, at: Tensor, along: Tensor, near: float) -> Tensor:
    """[T, P] which points lie in the planes through ``at`` [T, 3] with unit normals ``along`` [T, 3]."""
    off = (along @ points.T - (at * along).sum(1, keepdim=True)).abs()
    return (off < near) & ((along @ normals.T).abs() > ALIKE)


def _together(points: Tensor) -> Tensor:
    """[P] the largest group of points that hang together."""
    xyz = points.numpy()
    if len(xyz) < FEWEST:
        return torch.zeros(len(xyz), dtype=torch.bool)
    distance, near = (np.asarray(t) for t in KDTree(xyz).query(xyz, k=9, workers=-1))
    linked = distance <= APART * np.median(distance[:, 4])
    rows = np.repeat(np.arange(len(xyz)), near.shape[1]).reshape(near.shape)[linked]
    _, group = connected_components(csr_array((np.ones(len(rows)), (rows, near[linked])), (len(xyz), len(xyz))), False)
    return torch.from_numpy(group == np.bincount(group).argmax())
