"""A dense prediction transformer (Ranftl et al. 2021) that ends in 512 channels: LSeg's image side (Li et al. 2022).

Modules are named so that the state of the published checkpoint loads strictly once its prefix ``net.`` is taken off:

    pretrained.model.*                        the vision transformer, timm's names
    pretrained.act_postprocessI.0.project.0   readout: patch and class token together (I = 1..4)
    pretrained.act_postprocessI.3             1x1 convolution
    pretrained.act_postprocessI.4             up by 4 (1), up by 2 (2), nothing (3), down by 2 (4)
    scratch.layerI_rn                         3x3 convolution to the decoder's width
    scratch.refinenetI.resConfUnitJ.convK, bnK, scratch.refinenetI.out_conv
    scratch.head1                             1x1 convolution to 512 channels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featuresplat.teachers._weights import need


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are those of the published checkpoint (clip_vitl16_384)."""

    backbone: str = "vit_large_patch16_384"
    width: int = 1024
    stages: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    taps: tuple[int, int, int, int] = (5, 11, 17, 23)
    features: int = 256
    out: int = 512
    patch: int = 16


class DensePredictor(nn.Module):
    """Images [B, 3, H, W], sides multiples of 32, normalised to -1..1, to features [B, 512, H / 2, W / 2]."""

    def __init__(self, shape: Shape = Shape(), **backbone: Any):
        super().__init__()
        self.shape = shape
        self.pretrained: Any = nn.Module()
        self.pretrained.model = need("timm", "lseg").create_model(
            shape.backbone, pretrained=False, num_classes=0, **backbone
        )
        for i, channels in enumerate(shape.stages, start=1):
            setattr(self.pretrained, f"act_postprocess{i}", _reassemble(i, shape.width, channels))
        self.scratch: Any = nn.Module()
        for i, channels in enumerate(shape.stages, start=1):
            setattr(self.scratch, f"layer{i}_rn", nn.Conv2d(channels, shape.features, 3, padding=1, bias=False))
            setattr(self.scratch, f"refinenet{i}", _Fusion(shape.features))
        self.scratch.head1 = nn.Conv2d(shape.features, shape.out, 1)

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = image.shape[-2] // self.shape.patch, image.shape[-1] // self.shape.patch
        path: Tensor | None = None
        layers = [
            getattr(self.pretrained, f"act_postprocess{i}")(_grid(tokens, rows, columns))
            for i, tokens in enumerate(self._tokens(image, rows, columns), start=1)
        ]
        for i in (4, 3, 2, 1):
            layer = getattr(self.scratch, f"layer{i}_rn")(layers[i - 1])
            path = getattr(self.scratch, f"refinenet{i}")(layer, path)
        return self.scratch.head1(path)

    def _tokens(self, image: Tensor, rows: int, columns: int) -> list[Tensor]:
        """Tokens [B, 1 + rows * columns, width] after the tapped blocks."""
        vit: Any = self.pretrained.model
        patches = vit.patch_embed.proj(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.cls_token.expand(len(image), -1, -1), patches], dim=1)
        tokens = tokens + _positions(vit.pos_embed, rows, columns)
        found = []
        for i, block in enumerate(vit.blocks):
            tokens = block(tokens)
            if i in self.shape.taps:
                found.append(tokens)
        return found


class _Readout(nn.Module):
    """Each patch token with the class token, projected: grid [B, 2 C, h, w] to [B, C, h, w]."""

    def __init__(self, width: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, both: Tensor) -> Tensor:
        return self.project(both.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Residual(nn.Module):
    def __init__(self, features: int):
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(F.relu(x)))
        return self.bn2(self.conv2(F.relu(y))) + x


class _Fusion(nn.Module):
    """A layer joined to the coarser path, refined, and doubled in size."""

    def __init__(self, features: int):
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = _Residual(features)
        self.resConfUnit2 = _Residual(features)

    def forward(self, layer: Tensor, path: Tensor | None) -> Tensor:
        joined = layer if path is None else path + self.resConfUnit1(layer)
        refined = self.resConfUnit2(joined)
        return self.out_conv(F.interpolate(refined, scale_factor=2, mode="bilinear", align_corners=True))


def _reassemble(stage: int, width: int, channels: int) -> nn.Sequential:
    # Places 1 and 2 are steps without weights in the checkpoint's numbering.
    steps: list[nn.Module] = [_Readout(width), nn.Identity(), nn.Identity(), nn.Conv2d(width, channels, 1)]
    if stage in (1, 2):
        factor = 4 // stage
        steps.append(nn.ConvTranspose2d(channels, channels, factor, stride=factor))
    elif stage == 4:
        steps.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
    return nn.Sequential(*steps)


def _grid(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """[B, 1 + h w, C] to [B, 2 C, h, w]: patch tokens over the class token repeated."""
    patches, readout = tokens[:, 1:], tokens[:, :1].expand(-1, rows * columns, -1)
    return torch.cat([patches, readout], dim=2).transpose(1, 2).unflatten(2, (rows, columns))


def _positions(embedding: Tensor, rows: int, columns: int) -> Tensor:
    """[1, 1 + n n, C] position embedding for another grid, bilinear as LSeg does it."""
    side = round((embedding.shape[1] - 1) ** 0.5)
    grid = embedding[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=False)
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)
