"""Where a film's cameras saw points that move."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Paths:
    """P points as cameras saw them over T frames, in the training frame.

    Attributes:
        rays: [P, T, 2] x/z and y/z in the camera of that frame; anything where not seen.
        seen: bool [P, T].
        depth: [P, T] z in that camera, 0 = unknown.
        viewmats: [T, 4, 4] world-to-camera.
        trust: [P] weights in 0..1; None trusts all alike.
        guess: [P] z at the first frame in which the point is seen, for points without any depth.
        floor: [P, T] z of what it stands on, 0 = unknown, or None.
    """

    rays: Tensor
    seen: Tensor
    depth: Tensor
    viewmats: Tensor
    trust: Tensor | None = None
    guess: Tensor | None = None
    floor: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """[P]"""
        return torch.ones(len(self.rays)) if self.trust is None else self.trust

    @property
    def has_depth(self) -> bool:
        return bool((self.depth > 0).any())

    def world(self, depth: Tensor) -> Tensor:
        """[P, T, 3] the points at given depths [P, T]."""
        local = torch.cat([self.rays, torch.ones_like(depth[..., None])], -1) * depth[..., None]
        R, t = self.viewmats[:, :3, :3], self.viewmats[:, :3, 3]
        return torch.einsum("tji,ptj->pti", R, local - t)

    def local(self, points: Tensor, frames: Tensor) -> Tensor:
        """[P, F, 3] world points [P, F, 3] in the cameras of the frames."""
        R, t = self.viewmats[frames, :3, :3], self.viewmats[frames, :3, 3]
        return torch.einsum("tij,ptj->pti", R, points) + t
