"""Camera paths: a circle around what the cameras look at, and a smooth way through given views.

World frame and units are those of the cameras given; everything is computed in float64 and returned so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat, rotmat_to_quat
from featuresplat.types import Cameras


def up_axis(cameras: Cameras) -> Tensor:
    """[3] unit vector, float64: the direction that is up in most of the images.

    People hold cameras level, so up is what is most nearly at right angles to all the image x axes (least
    squares: an eigenvector). A slight pull towards the cameras' own up directions decides where that leaves a
    choice, as for cameras that all look the same way.

    Raises:
        FeaturesplatError: no cameras.
    """
    axes = _rotations(cameras)
    right, up = axes[:, 0], -axes[:, 1]  # [C, 3]
    own = torch.eye(3, dtype=torch.float64) - up.T @ up / len(up)
    found = torch.linalg.eigh(right.T @ right / len(right) + 1e-3 * own)[1][:, 0]
    return found if float(up.mean(0) @ found) >= 0 else -found


def focus_point(cameras: Cameras) -> Tensor:
    """[3] float64: the point nearest to all optical axes, in the least-squares sense.

    Where the axes leave it open (one camera, parallel axes), it lies as far before the cameras' middle as the
    cameras are spread, or one unit for a single camera.

    Raises:
        FeaturesplatError: no cameras.
    """
    forward = _rotations(cameras)[:, 2]  # [C, 3]
    origins = cameras.positions.detach().cpu().double()
    middle = origins.mean(0)
    spread = float((origins - middle).norm(dim=1).mean())
    spread = spread if spread > 1e-9 else 1.0
    guess = middle + spread * torch.nn.functional.normalize(forward.mean(0), dim=0)
    across = torch.eye(3, dtype=torch.float64) - forward[:, :, None] * forward[:, None, :]  # [C, 3, 3]
    A = across.mean(0) + 1e-9 * torch.eye(3, dtype=torch.float64)
    b = (across @ (origins - guess)[..., None]).mean(0)[:, 0]
    return guess + torch.linalg.solve(A, b)


def orbit(cameras: Cameras, frames: int = 120, radius_scale: float = 1.0, height_offset: float = 0.0) -> Cameras:
    """A closed circle around `focus_point` at the mean height and distance of the cameras, looking at it.

    Args:
        cameras: the views of a scene; the circle begins at the side of the first of them.
        frames: how many cameras, evenly spaced; the last stands one step before the first.
        radius_scale: factor on the radius.
        height_offset: added to the height above the focus, in units of the radius.

    Returns:
        ``frames`` cameras with the intrinsics of the camera of median field of view, times from 0 to 1 where the
        cameras given have times.

    Raises:
        FeaturesplatError: no cameras, fewer than 1 frame, or cameras that stand where they look.
    """
    _check_frames(frames, 1)
    up, focus = up_axis(cameras), focus_point(cameras)
    positions = cameras.positions.detach().cpu().double()
    relative = positions - focus
    heights = relative @ up
    outward = relative - heights[:, None] * up
    radius = float(outward.norm(dim=1).mean()) * radius_scale
    if not radius > 1e-6 * float(torch.cat([relative, positions]).norm(dim=1).max()):
        raise FeaturesplatError(
            "orbit: the cameras stand at, or straight above, the point they look at.", "Use the path 'spline'."
        )
    first = outward[outward.norm(dim=1).argmax()] if float(outward[0].norm()) < 1e-6 * radius else outward[0]
    x = torch.nn.functional.normalize(first, dim=0)
    y = torch.linalg.cross(up, x)
    angles = torch.arange(frames, dtype=torch.float64) * (2 * torch.pi / frames)
    height = float(heights.mean()) + height_offset * radius
    ring = angles.cos()[:, None] * x + angles.sin()[:, None] * y  # [frames, 3]
    viewmats = look_at(focus + radius * ring + height * up, focus, up)
    return _with_intrinsics(cameras, viewmats, torch.linspace(0, 1, frames, dtype=torch.float64))


def spline(cameras: Cameras, frames: int = 120, closed: bool = False) -> Cameras:
    """A smooth way through the given views in their order.

    Positions follow a Catmull-Rom spline (1974), rotations Shoemake's spherical quadrangle curve (1987): both
    pass through the views, without a jump in speed. View k of n is met at frame k (frames - 1) / (n - 1) where
    that is a whole number (closed: at frame k frames / n).

    Args:
        cameras: at least two views.
        frames: how many cameras.
        closed: return to the first view; the last frame stands one step before it.

    Raises:
        FeaturesplatError: fewer than 2 views or frames.
    """
    _check_frames(frames, 2)
    count = len(cameras)
    if count < 2:
        raise FeaturesplatError(f"spline: expected at least 2 views, got {count}.", "Use the path 'orbit'.")
    spans = count if closed else count - 1
    at = torch.arange(frames, dtype=torch.float64) * spans / (frames if closed else frames - 1)
    span = at.floor().long().clamp_max(spans - 1)
    t = (at - span)[:, None]  # [frames, 1]

    def neighbour(offset: int) -> Tensor:
        index = span + offset
        return index % count if closed else index.clamp(0, count - 1)

    before, here, there, after = (neighbour(k) for k in (-1, 0, 1, 2))
    places = cameras.positions.detach().cpu().double()
    p0, p1, p2, p3 = places[before], places[here], places[there], places[after]
    positions = 0.5 * (
        2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    )
    quats = rotmat_to_quat(_rotations(cameras))
    q1, q2 = quats[here], _toward(quats[here], quats[there])
    s1 = _inner(quats[before], q1, q2)
    s2 = _inner(q1, q2, quats[after])
    turned = _slerp(_slerp(q1, q2, t), _slerp(s1, s2, t), 2 * t * (1 - t))
    R = quat_to_rotmat(turned)
    viewmats = _viewmats(R, positions)
    if cameras.times is None:
        return _with_intrinsics(cameras, viewmats, None)
    times = cameras.times.detach().cpu().double()
    return _with_intrinsics(cameras, viewmats, torch.lerp(times[here], times[there], t[:, 0]))


def look_at(eyes: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """[C, 4, 4] world-to-camera, OpenCV axes, of cameras at ``eyes`` [C, 3] that look at ``target`` [3]."""
    z = torch.nn.functional.normalize(target - eyes, dim=-1)
    x = torch.nn.functional.normalize(torch.linalg.cross(z, up.expand_as(z)), dim=-1)
    return _viewmats(torch.stack([x, torch.linalg.cross(z, x), z], dim=-2), eyes)


def _viewmats(R: Tensor, positions: Tensor) -> Tensor:
    """[C, 4, 4] of world-to-camera rotations [C, 3, 3] and camera centres [C, 3]."""
    out = torch.eye(4, dtype=R.dtype).repeat(len(R), 1, 1)
    out[:, :3, :3] = R
    out[:, :3, 3] = -(R @ positions[..., None])[..., 0]
    return out


def _rotations(cameras: Cameras) -> Tensor:
    """[C, 3, 3] float64; the rows are the camera's right, down and forward directions in the world."""
    if len(cameras) == 0:
        raise FeaturesplatError("camera path: there are no cameras.", "Give at least one camera.")
    return cameras.viewmats[:, :3, :3].detach().cpu().double()


def _check_frames(frames: int, least: int) -> None:
    if frames < least:
        raise FeaturesplatError(f"frames: expected at least {least}, got {frames}.", "120 are usual.")


def _with_intrinsics(cameras: Cameras, viewmats: Tensor, times: Tensor | None) -> Cameras:
    """Cameras at ``viewmats`` that see as the given camera of median field of view does."""
    widths = torch.tensor(list(cameras.widths), dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    focal = cameras.Ks[:, 0, 0].detach().cpu().double() / widths
    one = cameras[int(focal.argsort()[len(focal) // 2])]
    K = one.Ks.detach().cpu().double().repeat(len(viewmats), 1, 1)
    return Cameras(viewmats, K, one.width, one.height, None if cameras.times is None else times)


def _toward(a: Tensor, b: Tensor) -> Tensor:
    """b or -b, the one on a's side: the same rotation, the shorter way."""
    return torch.where((a * b).sum(-1, keepdim=True) < 0, -b, b)


def _slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Unit quaternions [..., 4] on the great arc from a to b; t [..., 1]."""
    cosine = (a * b).sum(-1, keepdim=True).clamp(-1, 1)
    angle = cosine.arccos()
    sine = angle.sin()
    near = sine < 1e-6
    wide = ((1 - t) * angle).sin() * a + (t * angle).sin() * b
    return torch.nn.functional.normalize(torch.where(near, torch.lerp(a, b, t), wide), dim=-1)


def _inner(before: Tensor, here: Tensor, after: Tensor) -> Tensor:
    """Shoemake's inner control quaternion, q exp(-(log(q^-1 after) + log(q^-1 before)) / 4)."""
    bend = _log(here, _toward(here, before)) + _log(here, _toward(here, after))  # [..., 3]
    return _multiply(here, _exp(-bend / 4))


def _log(base: Tensor, q: Tensor) -> Tensor:
    """[..., 3] the half rotation vector of base^-1 q."""
    d = _multiply(base * torch.tensor([1.0, -1, -1, -1], dtype=base.dtype), q)
    sine = d[..., 1:].norm(dim=-1, keepdim=True)
    angle = torch.atan2(sine, d[..., :1])
    return d[..., 1:] * torch.where(sine > 1e-12, angle / sine.clamp_min(1e-12), torch.ones_like(sine))


def _exp(v: Tensor) -> Tensor:
    """[..., 4] the inverse of `_log` at the identity."""
    angle = v.norm(dim=-1, keepdim=True)
    return torch.cat([angle.cos(), v * torch.sinc(angle / torch.pi)], dim=-1)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Hamilton product, wxyz."""
    w, v, s, u = a[..., :1], a[..., 1:], b[..., :1], b[..., 1:]
    real = w * s - (v * u).sum(-1, keepdim=True)
    return torch.cat([real, w * u + s * v + torch.linalg.cross(v, u)], dim=-1)
