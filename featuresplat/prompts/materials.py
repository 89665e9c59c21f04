"""Materials by name, and the edit that gives them to a part of a scene: "make the mug chrome".

The table is ours but for the metals' reflectances at normal incidence, which are measured: linear Rec. 709, from the
table of metals in Akenine-Moller et al., Real-Time Rendering, 4th edition (2018), section 9.5.2. Steel is iron's there;
bronze and pewter are estimates.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts._colors import LUMA, color_of, is_color
from featuresplat.prompts.edits import Edit
from featuresplat.prompts.targets import Target

if TYPE_CHECKING:
    from featuresplat.scene import Scene

NEEDED = ("gaussian.base_color", "gaussian.roughness", "gaussian.metallic", "gaussian.progress")
"""Tensors of a scene that has materials."""
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Named:
    """A material of the table.

    Attributes:
        color: linear base colour; None keeps what is there.
        roughness, metallic: 0..1.
    """

    color: Color | None
    roughness: float
    metallic: float


MATERIALS: dict[str, Named] = {
    "gold": Named((1.000, 0.782, 0.344), 0.15, 1.0),
    "silver": Named((0.972, 0.960, 0.915), 0.12, 1.0),
    "copper": Named((0.955, 0.638, 0.538), 0.20, 1.0),
    "brass": Named((0.910, 0.778, 0.423), 0.20, 1.0),
    "bronze": Named((0.714, 0.428, 0.181), 0.30, 1.0),
    "chrome": Named((0.549, 0.556, 0.554), 0.04, 1.0),
    "iron": Named((0.562, 0.565, 0.578), 0.45, 1.0),
    "steel": Named((0.562, 0.565, 0.578), 0.22, 1.0),
    "aluminium": Named((0.913, 0.922, 0.924), 0.25, 1.0),
    "nickel": Named((0.660, 0.609, 0.526), 0.18, 1.0),
    "platinum": Named((0.673, 0.637, 0.585), 0.12, 1.0),
    "titanium": Named((0.542, 0.497, 0.449), 0.30, 1.0),
    "pewter": Named((0.400, 0.402, 0.410), 0.40, 1.0),
    "mirror": Named((0.972, 0.960, 0.915), 0.02, 1.0),
    "metal": Named(None, 0.25, 1.0),
    "plastic": Named(None, 0.30, 0.0),
    "rubber": Named((0.030, 0.030, 0.030), 0.85, 0.0),
    "ceramic": Named(None, 0.12, 0.0),
    "porcelain": Named((0.800, 0.790, 0.760), 0.10, 0.0),
    "clay": Named((0.450, 0.220, 0.130), 0.90, 0.0),
    "plaster": Named((0.800, 0.790, 0.770), 0.90, 0.0),
    "paper": Named((0.780, 0.770, 0.740), 0.80, 0.0),
    "chalk": Named((0.850, 0.850, 0.840), 0.95, 0.0),
    "concrete": Named((0.300, 0.290, 0.270), 0.85, 0.0),
    "stone": Named((0.280, 0.270, 0.250), 0.75, 0.0),
    "marble": Named((0.780, 0.770, 0.750), 0.18, 0.0),
    "wood": Named((0.290, 0.160, 0.080), 0.55, 0.0),
    "charcoal": Named((0.020, 0.020, 0.020), 0.90, 0.0),
    "cloth": Named(None, 0.95, 0.0),
}
"""Materials by name."""
SAME = {
    "golden": "gold", "silvery": "silver", "silver-plated": "silver", "gold-plated": "gold", "coppery": "copper",
    "chromium": "chrome", "chromed": "chrome", "aluminum": "aluminium", "tin": "pewter", "mirrored": "mirror",
    "mirror-like": "mirror", "metallic": "metal", "metal-like": "metal", "plasticky": "plastic", "rubbery": "rubber",
    "wooden": "wood", "stainless": "steel", "fabric": "cloth", "velvet": "cloth", "earthenware": "clay",
    "terracotta": "clay", "coal": "charcoal",
}  # fmt: skip
"""Other words for them."""
FINISHES = {
    "mirror-finish": 0.02, "polished": 0.06, "shiny": 0.10, "glossy": 0.15, "glazed": 0.10, "lacquered": 0.12,
    "smooth": 0.15, "wet": 0.08, "satin": 0.40, "semi-matte": 0.5, "brushed": 0.35, "frosted": 0.6, "dull": 0.70,
    "rough": 0.75, "sandblasted": 0.7, "matte": 0.90, "matt": 0.90, "mat": 0.90, "powdery": 0.95,
}  # fmt: skip
"""Words for a surface's roughness, whatever it is made of."""
COLOUR_TOO = ("gold", "golden", "silver")
"""Words that are colours where a scene has no materials."""
EXAMPLES = ("make the mug chrome", "make the bowl matte", "make the duck red plastic", "polish the pan")
_CHANGES = {
    "rougher": ("roughness", 1.6), "duller": ("roughness", 1.6), "smoother": ("roughness", 0.5),
    "shinier": ("roughness", 0.5), "glossier": ("roughness", 0.5), "more matte": ("roughness", 1.6),
    "more glossy": ("roughness", 0.5), "more shiny": ("roughness", 0.5), "less rough": ("roughness", 0.5),
    "less shiny": ("roughness", 1.6), "less glossy": ("roughness", 1.6),
}  # fmt: skip
_KINDS_OF = r"(?:like|into|to|of|out of|from|in|with|as|look|look like|become)"


@dataclass(frozen=True)
class Material(Edit):
    """Another material; under the scene's own light the edited part is shaded from then on.

    What is not given stays. ``material`` gives all three; ``color``, ``roughness`` and ``metallic`` overrule it.

    Attributes:
        material: name of `MATERIALS`.
        color: name or ``#rrggbb`` (sRGB) of the base colour.
        roughness: 0 (mirror) to 1. metallic: 0 or 1, and between.
        roughness_factor: on the roughness that is there; result clamped to 0.02..1.
        texture: of 0..1, how much of the old base colour's lightness pattern a new colour keeps.
    """

    kind: ClassVar[str] = "material"
    material: str = ""
    color: str = ""
    roughness: float | None = None
    metallic: float | None = None
    roughness_factor: float = 1.0
    texture: float = 0.0

    def apply(self, scene: Scene) -> Scene:
        require(scene)
        color, roughness, metallic = self.values()
        mask, state = self.target.select(scene).mask, dict(scene.mode_state)
        if color is not None:
            base = state["gaussian.base_color"]
            weights = scene.gaussians.opacities[mask]
            state["gaussian.base_color"] = _put(base, mask, self._tinted(base[mask], weights, color))
        if roughness is not None:
            state["gaussian.roughness"] = _put(state["gaussian.roughness"], mask, roughness)
        if self.roughness_factor != 1.0:
            old = state["gaussian.roughness"]
            state["gaussian.roughness"] = _put(old, mask, (old[mask] * self.roughness_factor).clamp(0.02, 1))
        if metallic is not None:
            state["gaussian.metallic"] = _put(state["gaussian.metallic"], mask, metallic)
        return shown_by_physics(replace(scene, mode_state=state), mask)

    def values(self) -> tuple[Color | None, float | None, float | None]:
        """Linear base colour, roughness and metallic; None = as it is.

        Raises:
            FeaturesplatError: an unknown name, or a number out of range, or nothing is given.
        """
        given = [self.material, self.color, self.roughness, self.metallic]
        if all(v in ("", None) for v in given) and self.roughness_factor == 1.0:
            raise FeaturesplatError(
                "material: nothing is given", "Give material, color, roughness, metallic or roughness_factor."
            )
        named = material_named(self.material) if self.material else None
        color = named.color if named is not None else None
        if self.color:
            r, g, b = linear_color(self.color)
            color = (r, g, b)
        values = []
        for name in ("roughness", "metallic"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise FeaturesplatError(f"material: {name}: expected 0..1, got {value:g}", "0 is a mirror; 1 is chalk.")
            values.append(value if value is not None or named is None else getattr(named, name))
        if not 0 <= self.texture <= 1 or not self.roughness_factor > 0:
            raise FeaturesplatError(
                f"material: texture {self.texture:g}, roughness_factor {self.roughness_factor:g}: expected 0..1 and a "
                "positive factor",
                "Mend the edit.",
            )
        return color, values[0], values[1]

    def _tinted(self, old: Tensor, weights: Tensor, color: Color) -> Tensor:
        """[M, 3] the colour, with as much of the old pattern of lightness [M, 3] as is asked for."""
        new = torch.tensor(color).to(old).expand_as(old)
        if not self.texture:
            return new
        luma = old @ LUMA.to(old)
        mean = (luma * weights).sum() / weights.sum().clamp_min(1e-9)
        pattern = 1 + self.texture * (luma / mean.clamp_min(1e-3) - 1)
        return (new * pattern[:, None]).clamp(0, 1)


def has_materials(scene: Scene | None) -> bool:
    """Whether a scene's Gaussians have materials."""
    return scene is not None and all(name in scene.mode_state for name in NEEDED)


def require(scene: Scene) -> None:
    """Raise FeaturesplatError when a scene has no materials to change."""
    if not has_materials(scene):
        raise FeaturesplatError(
            f"material: this run has no materials (it is of mode {scene.mode})",
            "Find them first: featuresplat inverse RUN; then edit the run that it makes.",
        )


def material_named(name: str) -> Named:
    """A material of the table, by any of its names.

    Raises:
        FeaturesplatError: there is none of that name.
    """
    plain = name.strip().lower()
    plain = SAME.get(plain, plain)
    if plain not in MATERIALS:
        close = difflib.get_close_matches(plain, [*MATERIALS, *SAME], n=1)
        hint = f"Perhaps you meant '{close[0]}'. " if close else ""
        raise FeaturesplatError(f"material: there is none called '{name}'", f"{hint}Known: {', '.join(MATERIALS)}.")
    return MATERIALS[plain]


def linear_color(name: str) -> tuple[float, float, float]:
    """Linear r g b of a colour name or ``#rrggbb``.

    Raises:
        FeaturesplatError: no such colour.
    """
    from featuresplat.shading.tone import linear

    r, g, b = (round(v, 6) for v in linear(color_of(name)).tolist())
    return r, g, b


def shown_by_physics(scene: Scene, mask: Tensor) -> Scene:
    """A scene whose Gaussians at ``mask`` [N] bool have got other materials.

    The physical model alone explains them from here on: no photograph knows them. Their radiance, which exports,
    reflections and the browser's splats show, is what that model sends out under the scene's own light.
    """
    progress = scene.mode_state["gaussian.progress"]
    scene = replace(
        scene, mode_state={**scene.mode_state, "gaussian.progress": _put(progress, mask, torch.ones(()).to(progress))}
    )
    module = registry.load("modes", scene.mode)
    return module.radiating(scene, mask) if hasattr(module, "radiating") else scene


def _put(values: Tensor, mask: Tensor, new: Tensor | float) -> Tensor:
    out = values.clone()
    out[mask] = new.to(out) if isinstance(new, Tensor) else new
    return out


# In words


def understood(clause: str, scene: Scene | None, named: Callable[[str], Target]) -> Edit | None:
    """The edit of a clause (lower case) about materials, or None.

    Args:
        clause: for one "make the mug brushed copper", "set the roughness of the bowl to 0.3", "polish the pan".
        scene: where it has no materials, words that are colours as well ("golden") are left to colours.
        named: makes a target of the name of a thing.
    """
    number = r"(?P<value>\d*\.?\d+)"
    match = re.fullmatch(
        rf"(?:set|change|make|put) (?:the )?(?P<what>roughness|metallic|metalness) of (?P<x>.+?)(?: to| =)? {number}",
        clause,
    ) or re.fullmatch(
        rf"(?:set|change|make) (?P<x>.+?)(?:'s)? (?P<what>roughness|metallic|metalness)(?: to| =)? {number}", clause
    )
    if match:
        value, target = float(match["value"]), named(match["x"])
        rough = match["what"] == "roughness"
        return Material(target, roughness=value) if rough else Material(target, metallic=value)
    match = re.fullmatch(r"(?P<verb>polish|roughen|gild|chrome|glaze) (?P<x>.+)", clause)
    if match:
        how = {"polish": "polished", "roughen": "rough", "gild": "gold", "chrome": "chrome", "glaze": "glazed"}
        return _edit_of([how[match["verb"]]], named(match["x"]))
    match = re.fullmatch(
        rf"(?:make|let|turn) (?P<x>.+?)(?: look| become)? (?:a (?:bit|little) )?(?P<how>{'|'.join(_CHANGES)})", clause
    )
    if match:
        return Material(named(match["x"]), roughness_factor=_CHANGES[match["how"]][1])
    match = re.fullmatch(
        r"(?P<verb>make|turn|change|paint|let|coat|cover|plate|cast)(?: the material of)? (?!the colou?r )(?P<rest>.+)",
        clause,
    )
    if match is None:
        return None
    a_colour_will_do = not has_materials(scene) and match["verb"] in ("make", "turn", "change", "paint", "let")
    return _made_of(match["rest"].split(" "), a_colour_will_do, named)


def _made_of(words: list[str], a_colour_will_do: bool, named: Callable[[str], Target]) -> Edit | None:
    """Of "the mug [out of] brushed copper" the material is the longest end that is one and leaves a thing."""
    for first in range(1, len(words)):
        name = " ".join(words[:first])
        said = [w for w in words[first:] if w not in ("a", "an", "and", "finish", "surface", "coating")]
        name = re.sub(
            rf"(?: (?:{_KINDS_OF}|a|an|made|entirely|completely|solid|pure|look|coated|covered|of))+$", "", name
        )
        if name in ("the", "a", "an", "that", "all", "") or not said:
            continue
        only_colour = a_colour_will_do and len(said) == 1 and said[0] in COLOUR_TOO
        edit = None if only_colour else _edit_of(said, None)
        if edit is not None:
            return replace(edit, target=named(name))
    return None


def _edit_of(said: list[str], target: Target | None) -> Material | None:
    """The edit of "matte red plastic": each word is a finish, a material or part of one colour; not only a colour."""
    finish: float | None = None
    material, rest, metallic = "", [], None
    for word in said:
        plain = SAME.get(word, word)
        if word in FINISHES and finish is None:
            finish = FINISHES[word]
        elif word in ("non-metallic", "nonmetallic"):
            metallic = 0.0
        elif plain in MATERIALS and (not material or plain == "metal" or material == "metal"):
            material = plain if not material or material == "metal" else material
        else:
            rest.append(word)
    color = " ".join(rest)
    if not (finish is not None or material or metallic is not None) or (color and not is_color(color)):
        return None
    edit = Material(material=material, color=color, roughness=finish, metallic=metallic)
    return edit if target is None else replace(edit, target=target)
