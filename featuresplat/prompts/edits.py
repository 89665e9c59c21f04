"""Changes to a scene as plain data: applied, undone and redone. `edit_files` writes them to YAML and reads them.

An edit is a frozen dataclass; ``apply`` gives a new scene that shares what has not changed. A mode module may offer
further kinds in a dict ``EDITS`` {kind: class}, and a function ``moved(scene, mask, rotation, scale, pivot, translate)
-> mode_state`` where its own tensors have to follow a `Transform`; likewise ``recolored(scene, mask, matrix, offset)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_multiply, quat_to_rotmat
from featuresplat.prompts import _colors, _spherical, pieces
from featuresplat.prompts.history import Edited as Edited
from featuresplat.prompts.targets import Target
from featuresplat.types import Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Edit:
    """One change. ``kind`` is its name in files."""

    kind: ClassVar[str] = ""
    target: Target = field(default_factory=Target)

    @property
    def dear(self) -> bool:
        """Doing it again takes long, or needs more than the scene: a history keeps what it made as long as it can."""
        return False

    def apply(self, scene: Scene) -> Scene:
        """The changed scene; ``scene`` itself stays as it is.

        Raises:
            FeaturesplatError: the target is not found, or a value makes no sense.
        """
        raise NotImplementedError

    def settled(self, scene: Scene) -> Edit:
        """The same change of the very Gaussians that it means in ``scene``, whatever is learned about them later."""
        if not (self.target.text or self.target.points or self.target.box is not None):
            return self
        return replace(self, target=Target.of(self.target.select(scene), scene))

    def describe(self) -> str:
        """In words, e.g. ``remove 'the mug'``."""
        values = [f"{k} {_shown(v)}" for k, v in self.to_dict().items() if k not in ("kind", "target")]
        return " ".join([self.kind, self.target.describe(), *values])

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``{"kind": ..., "target": {...}, ...}`` without what is at its default."""
        out: dict[str, Any] = {"kind": self.kind}
        if not self.target.everything:
            out["target"] = self.target.to_dict()
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "target" and (f.default is MISSING or value != f.default):
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out


@dataclass(frozen=True)
class Remove(Edit):
    """Take Gaussians away.

    Attributes:
        fill: fit the hole again from the views that see behind it.
    """

    kind: ClassVar[str] = "remove"
    fill: bool = False

    @property
    def dear(self) -> bool:
        return self.fill

    def apply(self, scene: Scene) -> Scene:
        mask = self.target.select(scene).mask
        if bool(mask.all()):
            raise FeaturesplatError(f"remove: {self.target.describe()} is the whole scene", "Say which part of it.")
        if self.fill:
            from featuresplat.prompts.refit import removed_and_filled

            return removed_and_filled(scene, mask)
        return _rows(scene, ~mask)


@dataclass(frozen=True)
class Extract(Edit):
    """Keep nothing but the target."""

    kind: ClassVar[str] = "extract"

    def apply(self, scene: Scene) -> Scene:
        return _rows(scene, self.target.select(scene).mask)


@dataclass(frozen=True)
class Recolor(Edit):
    """Another colour; light and shade stay.

    Attributes:
        color: name or ``#rrggbb``: take its hue and saturation, and its lightness on average.
        hue: degrees to turn the hue by.
        saturation: factor.
        lightness: factor.
        shift: added to red, green and blue, -1..1.
        strength: 0..1, how much of the change.
    """

    kind: ClassVar[str] = "recolor"
    color: str = ""
    hue: float = 0.0
    saturation: float = 1.0
    lightness: float = 1.0
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    strength: float = 1.0

    def apply(self, scene: Scene) -> Scene:
        if self.saturation < 0 or self.lightness < 0 or not 0 <= self.strength <= 1:
            raise FeaturesplatError(
                "recolor: saturation and lightness are factors of at least 0, strength lies in 0..1", "Mend the edit."
            )
        mask, g = self.target.select(scene).mask, scene.gaussians
        matrix, offset = self.color_map(g.colors[mask].clamp(0, 1), g.opacities[mask])
        sh0, shN = g.sh0.clone(), g.shN.clone()
        sh0[mask], shN[mask] = _spherical.recolored(g.sh0[mask], g.shN[mask], matrix, offset)
        out, module = replace(scene, gaussians=replace(g, sh0=sh0, shN=shN)), registry.load("modes", scene.mode)
        if hasattr(module, "recolored"):
            out = replace(out, mode_state=module.recolored(scene, mask, matrix, offset))
        return out

    def color_map(self, colors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The affine map of colours: matrix [3, 3] and offset [3], for colours [M, 3] of these weights [M]."""
        matrix = torch.eye(3)
        if self.color:
            luma = colors.cpu().float() @ _colors.LUMA
            mean = float((luma * weights.cpu()).sum() / weights.cpu().sum().clamp_min(1e-9))
            matrix = _colors.tint_matrix(_colors.color_of(self.color), mean)
        matrix = self.lightness * _colors.saturation_matrix(self.saturation) @ _colors.hue_matrix(self.hue) @ matrix
        mixed = self.strength * matrix + (1 - self.strength) * torch.eye(3)
        return mixed, self.strength * torch.tensor(self.shift)


@dataclass(frozen=True)
class Transform(Edit):
    """Move, turn and scale about the target's middle; colours that depend on the view turn with it.

    Attributes:
        translate: world units.
        rotate: quaternion wxyz.
        scale: factor, positive.
        pivot: world point that stays; default: the opacity-weighted mean of the target.
    """

    kind: ClassVar[str] = "transform"
    translate: tuple[float, float, float] = (0.0, 0.0, 0.0)
    rotate: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    scale: float = 1.0
    pivot: tuple[float, float, float] | None = None

    def apply(self, scene: Scene) -> Scene:
        return self._moved(scene, self.target.select(scene).mask)

    def _moved(self, scene: Scene, mask: Tensor) -> Scene:
        rotation = torch.tensor(self.rotate, dtype=torch.float64)
        if not self.scale > 0 or not float(rotation.norm()) > 1e-9:
            raise FeaturesplatError(
                f"{self.kind}: scale {self.scale:g}, rotate {self.rotate}: expected a positive factor and a quaternion "
                "that is not zero",
                "No turn is [1, 0, 0, 0].",
            )
        g = scene.gaussians
        pivot = self._pivot(g, mask)
        R = quat_to_rotmat(rotation)
        move = torch.tensor(self.translate, dtype=torch.float64)
        some = g[mask]
        device = g.means.device
        means = (some.means.double().cpu() - pivot) @ (self.scale * R).T + pivot + move
        new = Gaussians(
            means=means.to(g.means),
            quats=quat_multiply(rotation.to(device, g.quats.dtype), some.quats),
            log_scales=some.log_scales + math.log(self.scale),
            logit_opacities=some.logit_opacities,
            sh0=some.sh0,
            shN=_spherical.turned(some.shN, R),
        )
        changed = {name: _put(value, mask, getattr(new, name)) for name, value in g.tensors().items()}
        module = registry.load("modes", scene.mode)
        out = replace(scene, gaussians=Gaussians(**changed))
        if hasattr(module, "moved"):
            state = module.moved(scene, mask, R, self.scale, pivot, move)
            out = replace(out, mode_state=state)
        pieces.inherit(g.means, out.gaussians.means)
        return out

    def _pivot(self, g: Gaussians, mask: Tensor) -> Tensor:
        if self.pivot is not None:
            return torch.tensor(self.pivot, dtype=torch.float64)
        weights = g.opacities[mask].double().cpu()
        return (g.means[mask].double().cpu() * weights[:, None]).sum(0) / weights.sum().clamp_min(1e-12)


@dataclass(frozen=True)
class Duplicate(Transform):
    """As `Transform`, of a copy."""

    kind: ClassVar[str] = "duplicate"

    def apply(self, scene: Scene) -> Scene:
        copy = scene.rows(self.target.select(scene).mask)
        everything = torch.ones(len(copy.gaussians), dtype=torch.bool, device=copy.gaussians.means.device)
        return type(scene).cat([scene, self._moved(copy, everything)])


@dataclass(frozen=True)
class Insert(Transform):
    """Add Gaussians of another run or file; ``target`` chooses among the other's Gaussians.

    Attributes:
        source: run folder, or a file of Gaussians.
    """

    kind: ClassVar[str] = "insert"
    source: str = ""

    @property
    def dear(self) -> bool:
        return True

    def settled(self, scene: Scene) -> Edit:
        return self  # it means Gaussians of the other scene

    def apply(self, scene: Scene) -> Scene:
        if not self.source:
            raise FeaturesplatError("insert: expected a run folder or a file of Gaussians, got none", "Add source.")
        other = _other(scene, Path(self.source)).to(scene.gaussians.means.device)
        some = other.rows(self.target.select(other).mask)
        everything = torch.ones(len(some.gaussians), dtype=torch.bool, device=some.gaussians.means.device)
        return type(scene).cat([scene, self._moved(some, everything)])


@dataclass(frozen=True)
class Opacity(Edit):
    """More or less see-through.

    Attributes:
        factor: on the opacities, result clamped to 0..1.
    """

    kind: ClassVar[str] = "opacity"
    factor: float = 0.5

    def describe(self) -> str:
        return f"{self.kind} {self.target.describe()} factor {_shown(self.factor)}"

    def apply(self, scene: Scene) -> Scene:
        if self.factor < 0:
            raise FeaturesplatError(
                f"opacity: expected a factor of at least 0, got {self.factor:g}", "1 changes nothing."
            )
        mask, g = self.target.select(scene).mask, scene.gaussians
        values = (g.opacities[mask] * self.factor).clamp(1e-6, 1 - 1e-6).logit()
        return replace(scene, gaussians=replace(g, logit_opacities=_put(g.logit_opacities, mask, values)))


KINDS: dict[str, type[Edit]] = {c.kind: c for c in (Remove, Extract, Recolor, Transform, Duplicate, Insert, Opacity)}


def known_kinds() -> dict[str, type[Edit]]:
    """All kinds of edits by name, those of the modes included."""
    out = dict(KINDS)
    for mode in registry.names("modes"):
        out |= getattr(registry.load("modes", mode), "EDITS", {})
    return out


def apply_all(scene: Scene, edits: Sequence[Edit], told: Callable[[Edit], None] | None = None) -> Scene:
    """A scene after several edits; ``told`` hears of each before it is done."""
    for edit in edits:
        if told is not None:
            told(edit)
        scene = edit.apply(scene)
    return scene


def _rows(scene: Scene, keep: Tensor) -> Scene:
    out = scene.rows(keep)
    pieces.inherit(scene.gaussians.means, out.gaussians.means, keep)
    return out


def _put(values: Tensor, mask: Tensor, new: Tensor) -> Tensor:
    out = values.clone()
    out[mask] = new.to(out)
    return out


def _other(scene: Scene, source: Path) -> Scene:
    """Another scene to take Gaussians from: a run, or a file as a scene with this one's cameras."""
    if source.is_dir():
        return type(scene).load(source)
    from featuresplat.io.formats import load_gaussians

    if not source.is_file():
        raise FeaturesplatError(f"insert: there is no run folder or file {source}", "Check the path.")
    return type(scene)(gaussians=load_gaussians(source).gaussians, cameras=scene.cameras, units=scene.units)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        # A direction that was estimated leaves crumbs on the other axes.
        crumb = 1e-4 * max(abs(float(v)) for v in value)
        return "(" + ", ".join(f"{v if abs(v) > crumb else 0:.3g}" for v in value) + ")"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
