"""Plain-language edits: sentences -> edits, by rules; nothing is ever evaluated.

Understood are sentences such as "remove the mug and make the duck blue", "keep only the bowl", "move the ball up by
0.2", "turn the pan by 90 degrees", "make the box twice as large", "duplicate the duck to the left", "fade the bowl",
"remove the mug and fill the hole". Quotes keep a name together: remove 'salt and pepper'.

A mode module may understand more: a function ``understands(clause, scene) -> Edit | None`` is asked first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.paths import up_axis
from featuresplat.prompts import materials
from featuresplat.prompts._colors import is_color
from featuresplat.prompts.edits import Duplicate, Edit, Extract, Insert, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.targets import Target

if TYPE_CHECKING:
    from featuresplat.scene import Scene

EXAMPLES = (
    "remove the mug",
    "keep only the bowl",
    "make the duck blue",
    "make the box twice as large",
    "move the ball up by 0.2",
    "turn the pan by 90 degrees",
    "duplicate the duck to the left",
    "make the bowl transparent",
    "make the mug chrome",
)
LONGEST, QUOTED = 1000, 80  # characters of a sentence, and of what is said of it when it is not understood
_STEP = 0.15  # how far an unsaid distance goes, in radii of the cameras' circle
_NUMBERS = {
    "a quarter": 0.25, "quarter": 0.25, "a third": 1 / 3, "third": 1 / 3, "half": 0.5, "one": 1.0, "two": 2.0,
    "twice": 2.0, "double": 2.0, "three": 3.0, "thrice": 3.0, "triple": 3.0, "four": 4.0, "five": 5.0, "six": 6.0,
    "seven": 7.0, "eight": 8.0, "nine": 9.0, "ten": 10.0,
}  # fmt: skip
_NUMBER = r"(?:\d+(?:\.\d+)?|\.\d+|" + "|".join(sorted(_NUMBERS, key=len, reverse=True)) + ")"
_UNIT = r"(?:\s*(?P<unit>millimetres?|millimeters?|mm|centimetres?|centimeters?|cm|metres?|meters?|m|units?))?"
_METRES = {"mm": 1e-3, "millimetre": 1e-3, "millimeter": 1e-3, "cm": 1e-2, "centimetre": 1e-2, "centimeter": 1e-2}
_DIRECTIONS = {
    "up": "up", "upward": "up", "upwards": "up", "down": "down", "downward": "down", "downwards": "down",
    "left": "left", "right": "right", "back": "away", "backward": "away", "backwards": "away", "away": "away",
    "forward": "near", "forwards": "near", "closer": "near", "nearer": "near", "towards me": "near",
    "toward me": "near",
}  # fmt: skip
_DIRECTION = r"(?:to the )?(?P<direction>" + "|".join(sorted(_DIRECTIONS, key=len, reverse=True)) + r")\b"
_REMOVE = r"(?:remove|delete|erase|hide|take away|get rid of|drop)"
_VERB = (
    rf"(?:{_REMOVE}|(?:keep|show|leave)(?: only| just)?|only keep|extract|isolate|insert|add|place|put in|duplicate"
    r"|copy|clone|repeat|move|shift|push|slide|bring|lift|drag|pull|raise|lower|sink|turn|rotate|spin|twist|make|scale"
    r"|resize|enlarge|shrink|let|brighten|lighten|darken|fade|change|paint|colou?r|recolou?r|dye|tint"
    r"|set|coat|cover|plate|polish|roughen|gild|glaze|chrome)\b"
)
_TURNS = r"left|right|clockwise|counterclockwise|anticlockwise|[xyz](?: axis)?|the [xyz] axis"
_SIZES = r"as (?:big|large)|the size|its size|larger|bigger|smaller|times|size|big|large|small|as small"
_SHADES = (
    r"brighter|lighter|darker|paler|grayer|greyer"
    r"|more (?:colou?rful|saturated|vivid)|less (?:colou?rful|saturated|vivid)"
)
_BY = rf"(?:\s+(?:by\s+)?(?P<amount>{_NUMBER}|a little|a bit|slightly|a lot){_UNIT})?"


@dataclass(frozen=True)
class Plan:
    """One thing that a sentence asks for.

    Attributes:
        said: the part of the sentence.
        edit: what it was understood as.
    """

    said: str
    edit: Edit

    def __str__(self) -> str:
        return f"{self.said} -> {self.edit.describe()}"


def parse(sentence: str, scene: Scene | None = None) -> list[Plan]:
    """What a sentence asks for.

    Args:
        sentence: English, any case; parts joined by "and", "then", commas or full stops.
        scene: gives directions a meaning (up, left, ... as its first camera sees them) and sizes a unit; without it a
            sentence with a direction is refused.

    Raises:
        FeaturesplatError: nothing, or a part that is not understood (it is named, with examples of what is).
    """
    if not sentence.strip():
        raise FeaturesplatError("edit: expected a sentence, got nothing", f"Say, for one: {EXAMPLES[0]}.")
    if len(sentence) > LONGEST:
        got = f"{len(sentence)} characters"
        raise FeaturesplatError(f"edit: expected at most {LONGEST} characters, got {got}", "Say it in parts.")
    words = _Words(scene)
    plans: list[Plan] = []
    verb = ""
    for clause in _clauses(sentence):
        if re.fullmatch(r"(?:and )?fill (?:in )?(?:the )?(?:hole|holes|gap|gaps|it)(?: behind it)?", clause.low):
            plans = _filling(plans, clause.said)
            continue
        edit, began = words.understand(clause), re.match(_VERB, clause.low)
        if edit is None and verb and not began:  # "remove the mug and the ball"
            edit = words.understand(_Clause(f"{verb} {clause.said}", clause.quoted))
        if edit is None:
            said = clause.shown()
            said = said if len(said) <= QUOTED else f"{said[: QUOTED - 3]}..."
            raise FeaturesplatError(f"edit: '{said}' is not understood", f"Understood are: {'; '.join(EXAMPLES)}.")
        plans.append(Plan(clause.shown(), edit))
        verb = began.group() if began else verb
    return plans


@dataclass(frozen=True)
class _Clause:
    """One part of a sentence; quoted names stand in it as \\x00 0 \\x00, \\x00 1 \\x00, ..."""

    said: str
    quoted: tuple[str, ...]

    @property
    def low(self) -> str:
        return self.said.lower()

    def shown(self) -> str:
        return re.sub("\x00(\\d+)\x00", lambda m: f"'{self.quoted[int(m.group(1))]}'", self.said)

    def name(self, text: str) -> str:
        """A name without its article, quotes undone."""
        text = re.sub(r"^(?:the|a|an|this|that|these|those|my|all(?: of)?(?: the)?)\s+", "", text.strip(" ,.!?"))
        return re.sub("\x00(\\d+)\x00", lambda m: self.quoted[int(m.group(1))], text).strip()


def _clauses(sentence: str) -> list[_Clause]:
    quoted: list[str] = []

    def kept(match: re.Match) -> str:
        quoted.append(next(g for g in match.groups() if g is not None))
        return f"\x00{len(quoted) - 1}\x00"

    text = re.sub("\x00", " ", sentence)
    text = re.sub(r"\"([^\"]+)\"|“([^”]+)”|(?<!\w)'([^']+)'(?!\w)", kept, text)
    text = re.sub(r"\bplease\b", " ", text, flags=re.IGNORECASE)
    parts = re.split(r"\s*(?:[;!?]|,|\.(?=\s|$)|\band then\b|\band\b|\bthen\b)\s*", text, flags=re.IGNORECASE)
    return [_Clause(" ".join(p.split()), tuple(quoted)) for p in parts if p.strip()]


def _filling(plans: list[Plan], said: str) -> list[Plan]:
    if not plans or not isinstance(plans[-1].edit, Remove):
        raise FeaturesplatError(f"edit: '{said}' follows no removal", "Say, for one: remove the mug and fill the hole.")
    last = plans[-1]
    return [*plans[:-1], Plan(f"{last.said}, {said}", replace(last.edit, fill=True))]


class _Words:
    """The rules, tried in order; each is a pattern over a whole clause and what it makes of it."""

    def __init__(self, scene: Scene | None):
        self.scene = scene
        self.last: Target | None = None
        self.rules: list[tuple[re.Pattern, Callable[[re.Match, _Clause], Edit | None]]] = [
            (re.compile(pattern), rule)
            for pattern, rule in (
                (_REMOVE + r" (?:everything|all) (?:but|except|other than) (?P<x>.+)",
                 lambda m, c: Extract(self.target(m, c))),
                (r"(?:keep|show|leave)(?: only| just)? (?P<x>.+?)(?: only| alone)?"
                 r"|(?:extract|isolate|only keep) (?P<y>.+)",
                 lambda m, c: Extract(self.target(m, c))),
                (_REMOVE + r" (?P<x>.+?)(?P<fill> (?:and|with) fill.*)?",
                 lambda m, c: Remove(self.target(m, c), fill=bool(m["fill"]))),
                (r"(?:insert|add|place|put in) (?P<x>.+?)(?: " + _DIRECTION + _BY + ")?", self._insert),
                (r"(?:duplicate|copy|clone|repeat) (?P<x>.+?)(?: " + _DIRECTION + _BY + ")?", self._duplicate),
                (r"(?:move|shift|push|slide|bring|lift|drag|pull) (?P<x>.+?) " + _DIRECTION + _BY, self._move),
                (r"(?P<verb>raise|lift|lower|sink) (?P<x>.+?)" + _BY, self._raise),
                (r"(?:turn|rotate|spin|twist) (?P<x>.+?) upside down", self._upside_down),
                (rf"(?:turn|shift|rotate) the hue of (?P<x>.+?) by (?P<amount>-?{_NUMBER})(?: ?(?:degrees?|°))?",
                 lambda m, c: Recolor(self.target(m, c), hue=_value(m["amount"]))),
                (rf"(?:turn|rotate|spin|twist) (?P<x>.+?)(?: by)? (?P<amount>-?{_NUMBER}) ?(?:degrees?|deg|°)"
                 rf"(?: (?:to the |about |around )?(?P<way>{_TURNS}))?", self._turn),
                (rf"(?:make|scale|resize|enlarge|shrink) (?P<x>.+?)(?: by| to)? (?P<amount>{_NUMBER}) ?"
                 rf"(?P<percent>%|percent)?(?: (?:times|x|as|the))? ?(?P<how>{_SIZES})?"
                 r"(?: as (?:big|large|before|now|it is))?", self._scale),
                (r"(?:make|scale|resize)? ?(?P<x>.+?) (?P<how>bigger|larger|smaller)"
                 r"|(?P<verb>enlarge|shrink) (?P<y>.+)", self._larger),
                (rf"(?:make|turn|let) (?P<x>.+?)(?: look| become)? (?:a (?:bit|little) )?(?P<how>{_SHADES})",
                 self._shade),
                (r"(?P<verb>brighten|lighten|darken) (?P<x>.+)", self._shade),
                (r"(?:make|turn) (?P<x>.+?) (?P<how>(?:half |semi-?|almost )?(?:transparent|translucent|see-through)"
                 r"|invisible|opaque|solid)|(?P<verb>fade)(?: out)? (?P<y>.+)", self._opacity),
                (r"change the colou?r of (?P<x>.+?) (?:to|into) (?P<color>.+)", self._color),
                (r"(?:paint|colou?r|recolou?r|dye|tint|make|turn|change) (?P<x>.+?) (?:to |into |in )?"
                 r"(?P<color>#[0-9a-f]{6}|#[0-9a-f]{3}|[a-z]+(?: [a-z]+)?)", self._color),
            )
        ]  # fmt: skip

    def understand(self, clause: _Clause) -> Edit | None:
        """The edit that a clause asks for, or None."""
        if self.scene is not None:
            module = registry.load("modes", self.scene.mode)
            if hasattr(module, "understands"):
                edit = module.understands(clause.shown(), self.scene)
                if edit is not None:
                    return edit
        edit = materials.understood(clause.low, self.scene, lambda name: self._named(name, clause))
        if edit is not None:
            self.last = edit.target
            return edit
        for pattern, rule in self.rules:
            match = pattern.fullmatch(clause.low)
            if match:
                edit = rule(match, clause)
                if edit is not None:
                    self.last = edit.target
                    return edit
        return None

    def target(self, match: re.Match, clause: _Clause) -> Target:
        groups = match.groupdict()
        name = clause.name(groups.get("x") or groups.get("y") or "")
        if name in ("it", "that", "this", "them"):
            if self.last is None:
                raise FeaturesplatError(f"edit: '{clause.shown()}' does not say what '{name}' is", "Name the thing.")
            return self.last
        if name in ("everything", "all", "whole scene", "scene", "whole thing"):
            return Target()
        if not name:
            raise FeaturesplatError(f"edit: '{clause.shown()}' does not say of what", f"Say, for one: {EXAMPLES[0]}.")
        return Target(text=name)

    # What the patterns make

    def _color(self, m: re.Match, c: _Clause) -> Edit | None:
        words = m["color"].strip().split(" ")
        # "make the small duck dark blue": the colour is the longest end that is one.
        name = f"{m['x']} {m['color']}".split(" ")
        for count in (len(words), 1):
            color, rest = " ".join(name[-count:]), " ".join(name[:-count])
            rest = re.sub(r" (?:to|into|in)$", "", rest)
            if rest and is_color(color):
                return Recolor(self._named(rest, c), color=color)
        return None

    def _named(self, text: str, c: _Clause) -> Target:
        match = re.fullmatch(r"(?P<x>.+)", text)
        assert match is not None
        return self.target(match, c)

    def _shade(self, m: re.Match, c: _Clause) -> Edit:
        how = m.groupdict().get("how") or m["verb"]
        target = self.target(m, c)
        if how.startswith("more"):
            return Recolor(target, saturation=1.6)
        if how.startswith("less") or how in ("grayer", "greyer", "paler"):
            return Recolor(target, saturation=0.5)
        return Recolor(target, lightness=0.6 if how.startswith("dark") else 1.4)

    def _opacity(self, m: re.Match, c: _Clause) -> Edit:
        how = m["how"] or "transparent"
        factor = {"invisible": 0.0, "opaque": 4.0, "solid": 4.0}.get(
            how, 0.5 if "half" in how or "semi" in how else 0.25
        )
        return Opacity(self.target(m, c), factor=0.1 if how.startswith("almost") else factor)

    def _scale(self, m: re.Match, c: _Clause) -> Edit | None:
        value, how = _value(m["amount"]), m["how"] or ""
        enlarging = how in ("larger", "bigger") or c.low.startswith("enlarge")
        shrinking = how == "smaller" or how.endswith("small") or c.low.startswith("shrink")
        if m["percent"]:
            value = 1 + value / 100 if enlarging else 1 - value / 100 if shrinking else value / 100
        elif shrinking and value > 1:
            value = 1 / value
        if c.low.startswith("make") and not how and not m["percent"]:
            return None  # "make the box two" says nothing
        if not 1e-3 <= value <= 1e3:
            raise FeaturesplatError(
                f"edit: '{c.shown()}' scales by {value:g}", "Choose a factor between 0.001 and 1000."
            )
        return Transform(self.target(m, c), scale=value)

    def _larger(self, m: re.Match, c: _Clause) -> Edit:
        smaller = (m["how"] or m["verb"]) in ("smaller", "shrink")
        return Transform(self.target(m, c), scale=1 / 1.5 if smaller else 1.5)

    def _move(self, m: re.Match, c: _Clause) -> Edit:
        return Transform(self.target(m, c), translate=self._way(_DIRECTIONS[m["direction"]], m))

    def _raise(self, m: re.Match, c: _Clause) -> Edit:
        way = "up" if m["verb"] in ("raise", "lift") else "down"
        return Transform(self.target(m, c), translate=self._way(way, m))

    def _duplicate(self, m: re.Match, c: _Clause) -> Edit:
        way = _DIRECTIONS[m["direction"]] if m["direction"] else "right"
        return Duplicate(self.target(m, c), translate=self._way(way, m))

    def _insert(self, m: re.Match, c: _Clause) -> Edit | None:
        # Paths keep their capitals, so they are looked up where they were said.
        at = c.low.find(m["x"])
        source = c.name(c.said[at : at + len(m["x"])])
        if "/" not in source and "." not in source and "\x00" not in m["x"]:
            return None
        move = self._way(_DIRECTIONS[m["direction"]], m) if m["direction"] else (0.0, 0.0, 0.0)
        return Insert(source=source, translate=move)

    def _turn(self, m: re.Match, c: _Clause) -> Edit:
        way = (m["way"] or "").replace("the ", "").replace(" axis", "")
        angle = math.radians(_value(m["amount"]))
        if way in ("x", "y", "z"):
            axis = [float(way == k) for k in "xyz"]
        else:
            axis = self._axes(c)["up"].tolist()
            # To the right is clockwise as seen from above.
            angle = -angle if way in ("right", "clockwise") else angle
        return Transform(self.target(m, c), rotate=_quaternion(axis, angle))

    def _upside_down(self, m: re.Match, c: _Clause) -> Edit:
        return Transform(self.target(m, c), rotate=_quaternion(self._axes(c)["right"].tolist(), math.pi))

    def _way(self, name: str, m: re.Match) -> tuple[float, float, float]:
        axes = self._axes(None)
        unit = 1.0 / float(self.scene.units["scale"]) if self.scene is not None else 1.0
        amount = m.groupdict().get("amount")
        if amount in (None, ""):
            length = _STEP * unit
        elif amount in ("a little", "a bit", "slightly"):
            length = _STEP * unit / 3
        elif amount == "a lot":
            length = _STEP * unit * 3
        else:
            length = _value(amount) * _METRES.get((m["unit"] or "").rstrip("s"), 1.0)
        x, y, z = (length * axes[name]).tolist()
        return round(x, 9), round(y, 9), round(z, 9)

    def _axes(self, c: _Clause | None) -> dict[str, torch.Tensor]:
        """Directions as the first camera sees them, level with the ground; float64 [3] each."""
        if self.scene is None:
            raise FeaturesplatError("edit: directions need a scene to mean something", "Pass the scene.")
        up = up_axis(self.scene.cameras)
        forward = self.scene.cameras.viewmats[0, 2, :3].double().cpu()
        level = forward - (forward @ up) * up
        if float(level.norm()) < 1e-3:  # it looks straight down: its image's up is away
            level = -self.scene.cameras.viewmats[0, 1, :3].double().cpu()
            level = level - (level @ up) * up
        away = torch.nn.functional.normalize(level, dim=0)
        right = torch.linalg.cross(away, up)
        return {"up": up, "down": -up, "away": away, "near": -away, "right": right, "left": -right}


def _value(text: str) -> float:
    sign = -1.0 if text.startswith("-") else 1.0
    text = text.lstrip("-")
    return sign * (_NUMBERS[text] if text in _NUMBERS else float(text))


def _quaternion(axis: list[float], angle: float) -> tuple[float, float, float, float]:
    s = math.sin(angle / 2)
    return math.cos(angle / 2), axis[0] * s, axis[1] * s, axis[2] * s
