"""From splatted parameters to shaded pixels: what training and rendering of the mode `inverse` share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.geometry import quat_to_rotmat
from featuresplat.modes._inverse_curvature import turned
from featuresplat.shading.deferred import Received
from featuresplat.shading.monte_carlo import Surface

LEAST_ALPHA = 0.05
"""Pixels with less are not shaded."""
TURNED_AWAY = -0.3
"""Cosine to the view below which a pixel shows the back of what it shows."""
GRAZING = 0.1
"""Least cosine between the view and the normal of a finished scene's pixel."""
CHANNELS = 25
"""base colour 3, roughness, metallic, progress, normal 3, direct 3, reflected 3, openness; curvature 6, from the
camera to the centre 3."""
EDGE_ON, APART = 0.05, 0.03
"""Cosine to the view below which, and relative distance to the blended depth from which on, a plane tells no depth."""


@dataclass
class Pixels:
    """The P pixels of a view that show a surface.

    Attributes:
        rows: [P] places in the flattened image.
        alpha: [P, 1].
        surface, received: as `featuresplat.shading.deferred` takes them.
        progress: [P, 1] in 0..1.
    """

    rows: Tensor
    alpha: Tensor
    surface: Surface
    received: Received
    progress: Tensor


def shortest_axes(quats: Tensor, log_scales: Tensor) -> Tensor:
    """[N, 3] unit: the axis along which each Gaussian is thinnest, of either sign."""
    thin = log_scales.detach().argmin(1)
    return quat_to_rotmat(quats).gather(2, thin[:, None, None].expand(-1, 3, 1))[..., 0]


def facing(axes: Tensor, towards: Tensor) -> Tensor:
    """The axes [N, 3], turned round where they point away from ``towards`` [N, 3]."""
    return torch.where(((axes * towards).sum(-1, keepdim=True) < 0), -axes, axes)


def view_rays(viewmat: Tensor, K: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    """Camera centre [3] and [H, W, 3] world-frame rays whose camera z is 1."""
    x = (torch.arange(width, device=K.device, dtype=K.dtype) + 0.5 - K[0, 2]) / K[0, 0]
    y = (torch.arange(height, device=K.device, dtype=K.dtype) + 0.5 - K[1, 2]) / K[1, 1]
    rays = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width), x.new_ones(height, width)], -1)
    return -viewmat[:3, :3].T @ viewmat[:3, 3], rays @ viewmat[:3, :3]


def plane_distances(means: Tensor, normals: Tensor, centre: Tensor) -> Tensor:
    """[N, 1] distance of the camera from each Gaussian's plane, signed: negative where the normal faces it."""
    return ((means - centre) * normals).sum(-1, keepdim=True)


def plane_depth(normals: Tensor, distances: Tensor, rays: Tensor, depth: Tensor) -> Tensor:
    """[H, W] z-depth where each pixel's ray meets the blended plane (Chen et al. 2024, PGSR).

    The centres' depths, blended, are a staircase; planes are not. Where the plane is seen edge-on, or the two are
    further apart than a tenth, the pixel keeps the blended ``depth``.

    Args:
        normals: [H, W, 3], distances: [H, W, 1] splatted, premultiplied alike. rays: [H, W, 3] with z = 1.
        depth: [H, W] of the centres.
    """
    slope = (normals * rays).sum(-1)
    plane = distances[..., 0] / torch.where(slope < -1e-3, slope, -1e-3)
    close = (slope.detach() < -1e-3) & ((plane - depth).detach().abs() < 0.1 * depth.detach())
    return torch.where(close, plane, depth)


def depth_normals(depth: Tensor, centre: Tensor, rays: Tensor) -> Tensor:
    """[H, W, 3] unit normals, world frame, facing the camera, of a depth map [H, W]; zero along the border."""
    points = centre + depth[..., None] * rays
    across = points[1:-1, 2:] - points[1:-1, :-2]
    down = points[2:, 1:-1] - points[:-2, 1:-1]
    return F.pad(F.normalize(torch.linalg.cross(down, across), dim=-1), (0, 0, 1, 1, 1, 1))


def surface_rows(alpha: Tensor) -> Tensor:
    """[P] places, in the flattened image, of the pixels that show a surface."""
    return (alpha.detach().reshape(-1) > LEAST_ALPHA).nonzero()[:, 0]


def pixels_of(
    features: Tensor, alpha: Tensor, depth: Tensor, centre: Tensor, rays: Tensor, rows: Tensor | None = None
) -> Pixels:
    """The shaded pixels of a view: those at ``rows``, or all that show a surface.

    Args:
        features: [H, W, CHANNELS] splatted, premultiplied. alpha, depth: [H, W, 1].
        centre, rays: as `view_rays` gives them.
    """
    rows = surface_rows(alpha) if rows is None else rows
    a = alpha.reshape(-1, 1)[rows]
    f = features.reshape(-1, features.shape[-1])[rows] / a
    ray = rays.reshape(-1, 3)[rows]
    view = -F.normalize(ray, dim=-1)
    normal, z = shape_at(f[:, 6:9], f[:, 16:22], f[:, 22:25], ray, depth.detach().reshape(-1, 1)[rows])
    # A thin wall has one normal, whichever side is seen; at outlines normals turn away a little, and stay.
    normal = torch.where((normal * view).sum(-1, keepdim=True) < TURNED_AWAY, -normal, normal)
    surface = Surface(
        normal=normal,
        view=view,
        base_color=f[:, 0:3],
        roughness=f[:, 3],
        metallic=f[:, 4],
        position=centre + z * ray,
    )
    return Pixels(rows, a, surface, Received(f[:, 9:12], f[:, 12:15], f[:, 15]), f[:, 5:6])


def shape_at(normal: Tensor, bend: Tensor, place: Tensor, ray: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
    """The unit normals [P, 3] and z-depths [P, 1] of what pixels show.

    What is blended is of the Gaussians' centres, which lie nearer to the camera than what they cover. The pixel's ray
    meets the plane through the mean centre further back, and there the normal has turned (`_inverse_curvature`).

    Args:
        normal: [P, 3], bend: [P, 6], place: [P, 3] means of normals, curvatures and centres, from the camera's.
        ray: [P, 3] with z = 1. depth: [P, 1] mean of the centres' depths.
    """
    with torch.no_grad():
        slope = (normal * ray).sum(-1, keepdim=True)
        seen = slope.abs() > EDGE_ON * normal.norm(dim=-1, keepdim=True) * ray.norm(dim=-1, keepdim=True)
        z = (normal * place).sum(-1, keepdim=True) / torch.where(seen, slope, 1.0)
        z = torch.where(seen & ((z - depth).abs() < APART * depth), z, depth)
        away = z * ray - place
    return turned(normal, bend.detach(), away.detach()), z


def towards_view(normal: Tensor, view: Tensor) -> Tensor:
    """Unit normals [P, 3], those that point away from the viewer [P, 3] turned until they graze.

    At outlines blended normals do, each by another bit; a low sun in them is a row of sparks.
    """
    cosine = (normal * view).sum(-1, keepdim=True)
    return F.normalize(normal + (GRAZING - cosine).clamp_min(0) * view, dim=-1)


def spread(values: Tensor, rows: Tensor, height: int, width: int) -> Tensor:
    """[H, W, C] image with ``values`` [P, C] at ``rows`` and zero elsewhere; differentiable."""
    out = values.new_zeros(height * width, values.shape[-1])
    return out.index_put((rows,), values).reshape(height, width, -1)


def damped(values: Tensor, share: float) -> Tensor:
    """The same values, of whose gradient only a share passes."""
    return values.detach() + share * (values - values.detach())


def logit(values: Tensor) -> Tensor:
    return torch.logit(values.clamp(0.004, 0.996))
