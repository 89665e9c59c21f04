"""Ways of representing a scene over time and light: one file, one mode.

A mode module has a class ``Mode``, a subclass of :class:`Mode` below, which training asks. What a finished scene is
asked, `Scene.at` and `Scene.render`, may be answered by the module too, by functions with these names:

- ``at(scene, time) -> Gaussians``: the Gaussians at a time, in the data's own frame;
- ``render(scene, cameras, request) -> RenderOutput``: a render of its own, in place of splatting ``at``;
- ``KINDS`` and ``picture(scene, cameras, kind, request) -> [C, H, W, 3 or 1]``: further kinds that can be rendered;
- ``bodies(scene) -> [N]``: what moves as one, -1 for what holds still: prompts take each for an object;
- ``ENDINGS`` {ending: writer(scene, path) -> count}: files that `export` lets the mode write;
- ``columns(scene, path) -> (comments, {name: [N]})``: further columns of a PLY, one comment ``mode NAME ...``, and
  ``from_columns(scene, rest of that comment, columns, path) -> scene``: the way back;
- ``joined(scenes) -> scenes``: the same scenes with per-Gaussian tensors that mean the same in all of them, and what
  they refer to in the first one's ``mode_state``: `Scene.cat` asks before it puts rows together;
- ``begun(config, first) -> config``: called before anything is read: what training starts from, which
  ``first(config, check)`` trains, ``check(dataset)`` before its first step;
- ``settled(scene, dataset) -> scene``: the last word on a scene whose training has ended, before it is written;
- ``measure(scene, dataset, backend) -> dict | None``: what metrics.json says under the mode's name;
- ``report(scene, dataset) -> [(title, HTML)]``: sections for report.html (`featuresplat.io.html` has the pieces).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from featuresplat import raster
from featuresplat.config import OptimConfig, TrainConfig
from featuresplat.losses import photometric
from featuresplat.normalization import Normalization
from featuresplat.types import Cameras, FeatureField, Gaussians, PointCloud, RenderOutput

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset


@dataclass(frozen=True)
class ModeInputs:
    """What a mode starts from.

    Attributes:
        config: the whole configuration.
        cameras: the M training cameras, in the training frame.
        points: start points in the training frame, or None.
        device: where parameters live.
        frame: the training frame; ``frame.undo`` leads back to the data's own.
        dataset: the data; training image m is its image ``dataset.train[m]``. None in tests of a mode by itself.
    """

    config: TrainConfig
    cameras: Cameras
    points: PointCloud | None
    device: torch.device
    frame: Normalization
    dataset: Dataset | None = None


@dataclass(frozen=True)
class View:
    """One training view: pose [4, 4] and intrinsics [3, 3] in the training frame, size, and what is asked of it.

    Attributes:
        index: place among the training images.
        step: of the optimisation.
        time: in 0..1, or None.
        sh_degree: degree of the spherical harmonics so far.
        background: [3] behind the colours, or None.
        absgrad: densification wants the 2D gradients.
    """

    viewmat: Tensor
    K: Tensor
    width: int
    height: int
    index: int
    step: int
    time: float | None = None
    sh_degree: int = 0
    background: Tensor | None = None
    absgrad: bool = False


@dataclass(frozen=True)
class Batch:
    """The truth of one training view.

    Attributes:
        view: which one.
        name: the photograph's name.
        truth: [H, W, 3] in 0..1, laid over the view's background.
        mask: bool [H, W], True = use this pixel, or None.
        depth: [H, W] z-depth in training units, 0 = unknown, or None.
    """

    view: View
    name: str
    truth: Tensor
    mask: Tensor | None = None
    depth: Tensor | None = None


def decayed(optim: OptimConfig, progress: float) -> float:
    """Learning rate of the means at ``progress`` in 0..1: it falls exponentially."""
    return math.exp((1 - progress) * math.log(optim.means_lr) + progress * math.log(optim.means_lr_final))


class Mode:
    """What the training loop asks of a mode; the defaults are those of a scene that holds still.

    Attributes:
        gaussian_params: per-Gaussian parameters by name, rows = Gaussians; densification edits them in place.
        extra_params: all other parameters by name; names differ from those of ``gaussian_params``.
        settings: constants of the rasterizer; the trainer sets them.
    """

    gaussian_params: dict[str, Parameter]
    extra_params: dict[str, Parameter]
    settings: raster.RasterSettings

    fixed = False
    """Whether no Gaussian may be added, taken away or moved about by densification any more."""

    def __init__(self, inputs: ModeInputs):
        self.config, self.inputs = inputs.config, inputs
        self.gaussian_params, self.extra_params = {}, {}
        self.settings = raster.RasterSettings()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for Adam: one per parameter of both kinds, with its ``name`` and ``lr``."""
        raise NotImplementedError

    def rates(self, progress: float) -> dict[str, float]:
        """Learning rates by group name at ``progress`` in 0..1; groups not named keep what they have."""
        return {}

    def before_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Called before each step, e.g. to enter a new stage."""

    def after_step(self, step: int, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
        """Called after each step and after densification. Whoever replaces a parameter does so in the optimizer too."""

    def at(self, time: float | None = None) -> Gaussians:
        """The Gaussians at a time, differentiable, in the training frame."""
        raise NotImplementedError

    def render(self, view: View) -> RenderOutput:
        """The differentiable render of a training view; ``rgb`` is what is compared with the photograph."""
        return self.splat(self.at(view.time), view)

    def splat(
        self, g: Gaussians, view: View, features: Tensor | None = None, geometry_grad: raster.GeometryGrad = "full"
    ) -> RenderOutput:
        """Gaussians of the training frame, and features [N, D] of theirs, as a training view sees them."""
        return raster.rasterize(
            g.means,
            g.quats,
            g.scales,
            g.opacities,
            g.sh,
            view.viewmat[None],
            view.K[None],
            view.width,
            view.height,
            features=features,
            sh_degree=min(view.sh_degree, g.sh_degree),
            backgrounds=view.background,
            geometry_grad=geometry_grad,
            absgrad=view.absgrad,
            settings=self.settings,
            backend=self.config.backend,
        )

    def photometric(self, rgb: Tensor, truth: Tensor, mask: Tensor | None) -> Tensor:
        """How far a render [H, W, 3] is from its photograph, a scalar."""
        return photometric(rgb, truth, self.config.loss.dssim, mask)

    def losses(self, out: RenderOutput, batch: Batch) -> dict[str, Tensor]:
        """Terms to add to the photometric loss of a view, weighted already."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """What a resumed run needs beyond the parameters."""
        return {}

    def load_buffers(self, buffers: dict[str, Tensor]) -> None:
        """Take back what `buffers` gave; parameters are restored already."""

    def fields(self) -> dict[str, FeatureField]:
        """Feature fields that were trained along, one row per Gaussian of ``at(None)``."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a saved scene needs beyond the Gaussians ``at(None)``: tensors by name, in the data's own frame."""
        return {}
