"""A static scene whose features are trained along with its colours from the start: Feature 3DGS, Zhou et al. 2024.

For comparison: lifting onto a finished scene (`featuresplat.fields`) is faster and at least as good. Each Gaussian has
codes beside its colours, begun at 0; the render of the codes, resized (bilinear, corners aligned) to the teacher's
map and decoded by a 1x1 convolution where ``field.dim`` asks for fewer channels than the teacher's, is compared
with the map by L1, weight 1. Features do not move geometry.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from featuresplat import modes, teachers
from featuresplat.decoders import LinearDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.fields import distill
from featuresplat.fields.extract import extract
from featuresplat.modes import static
from featuresplat.types import FeatureField, RenderOutput

CODES_LR, DECODER_LR = 1e-3, 1e-4
WEIGHT, BIAS = "decoder.weight", "decoder.bias"


class Mode(static.Mode):
    """The parameters of a static scene, ``codes`` [N, D], and a decoder where D < F."""

    def __init__(self, inputs: modes.ModeInputs):
        """Raises FeaturesplatError without a teacher, or without photographs to show it."""
        super().__init__(inputs)
        config, dataset = inputs.config, inputs.dataset
        names = distill.teacher_names(config.teacher)
        if len(names) > 1 or dataset is None:
            raise FeaturesplatError("mode joint: expected one teacher and photographs.", "Use --field.dim and distill.")
        self.teacher = teachers.make_teacher(names[0], config.teacher, inputs.device)
        self.maps = extract(dataset, self.teacher, dataset.train, distill.map_cache(self.teacher, config.field))
        width = config.field.dim if 0 < config.field.dim < self.teacher.dim else self.teacher.dim
        count = len(self.gaussian_params["means"])
        self.gaussian_params["codes"] = Parameter(torch.zeros(count, width, device=inputs.device))
        if width < self.teacher.dim:
            # torch's own start of a convolution, from the run's seed.
            start = torch.nn.Linear(width, self.teacher.dim)
            self.extra_params[WEIGHT] = Parameter(start.weight.detach().to(inputs.device))
            self.extra_params[BIAS] = Parameter(start.bias.detach().to(inputs.device))

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates = static.first_rates(self.config.optim) | {"codes": CODES_LR, WEIGHT: DECODER_LR, BIAS: DECODER_LR}
        everything = {**self.gaussian_params, **self.extra_params}
        return [{"name": k, "params": [p], "lr": rates[k]} for k, p in everything.items()]

    def at(self, time: float | None = None):
        return static.Gaussians(**{k: p for k, p in self.gaussian_params.items() if k != "codes"})

    def render(self, view: modes.View) -> RenderOutput:
        return self.splat(self.at(view.time), view, self.gaussian_params["codes"], geometry_grad="rgb")

    def losses(self, out: RenderOutput, batch: modes.Batch) -> dict[str, Tensor]:
        assert out.features is not None
        truth = self.maps[batch.view.index].to(out.features.device, torch.float32)
        stacked = out.features.permute(0, 3, 1, 2)  # [1, D, H, W]
        shrunk = F.interpolate(stacked, size=truth.shape[:2], mode="bilinear", align_corners=True)
        features = self._decoded(shrunk[0].permute(1, 2, 0))
        return {**super().losses(out, batch), "features": (features - truth).abs().mean()}

    def fields(self) -> dict[str, FeatureField]:
        codes, teacher = self.gaussian_params["codes"].detach().clone(), self.teacher
        decoder = None
        if WEIGHT in self.extra_params:
            decoder = LinearDecoder(codes.shape[1], teacher.dim, bias=True).to(codes.device)
            decoder.weight.data.copy_(self.extra_params[WEIGHT])
            decoder.bias.data.copy_(self.extra_params[BIAS])  # pyright: ignore[reportOptionalMemberAccess]
            decoder.requires_grad_(False)
        info = {"teacher": dict(teacher.settings), "method": "joint training"}
        table = distill.text_table(teacher)
        return {
            (self.config.field.name or teacher.name): FeatureField(codes, teacher.name, decoder, None, table, info)
        }  # fmt: skip

    def _decoded(self, codes: Tensor) -> Tensor:
        if WEIGHT not in self.extra_params:
            return codes
        return F.linear(codes, self.extra_params[WEIGHT], self.extra_params[BIAS])
