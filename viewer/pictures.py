"""A scene as pixels: what our engine draws for one browser's look.

Everything that is a value per Gaussian (normals, feature colours, scores, objects, selections) is splatted beside the
colours in the same pass of the rasterizer, so a picture costs one render whatever it shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat
from featuresplat.io.colormap import colorize_depth, colormap
from featuresplat.scene import Scene
from featuresplat.types import Cameras, RenderOutput

from .look import KINDS, Look

GREY = torch.tensor([0.299, 0.587, 0.114])
RGB = tuple[float, float, float]


@dataclass(frozen=True)
class Mark:
    """A set of Gaussians drawn over the picture: outlined, and tinted where it is not only a line."""

    mask: Tensor  # bool [N]
    color: RGB
    line: bool = False


@dataclass(frozen=True)
class Overlay:
    """What the document adds to a look.

    Attributes:
        marks: selections to draw.
        values: [N, K] per Gaussian: scores of K prompts for ``relevancy``, colours [N, 3] for ``features`` and
            ``instances``.
        colors: one per prompt.
        threshold: scores above it are in, for the pictures of all prompts.
    """

    marks: Sequence[Mark] = ()
    values: Tensor | None = None
    colors: Sequence[RGB] = ()
    threshold: float = 0.5

    def rows(self, index: Tensor) -> Overlay:
        """Of some Gaussians only."""
        marks = [replace(m, mask=m.mask[index]) for m in self.marks]
        return replace(self, marks=marks, values=None if self.values is None else self.values[index])


def kinds_of(scene: Scene) -> dict[str, str]:
    """What can be shown of a scene, and what it is called."""
    own = getattr(registry.load("modes", scene.mode), "KINDS", ())
    return KINDS | {k: k.replace("_", " ").capitalize() for k in own if k not in KINDS}


@torch.no_grad()
def picture(scene: Scene, camera: Cameras, look: Look, overlay: Overlay) -> tuple[Tensor, Tensor]:
    """What a look shows from one camera.

    Returns:
        uint8 [H, W, 3], and float [H, W] camera z for mixing with what the browser draws, 0 where nothing is.

    Raises:
        FeaturesplatError: the kind is not known, or the mode refuses it.
    """
    scene, rows = shown(scene, look)
    overlay = overlay if rows is None else overlay.rows(rows)
    if look.time is not None:
        camera = replace(camera, times=torch.tensor([look.time], dtype=torch.float64))
    values, marks = overlay.values, [m for m in overlay.marks if look.outlines]
    channels = _channels(scene, camera, look, values, marks)
    background = torch.tensor(look.background, dtype=torch.float32)
    mode_kind = look.kind not in KINDS
    out = scene.render(camera, features=channels, backgrounds=background, light=look.light)
    extra = out.features[0] if out.features is not None else out.alpha.new_zeros(*out.alpha.shape[1:3], 0)
    kind_channels = extra.shape[-1] - len(marks)
    if mode_kind:
        image = _mode_picture(scene, camera, look, background)
    else:
        image = _compose(out, extra[..., :kind_channels], look, overlay)
    image = image.to(out.alpha.device)  # scales of colours are made on the CPU
    for i, mark in enumerate(marks):
        image = _marked(image, extra[..., kind_channels + i], mark)
    depth = torch.where(out.alpha[0, ..., 0] >= 0.5, out.depth[0, ..., 0], torch.zeros(()))
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).cpu(), depth.cpu()


def shown(scene: Scene, look: Look) -> tuple[Scene, Tensor | None]:
    """The scene inside the crop box, its splats resized, and which rows those are (None: all)."""
    rows = None
    if look.crop is not None:
        low, high = (torch.tensor(c, device=scene.gaussians.means.device) for c in look.crop)
        means = scene.gaussians.means
        rows = ((means >= low) & (means <= high)).all(dim=1)
        scene = scene.rows(rows)
    if look.size != 1.0:
        g = scene.gaussians
        scene = replace(scene, gaussians=replace(g, log_scales=g.log_scales + float(np.log(look.size))))
    return scene, rows


def _channels(scene: Scene, camera: Cameras, look: Look, values: Tensor | None, marks: list[Mark]) -> Tensor | None:
    """[N, K] what is splatted beside the colours: the kind's own values, then one channel per mark."""
    parts = []
    if look.kind == "normals":
        parts.append(facing_normals(scene, camera))
    elif values is not None and look.kind in ("features", "relevancy", "instances"):
        parts.append(values.float())
    parts += [m.mask[:, None].float() for m in marks]
    return torch.cat(parts, dim=1) if parts else None


def facing_normals(scene: Scene, camera: Cameras) -> Tensor:
    """[N, 3] unit normals in camera axes, towards the camera: the shortest axis of each Gaussian."""
    g = scene.at(None if camera.times is None else float(camera.times[0]))
    R = quat_to_rotmat(torch.nn.functional.normalize(g.quats, dim=1))
    axis = g.log_scales.argmin(dim=1)
    normals = R.gather(2, axis[:, None, None].expand(-1, 3, 1))[..., 0]
    viewmat = camera.viewmats[0].to(g.means.device, torch.float32)
    to_camera = camera.positions[0].to(g.means.device, torch.float32) - g.means
    normals = torch.where((normals * to_camera).sum(1, keepdim=True) < 0, -normals, normals)
    return normals @ viewmat[:3, :3].T


def normal_colors(normals: Tensor) -> Tensor:
    """Normals [..., 3] in camera axes (OpenCV) as colours: right red, up green, towards the viewer blue."""
    return 0.5 + 0.5 * normals * normals.new_tensor([1.0, -1.0, -1.0])


def _compose(out: RenderOutput, values: Tensor, look: Look, overlay: Overlay) -> Tensor:
    """The picture [H, W, 3] in 0..1 of the kinds that every scene has."""
    alpha = out.alpha[0]
    rgb = out.rgb[0] if out.rgb is not None else alpha.new_zeros(*alpha.shape[:2], 3)
    if look.kind == "depth":
        return colorize_depth(out.depth[0, ..., 0], alpha=alpha[..., 0]).float() / 255
    if look.kind == "alpha":
        return alpha.expand(-1, -1, 3)
    if look.kind == "normals":
        return normal_colors(torch.nn.functional.normalize(values, dim=-1)) * alpha
    if look.kind in ("features", "instances") and values.shape[-1] == 3:
        return values + (1 - alpha) * alpha.new_tensor(look.background)
    if look.kind == "relevancy" and values.shape[-1]:
        grey = (rgb.clamp(0, 1) * GREY.to(rgb)).sum(-1, keepdim=True)
        return heat(values / alpha.clamp_min(1e-3) * (alpha > 0.1), grey, look.prompt, overlay)
    return rgb


def heat(scores: Tensor, grey: Tensor, prompt: int, overlay: Overlay) -> Tensor:
    """Scores [..., K] over a grey picture [..., 1]: one prompt as a scale, or all of them in their own colours."""
    if 0 <= prompt < scores.shape[-1]:
        scale = colormap(scores[..., prompt]).to(grey) / 255
        return 0.25 * grey + 0.75 * scale
    best = scores.max(dim=-1)
    colors = grey.new_tensor([tuple(c) for c in overlay.colors] or [(1.0, 1.0, 1.0)])
    strength = ((best.values - overlay.threshold) / max(1 - overlay.threshold, 1e-3)).clamp(0, 1)[..., None]
    strength = torch.where(strength > 0, 0.35 + 0.55 * strength, torch.zeros(()))
    lit = colors[best.indices.clamp_max(len(colors) - 1)] * (0.45 + 0.55 * grey)
    return torch.lerp(0.55 * grey.expand(*grey.shape[:-1], 3), lit, strength)


def _marked(image: Tensor, share: Tensor, mark: Mark) -> Tensor:
    """A tint where a selection shows, and a line of two pixels around it."""
    paint = image.new_tensor(mark.color)
    inside = share > 0.5
    edge = _edge(inside, 2 if min(inside.shape) >= 300 else 1)
    if not mark.line:
        image = torch.where(inside[..., None], torch.lerp(image, paint.expand_as(image), 0.25), image)
    return torch.where(edge[..., None], paint.expand_as(image), image)


def _edge(mask: Tensor, width: int) -> Tensor:
    """bool [H, W]: the pixels just outside of a mask."""
    grown = torch.nn.functional.max_pool2d(mask[None, None].float(), 2 * width + 1, 1, width)[0, 0] > 0
    return grown & ~mask


def _mode_picture(scene: Scene, camera: Cameras, look: Look, background: Tensor) -> Tensor:
    """A kind of the mode's own, grey where it is one number."""
    from featuresplat.scene import RenderRequest

    module = registry.load("modes", scene.mode)
    if look.kind not in getattr(module, "KINDS", ()):
        raise FeaturesplatError(f"view: there is none called '{look.kind}'.", "Choose another view.")
    image = module.picture(scene, camera, look.kind, RenderRequest(None, background, look.light, None))[0]
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    return image.expand(-1, -1, 3) if image.shape[-1] == 1 else image
