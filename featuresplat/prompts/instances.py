"""All objects of a scene at once."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import affinity, text
from featuresplat.prompts.pieces import pieces_of
from featuresplat.prompts.selection import Selection

if TYPE_CHECKING:
    from featuresplat.scene import Scene


@dataclass(frozen=True)
class Instances:
    """Objects of a scene.

    Attributes:
        ids: int64 [N], the object of each Gaussian, largest object first; -1 = none.
        names: one per object; ``object 1``, ... where no text field names it.
        colors: [K, 3] in 0..1, one per object, far apart.
    """

    ids: Tensor
    names: tuple[str, ...]
    colors: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def selection(self, index: int) -> Selection:
        """The Gaussians of one object."""
        if not 0 <= index < len(self):
            raise FeaturesplatError(f"instances: there is no object {index}", f"There are {len(self)}, from 0.")
        return Selection(self.ids == index, self.names[index])


def find(scene: Scene, field: str | None = None, phrases: Sequence[str] = (), smallest: int = 30) -> Instances:
    """All objects of a scene.

    Args:
        scene: with an affinity field they are its clusters; else its pieces (see `pieces`): what stands on a support,
            and the support.
        field: affinity field to use; default: the last one, if there is one.
        phrases: names to choose from, scored with the scene's text field; default: the labels of a closed
            vocabulary, else none.
        smallest: objects of fewer Gaussians are none.

    Raises:
        FeaturesplatError: ``field`` is no affinity field, or what `text.ask` raises of ``phrases``.
    """
    raw = _clusters(scene, field)
    ids = _sorted(raw, smallest)
    count = int(ids.max()) + 1 if len(ids) else 0
    return Instances(ids, _names(scene, ids, count, tuple(phrases)), palette(count).to(ids.device))


def palette(count: int) -> Tensor:
    """[count, 3] colours: hues a golden angle apart, in three shades, so that neighbours in the list differ."""
    shades = ((0.85, 0.95), (0.55, 1.0), (0.9, 0.7))
    rows = [colorsys.hsv_to_rgb((0.61803398875 * k) % 1.0, *shades[k % 3]) for k in range(count)]
    return torch.tensor(rows, dtype=torch.float32).reshape(count, 3)


def _clusters(scene: Scene, field: str | None) -> Tensor:
    """int64 [N], in no order; -1 = none."""
    if field is None:
        field = next((name for name in reversed(scene.fields) if scene.fields[name].teacher == affinity.TEACHER), None)
    if field is not None:
        _, found = scene.field(field)
        if found.teacher != affinity.TEACHER:
            raise FeaturesplatError(f"field '{field}': is none of affinity", "Leave it out, or train one.")
        return affinity.clusters(scene, found)
    pieces = pieces_of(scene, scene.gaussians)
    ids = pieces.ids.clone()
    ids[ids == pieces.scores.shape[1] - 1] = -1
    if not pieces.found:
        ids[ids == 0] = -1
    return ids


def _sorted(raw: Tensor, smallest: int) -> Tensor:
    """Numbered from 0, largest first, crumbs left out."""
    values = raw.cpu().numpy()
    found, counts = np.unique(values[values >= 0], return_counts=True)
    kept = counts >= smallest
    found, counts = found[kept], counts[kept]
    order = found[np.argsort(-counts, kind="stable")]
    table = np.full(int(values.max()) + 2 if len(values) else 1, -1)
    table[order] = np.arange(len(order))
    return torch.from_numpy(np.where(values >= 0, table[values], -1)).to(raw.device)


def _names(scene: Scene, ids: Tensor, count: int, phrases: tuple[str, ...]) -> tuple[str, ...]:
    """The phrase that an object's Gaussians score highest, where it beats all others; no phrase names two objects
    unless it is the only one left over.
    """
    plain = [f"object {k + 1}" for k in range(count)]
    if not phrases:
        able = [name for name in scene.fields if text.answers_text(scene.fields[name])]
        phrases = text.labels_of(scene, able[-1]) if able else ()
    if not phrases or not count:
        return tuple(plain)
    query = text.ask(scene, phrases, compete=True)
    scores = query.gaussians(scene)  # [P, N]
    weight = scene.gaussians.opacities
    inside = ids >= 0
    sums = torch.zeros(len(phrases), count, device=ids.device)
    sums.index_add_(1, ids[inside], (scores * weight)[:, inside])
    total = torch.zeros(count, device=ids.device).index_add(0, ids[inside], weight[inside])
    means = (sums / total.clamp_min(1e-9)).cpu()
    used: dict[str, int] = {}
    for k in range(count):
        best = int(means[:, k].argmax())
        if float(means[best, k]) > 0.5:
            phrase = phrases[best]
            used[phrase] = used.get(phrase, 0) + 1
            plain[k] = phrase if used[phrase] == 1 else f"{phrase} {used[phrase]}"
    return tuple(plain)
