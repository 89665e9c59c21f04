"""The maps of a scene's views, one at a time: no more than one map is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError
from featuresplat.types import Cameras

Progress = Callable[[Iterable[int], str], Iterable[int]]
"""Wraps the numbers of a loop, with a word on what they are for."""


def silent(numbers: Iterable[int], word: str) -> Iterable[int]:
    """No progress."""
    return numbers


@dataclass
class Maps:
    """Teacher maps of C views, fetched when asked for.

    Attributes:
        cameras: C cameras, at the photographs' size.
        dim: F.
        fetch: i to the map [h, w, F] of view i, of any float dtype; may be memory-mapped. Cell (y, x) stands for the
            image rectangle [x W/w, (x+1) W/w] x [y H/h, (y+1) H/h].
        mask: i to bool [H, W], True = use this pixel, or None.
    """

    cameras: Cameras
    dim: int
    fetch: Callable[[int], Tensor] = field(repr=False)
    mask: Callable[[int], Tensor | None] = field(default=lambda i: None, repr=False)

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, i: int) -> Tensor:
        """[h, w, F] of view i.

        Raises:
            FeaturesplatError: not F channels.
        """
        found = self.fetch(i)
        if found.ndim != 3 or found.shape[2] != self.dim or 0 in found.shape:
            raise FeaturesplatError(
                f"{self.cameras.names[i] or f'view {i}'}: expected a map [h, w, {self.dim}], got {list(found.shape)}",
                "Extract the maps again with one teacher and its settings.",
            )
        return found


def resize(values: Tensor, height: int, width: int) -> Tensor:
    """[h, w, K] to float32 [height, width, K]: averaged where it shrinks, bilinear between cell centres where it grows.

    Weighs a block of K channels; give blocks where memory matters.
    """
    h, w = values.shape[:2]
    if (h, w) == (height, width):
        return values.float().contiguous()
    grows = h < height or w < width
    if grows and values.device.type == "cpu" and not values.requires_grad:
        return _enlarged(values.float(), height, width)
    stacked = values.float().permute(2, 0, 1)[None]
    if grows:
        out = F.interpolate(stacked, size=(height, width), mode="bilinear", align_corners=False)
    else:
        out = F.interpolate(stacked, size=(height, width), mode="area")
    return out[0].permute(1, 2, 0).contiguous()


def _enlarged(values: Tensor, height: int, width: int) -> Tensor:
    """What bilinear `F.interpolate` gives, row by row with the channels last: a third of its time for hundreds."""

    def along(size: int, cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """The cells before and after each place, and how far it is on the way."""
        at = ((torch.arange(size) + 0.5) * (cells / size) - 0.5).clamp(0, cells - 1)
        before = at.floor().long()
        return before, (before + 1).clamp_max(cells - 1), at - before

    up, down, y = along(height, values.shape[0])
    left, right, x = along(width, values.shape[1])
    out = torch.empty(height, width, values.shape[2])
    for k in range(height):
        row = torch.lerp(values[up[k]], values[down[k]], y[k])
        torch.lerp(row[left], row[right], x[:, None], out=out[k])
    return out


def mask_at(mask: Tensor | None, height: int, width: int) -> Tensor | None:
    """[height, width] share of each pixel that the mask keeps; None where it keeps all."""
    if mask is None or bool(mask.all()):
        return None
    return resize(mask[..., None].float(), height, width)[..., 0]


def second_moment(maps: Maps, per_view: int = 2048, progress: Progress = silent) -> Tensor:
    """[F, F] float64 mean of f f^T over evenly sampled cells of all maps."""
    total, count = torch.zeros(maps.dim, maps.dim, dtype=torch.float64), 0
    for i in progress(range(len(maps)), "channels"):
        cells = maps[i].reshape(-1, maps.dim)
        some = cells[:: max(1, len(cells) // per_view)].float()
        total += (some.T @ some).double()
        count += len(some)
    return total / max(count, 1)


def principal_axes(moment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` main directions of a second moment [F, F], not centred: axes [F, count] and energies [F].

    Not centred, so that the decoder needs no offset and decoding commutes with blending. The signs are fixed: the
    largest component of each axis is positive.
    """
    energies, axes = torch.linalg.eigh(moment.double())
    axes = axes.flip(1)[:, :count]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return (axes * torch.where(largest < 0, -1.0, 1.0)).float(), energies.flip(0).clamp_min(0)
