"""Teacher `dino`: patch features of a self-supervised vision transformer through timm (DINOv2, DINOv3 and kin).

They tell parts and materials apart and match them between views; text cannot ask for them. With ``edges`` they are
brought to half the photograph's size along its edges (`featuresplat.teachers._upsample`).

Weights come from timm, by name, or from a local file.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._weights import load_weights, need, read_state
from featuresplat.teachers._windows import along_edges, check_image, fitted, resized

DEFAULT_MODEL = "vit_small_patch14_dinov2.lvd142m"
_LONGEST = 518
"""Default longer side: 37 patches of 14, the size that DINOv2 ended its training with."""


class Teacher:
    """A vision transformer of timm without its head.

    Raises:
        FeaturesplatError: timm or the weights are missing, or the model is unknown or has no grid of patches.
    """

    name = "dino"

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        timm = need("timm", "dino")
        variant = config.model or DEFAULT_MODEL
        if not timm.is_model(variant.split(".")[0]):
            raise FeaturesplatError(f"teacher 'dino': timm knows no model '{variant}'", f"For example {DEFAULT_MODEL}.")
        self.model: Any = load_weights("dino", variant, lambda: _build(timm, variant, config), config.path)
        self.model.to(device).eval()
        if not hasattr(self.model, "patch_embed") or not hasattr(self.model, "num_prefix_tokens"):
            raise FeaturesplatError(
                f"teacher 'dino': {variant} has no grid of patches", f"Take a ViT such as {DEFAULT_MODEL}."
            )
        self.device, self.dim = torch.device(device), int(self.model.num_features)
        self.patch, self.longest = int(self.model.patch_embed.patch_size[0]), config.size or _LONGEST
        self.edges = config.edges
        cfg = self.model.pretrained_cfg
        self.mean = torch.tensor(cfg.get("mean", (0.485, 0.456, 0.406))).view(3, 1, 1)
        self.std = torch.tensor(cfg.get("std", (0.229, 0.224, 0.225))).view(3, 1, 1)
        self.settings: dict[str, Any] = {
            "model": variant,
            "weights": str(config.path) if config.path else "",
            "size": self.longest,
            "edges": self.edges,
            "version": 1,
        }

    @torch.no_grad()
    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] in 0..1 to patch features [h, w, F], normed by the network's last layer, float32 on the CPU."""
        image = check_image(image)
        height, width = fitted(image, self.longest, self.patch)
        planes = (resized(image, height, width) - self.mean) / self.std
        tokens = self.model.forward_features(planes.to(self.device))
        patches = tokens[0, self.model.num_prefix_tokens :]
        grid = patches.unflatten(0, (height // self.patch, width // self.patch)).float().cpu()
        return along_edges(grid, image, self.edges)


def _build(timm: Any, variant: str, config: TeacherConfig) -> torch.nn.Module:
    model = timm.create_model(variant, pretrained=config.path is None, num_classes=0, dynamic_img_size=True)
    if config.path is not None:
        state = {k: v for k, v in read_state(config.path).items() if not k.startswith("head.")}
        model.load_state_dict(state)
    return model
