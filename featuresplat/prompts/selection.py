"""A set of the Gaussians of a scene."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.prompts.graph import graph_of, to_mask, to_numpy

if TYPE_CHECKING:
    from featuresplat.scene import Scene

KIND = "featuresplat selection"


@dataclass(eq=False)
class Selection:
    """A set of the N Gaussians of a scene; ``&``, ``|``, ``-``, ``^`` and ``~`` combine such sets.

    Attributes:
        mask: bool [N].
        name: what to call it.
    """

    mask: Tensor
    name: str = ""

    def __post_init__(self) -> None:
        if self.mask.dtype != torch.bool or self.mask.ndim != 1:
            got = f"{self.mask.dtype} {tuple(self.mask.shape)}"
            raise FeaturesplatError(f"selection: expected bool [N], got {got}", "Compare scores with a threshold.")

    def __len__(self) -> int:
        """N, of the whole scene."""
        return len(self.mask)

    @property
    def count(self) -> int:
        """How many Gaussians are in it."""
        return int(self.mask.sum())

    def __and__(self, other: Selection) -> Selection:
        return self._with(other, torch.logical_and)

    def __or__(self, other: Selection) -> Selection:
        return self._with(other, torch.logical_or)

    def __sub__(self, other: Selection) -> Selection:
        return self._with(other, lambda a, b: a & ~b)

    def __xor__(self, other: Selection) -> Selection:
        return self._with(other, torch.logical_xor)

    def __invert__(self) -> Selection:
        return Selection(~self.mask, self.name)

    def grow(self, scene: Scene, k: int = 1) -> Selection:
        """With the neighbours of its Gaussians, ``k`` times."""
        graph, inside = graph_of(scene.gaussians.means), to_numpy(self._of(scene).mask)
        for _ in range(k):
            inside = graph.dilate(inside)
        return Selection(to_mask(inside, self.mask), self.name)

    def shrink(self, scene: Scene, k: int = 1) -> Selection:
        """Without the Gaussians that have a neighbour outside, ``k`` times."""
        return ~((~self).grow(scene, k))

    def cleanup(self, scene: Scene, smallest: float = 0.05) -> Selection:
        """Without stray bits and with small holes filled, judged on the neighbour graph.

        Args:
            smallest: connected parts below this share of the largest one are dropped; holes below this share of
                the selection that touch nothing but it are filled.
        """
        graph, inside = graph_of(scene.gaussians.means), to_numpy(self._of(scene).mask)
        if not inside.any():
            return Selection(self.mask.clone(), self.name)
        part, sizes = graph.parts(inside)
        inside = inside & (part >= 0) & (part < int((sizes >= smallest * sizes[0]).sum()))
        hole, sizes = graph.parts(~inside)
        # Far strays have no neighbours at all: such a part is no hole, however small it is.
        touched = np.zeros(len(sizes) + 1, bool)
        across = inside[graph.rows] != inside[graph.cols]
        touched[hole[np.where(inside[graph.rows], graph.cols, graph.rows)[across]]] = True
        filled = touched[hole] & (np.append(sizes, 0)[hole] < smallest * inside.sum()) & (hole >= 0)
        return Selection(to_mask(inside | filled, self.mask), self.name)

    def save(self, path: str | Path, scene: Scene) -> None:
        """Write it as safetensors, with the scene's fingerprint.

        Raises:
            FeaturesplatError: it does not belong to ``scene``, the disk is full and the like.
        """
        metadata = {"kind": KIND, "format": "1", "name": self.name, "scene": fingerprint(scene)}
        write_tensors(path, {"mask": self._of(scene).mask.to(torch.uint8)}, metadata)

    @staticmethod
    def load(path: str | Path, scene: Scene) -> Selection:
        """Read what `save` wrote.

        Raises:
            FeaturesplatError: missing or damaged, or made on another scene.
        """
        tensors, metadata = read_tensors(path)
        mask = tensors.get("mask")
        if metadata.get("kind") != KIND or mask is None or mask.ndim != 1 or mask.dtype != torch.uint8:
            raise FeaturesplatError(
                f"{path}: is no selection of Gaussians.", "Give a file that a selection was saved in."
            )
        if len(mask) != len(scene.gaussians) or metadata.get("scene") != fingerprint(scene):
            what = f"was made on another scene ({len(mask)} Gaussians; this one has {len(scene.gaussians)})"
            raise FeaturesplatError(f"{path}: {what}.", "Select again, or load the scene it was made on.")
        return Selection(mask.bool().to(scene.gaussians.means.device), metadata.get("name", ""))

    def _with(self, other: Selection, how: Callable[[Tensor, Tensor], Tensor]) -> Selection:
        if len(self) != len(other):
            got = f"{len(self)} and {len(other)} Gaussians"
            raise FeaturesplatError(f"selections: of scenes with {got}", "Combine selections of one scene.")
        return Selection(how(self.mask, other.mask), self.name)

    def _of(self, scene: Scene) -> Selection:
        """Itself, when it can belong to the scene."""
        if len(self) != len(scene.gaussians):
            got = f"{len(self)} Gaussians, the scene {len(scene.gaussians)}"
            raise FeaturesplatError(f"selection: is of {got}", "Select again on this scene.")
        return self


def fingerprint(scene: Scene) -> str:
    """Says which Gaussians a selection counts: 16 hexadecimal digits of N and all ``means``."""
    means = scene.gaussians.means.detach().cpu().float().contiguous()
    return hashlib.sha256(str(tuple(means.shape)).encode() + means.numpy().tobytes()).hexdigest()[:16]
