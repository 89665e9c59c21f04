"""The photographs as a training takes them: in which order, at which size, over which background."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.config import TrainConfig
from featuresplat.datasets import Dataset
from featuresplat.normalization import Normalization
from featuresplat.types import Cameras

COARSE_UNTIL = 0.3  # share of the steps that the smaller sizes take together


class Level:
    """The photographs at one size, with the training cameras ready on the device.

    Attributes:
        dataset: the data at that size.
        cameras: the M training cameras, in the training frame.
        viewmats, Ks: theirs, [M, 4, 4] and [M, 3, 3] float32 on the device.
    """

    def __init__(self, dataset: Dataset, cameras: Cameras, device: torch.device):
        self.dataset, self.cameras = dataset, cameras
        self.viewmats = cameras.viewmats.to(device, torch.float32)
        self.Ks = cameras.Ks.to(device, torch.float32)


class Photographs:
    """The training images of a dataset, step by step.

    Args:
        dataset: the data at full size.
        frame: the training frame.
        config: the whole configuration: steps, batch, sizes, backgrounds, seed.
        device: where images and cameras are wanted.
        generator: draws random backgrounds.
    """

    def __init__(
        self,
        dataset: Dataset,
        frame: Normalization,
        config: TrainConfig,
        device: torch.device,
        generator: torch.Generator,
    ):
        self.dataset, self.frame, self.config = dataset, frame, config
        self.device, self.generator = device, generator
        self._levels: dict[int, Level] = {}

    def level(self, step: int) -> Level:
        """The data at the size that this step trains on."""
        sizes = self.config.coarse_to_fine
        place = int(step / max(COARSE_UNTIL * self.config.steps, 1) * len(sizes))
        factor = sizes[place] if place < len(sizes) else 1
        if factor not in self._levels:
            self._levels.clear()  # an earlier, smaller one is not needed again
            data = self.dataset if factor == 1 else self.dataset.at_size(factor)
            cameras = self.frame.cameras(data.cameras[data.train])
            self._levels[factor] = Level(data, cameras, self.device)
        return self._levels[factor]

    def batch(self, step: int) -> list[int]:
        """Which training images a step sees: every image once per epoch, in an order fixed by the seed."""
        chosen, count = [], len(self.dataset.train)
        for k in range(step * self.config.optim.batch, (step + 1) * self.config.optim.batch):
            epoch, place = divmod(k, count)
            order = torch.Generator().manual_seed(hash((self.config.seed, epoch)) & 0x7FFFFFFF)
            chosen.append(int(torch.randperm(count, generator=order)[place]))
        return chosen

    def truth(self, data: Dataset, index: int) -> tuple[Tensor, Tensor | None]:
        """Image ``index`` of ``data`` [H, W, 3] in 0..1, and the colour [3] behind it and its render; None is black."""
        truth = data.image(index).to(self.device).float().mul_(1 / 255.0)
        given = background_of(self.config, data)
        if not self.config.loss.random_background:
            return truth, torch.tensor(given, device=self.device) if any(given) else None
        alpha = data.alpha(index)
        color = torch.rand(3, generator=self.generator).to(self.device)
        if alpha is not None:
            through = 1.0 - alpha.to(self.device).float()[..., None] / 255.0
            truth = truth + through * (color - torch.tensor(given, device=self.device))
        return truth, color


def background_of(config: TrainConfig, data: Dataset) -> list[float]:
    """What renders are laid over: the colour behind transparent images; black for photographs."""
    if data.alpha(data.train[0]) is None:
        return [0.0, 0.0, 0.0]
    return {"white": [1.0] * 3, "black": [0.0] * 3, "gray": [0.5] * 3}[config.data.background]
