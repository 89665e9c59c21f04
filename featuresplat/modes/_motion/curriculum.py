"""Which frames a training sees when: from the rest frame outwards, one after the other, then all.

A frame that enters starts from what its neighbour has learned. So every frame is compared with one model that grows,
and errors of the flow, which chained tracks add up, do not last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Curriculum:
    """T frames enter from ``rest``, alternating between the two directions of time.

    Attributes:
        rest: the first frame. count: T. first: steps on it alone. until: step by which all frames have entered.
    """

    rest: int
    count: int
    first: int
    until: int

    def order(self) -> list[int]:
        """[T] frames in the order in which they enter."""
        return sorted(range(self.count), key=lambda t: (abs(t - self.rest), t < self.rest))

    def step_of(self, place: int) -> int:
        """The step at which the frame at a place of the order enters; the last place plus one is the end."""
        return 0 if place == 0 else self.first + (place - 1) * (self.until - self.first) // max(self.count - 1, 1)

    def entering(self, step: int) -> list[int]:
        """Frames that enter at a step."""
        return [t for k, t in enumerate(self.order()) if k and self.step_of(k) == step]

    def settled(self, step: int) -> list[int]:
        """Frames whose own steps have ended at a step."""
        return [t for k, t in enumerate(self.order()) if self.step_of(k + 1) == step]

    def range(self, step: int) -> tuple[int, int]:
        """First and last frame that have entered before or at a step."""
        inside = [t for k, t in enumerate(self.order()) if self.step_of(k) <= step]
        return min(inside), max(inside)

    def frame(self, step: int, seed: int) -> int | None:
        """The frame to look at: in turns the newest and any that has entered; None once all have."""
        if step >= self.until:
            return None
        inside = [t for k, t in enumerate(self.order()) if self.step_of(k) <= step]
        if step % 2 == 0:
            return inside[-1]
        generator = torch.Generator().manual_seed(seed * 7919 + step)
        return inside[int(torch.randint(len(inside), (1,), generator=generator))]
