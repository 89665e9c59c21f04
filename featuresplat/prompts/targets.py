"""How an edit says which Gaussians it means: plain data, resolved when the edit is applied."""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import text as texts
from featuresplat.prompts.photographs import view_named
from featuresplat.prompts.pieces import pieces_of
from featuresplat.prompts.selection import Selection, fingerprint
from featuresplat.prompts.spatial import select_points
from featuresplat.types import Gaussians

if TYPE_CHECKING:
    from featuresplat.scene import Scene

DENIED = 0.1
"""A Gaussian with a score below this is not what the phrase means, says the field."""
MIXED, AGREED = 0.25, 0.8
"""A piece is more than one thing where more than the first share of it is denied, and around these Gaussians more than
the second share of their neighbours: a field that errs here and there denies no thing."""
NEIGHBOURS = 16


@dataclass(frozen=True)
class Target:
    """Which Gaussians an edit means; one of the ways is given, or none: all of them.

    Attributes:
        text: a phrase.
        field: the field that ``text`` asks; default the scene's last one that answers text.
        threshold: scores of ``text`` above are in; default as `text.TextQuery.masks`.
        whole: ``text`` means whole objects: those of the scene's pieces that it finds for the most part.
        view: name of the photograph that ``points`` and ``box`` lie in.
        points: (x, y, label) each, in pixels of the photograph's full size; label 1 = on the object, 0 = not.
        box: x0, y0, x1, y1 in the same pixels.
        gaussians: a stored selection, see `Target.of`.
    """

    text: str = ""
    field: str = ""
    threshold: float | None = None
    whole: bool = True
    view: str = ""
    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    gaussians: str = ""

    def __post_init__(self) -> None:
        ways = [bool(self.text), bool(self.points) or self.box is not None, bool(self.gaussians)]
        if sum(ways) > 1:
            raise FeaturesplatError("target: expected one way to say what is meant, got several", "Keep one of them.")
        if ways[1] and not self.view:
            raise FeaturesplatError("target: points and boxes lie in a view, but none is named", "Add view: NAME.")

    @staticmethod
    def of(selection: Selection, scene: Scene) -> Target:
        """A selection itself, packed into one line of text that only fits ``scene``."""
        bits = zlib.compress(np.packbits(selection._of(scene).mask.cpu().numpy()).tobytes(), 9)
        packed = f"{len(selection)}:{fingerprint(scene)}:{base64.b64encode(bits).decode()}"
        return Target(gaussians=packed)

    @property
    def everything(self) -> bool:
        """Nothing is said: all Gaussians are meant."""
        return not (self.text or self.points or self.box is not None or self.gaussians)

    def describe(self) -> str:
        """In words."""
        if self.text:
            return f"'{self.text}'"
        if self.gaussians:
            return "a stored selection"
        if self.box is not None:
            return f"what is in the box {tuple(round(v) for v in self.box)} of {self.view}"
        if self.points:
            return f"what is at {tuple(round(v) for v in self.points[0][:2])} of {self.view}"
        return "everything"

    def select(self, scene: Scene) -> Selection:
        """The Gaussians that are meant.

        Raises:
            FeaturesplatError: nothing is found, or what the prompt itself raises.
        """
        if self.everything:
            return Selection(torch.ones(len(scene.gaussians), dtype=torch.bool, device=scene.gaussians.means.device))
        if self.gaussians:
            return self._stored(scene)
        if self.text:
            found = select_text(scene, self.text, self.field or None, self.threshold, self.whole)
        else:
            points, labels = [p[:2] for p in self.points], [p[2] for p in self.points]
            found = select_points(scene, view_named(scene, self.view), points, labels, self.box).selection
        if found.count == 0:
            raise FeaturesplatError(
                f"{self.describe()}: nothing of it is found in this scene", "Ask for something else."
            )
        return found

    def _stored(self, scene: Scene) -> Selection:
        try:
            count, name, packed = self.gaussians.split(":")
            raw = zlib.decompressobj()
            bits = raw.decompress(base64.b64decode(packed, validate=True), int(count) // 8 + 2)
            mask = np.unpackbits(np.frombuffer(bits, np.uint8))[: int(count)].astype(bool)
            if len(mask) != int(count) or raw.unconsumed_tail:
                raise ValueError("its length is not what it says")
        except (ValueError, binascii.Error, zlib.error) as error:
            raise FeaturesplatError(f"target: the stored selection is damaged ({error})", "Select again.") from None
        if len(mask) != len(scene.gaussians) or name != fingerprint(scene):
            raise FeaturesplatError(
                f"target: the stored selection was made on another scene ({count} Gaussians; here are "
                f"{len(scene.gaussians)})",
                "Apply the edits to the scene, and in the order, that they were made for.",
            )
        return Selection(torch.from_numpy(mask).to(scene.gaussians.means.device))

    def to_dict(self) -> dict[str, Any]:
        """Only what is given; plain values."""
        out = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        if self.points:
            out["points"] = [list(p) for p in self.points]
        if self.box is not None:
            out["box"] = list(self.box)
        return out

    @staticmethod
    def from_dict(values: dict[str, Any] | str | None) -> Target:
        """From `to_dict`, or a phrase alone.

        Raises:
            FeaturesplatError: an unknown key or a value of the wrong kind.
        """
        if values is None:
            return Target()
        if isinstance(values, str):
            return Target(text=values)
        known = {f.name for f in fields(Target)}
        if not isinstance(values, dict) or not set(values) <= known:
            got = ", ".join(sorted(map(str, set(values) - known))) if isinstance(values, dict) else repr(values)
            raise FeaturesplatError(f"target: cannot read {got}", f"Known are {', '.join(sorted(known))}.")
        out: dict[str, Any] = {}
        for key, value in values.items():
            out[key] = _plain(key, value)
        return Target(**out)


def select_text(
    scene: Scene, phrase: str, field: str | None = None, threshold: float | None = None, whole: bool = True
) -> Selection:
    """The Gaussians that a phrase means.

    Args:
        threshold: scores above are in; default 0.5.
        whole: the pieces of the scene that the phrase finds for the most part, where they are most of what it finds;
            else the one piece that is most of it, if a quarter of that is found; else the Gaussians, cleaned up. Where
            the field denies a good part of the pieces, several things hang together in them: that part is left out.

    Raises:
        FeaturesplatError: as `text.ask`.
    """
    query = texts.ask(scene, phrase, field)
    scores = query.gaussians(scene)
    found = query.masks(scores, threshold)[0]
    if whole and bool(found.any()):
        pieces = pieces_of(scene, scene.gaussians)
        weight = scene.gaussians.opacities  # not by size: what is far away is huge
        ids, count = pieces.ids.to(found.device), pieces.scores.shape[1]
        of_all = torch.zeros(count, device=found.device).index_add(0, ids, weight)
        of_found = torch.zeros(count, device=found.device).index_add(0, ids, weight * found)
        total = float(of_found.sum())
        of_found[-1] = 0.0  # the rest is no thing
        if not pieces.found:
            of_found[0] = 0.0
        denied = (scores[0] < DENIED) & scene.fields[query.field].codes.any(1)
        mostly = of_found > 0.5 * of_all
        largest = int(of_found.argmax())
        if bool(mostly.any()) and float(of_found[mostly].sum()) > 0.5 * total:
            return Selection(_undenied(scene.gaussians, mostly[ids], denied), phrase)
        if total > 0 and float(of_found[largest]) > max(0.5 * total, 0.25 * float(of_all[largest])):
            return Selection(_undenied(scene.gaussians, ids == largest, denied), phrase)
    return Selection(found, phrase).cleanup(scene)


def _undenied(g: Gaussians, mask: Tensor, denied: Tensor) -> Tensor:
    """Without the things that a phrase surely does not mean. A little of them goes along: edges, and dirt."""
    denied = denied.to(mask.device)
    if not bool((mask & denied).any()):
        return mask
    xyz, mask = g.means[mask].cpu().numpy(), mask.clone()
    _, near = KDTree(xyz).query(xyz, k=min(NEIGHBOURS, len(xyz)), workers=-1)
    near = torch.from_numpy(near.reshape(len(xyz), -1)).to(mask.device)
    around = denied[mask].float()[near].mean(1)
    weight = g.opacities[mask]
    if float(weight[around > AGREED].sum()) > MIXED * float(weight.sum()):
        mask[mask.clone()] = around <= 0.5
    return mask


def _plain(key: str, value: Any) -> Any:
    try:
        if key in ("text", "field", "view", "gaussians"):
            if not isinstance(value, str):
                raise TypeError
            return value
        if key == "whole":
            if not isinstance(value, bool):
                raise TypeError
            return value
        if key == "threshold":
            return None if value is None else _number(value)
        if key == "box":
            x0, y0, x1, y1 = (_number(v) for v in value)
            return x0, y0, x1, y1
        return tuple((_number(p[0]), _number(p[1]), int(p[2]) if len(p) > 2 else 1) for p in value)
    except (TypeError, ValueError, KeyError, IndexError):
        raise FeaturesplatError(f"target: {key} cannot be {value!r}", "See 'featuresplat edit --help'.") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError
    return float(value)
