"""Teacher `clip`: CLIP through open_clip, dense or by crops of masks; any phrase can be asked.

- level `dense`: the value path of the last attention block (MaskCLIP, Zhou et al. 2022): each patch's values go
  through the block's output projection, the last norm and the projection, without attention, residual and MLP, which
  mix patches. Photographs larger than the network's own size are seen through windows that overlap.
- levels `subpart`, `part`, `whole`: every mask is cut out, laid on black, padded to a square and encoded as an image
  (LangSplat, Qin et al. 2024); a pixel gets its mask's embedding, and the dense one where no mask is.

Weights come from open_clip, by name, or from a local file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import CANONICAL
from featuresplat.teachers._levels import crop, levels
from featuresplat.teachers._weights import load_weights, need
from featuresplat.teachers._windows import along_edges, check_image, fitted, over_windows, resized

DEFAULT_MODEL = "ViT-B-16/laion2b_s34b_b88k"
ABOUT = "CLIP: takes any phrase; sharp on things and their kinds, weak on counts, places ('left of') and small parts."
_LONGEST = 448
"""Default longer side for dense features: 28 patches of 16."""
_CROPS = 16
"""Crops encoded at a time."""


class Teacher:
    """CLIP's image and text towers.

    Raises:
        FeaturesplatError: open_clip or the weights are missing, or the model is unknown or no plain ViT.
    """

    name = "clip"
    canonical = CANONICAL
    about = ABOUT

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        self.text = TextSide(_model_name(config), config.path, device)
        self.model, self.device = self.text.model, torch.device(device)
        visual = self.model.visual
        if not hasattr(visual, "transformer") or not hasattr(visual, "conv1") or visual.attn_pool is not None:
            raise FeaturesplatError(
                f"teacher 'clip': {self.text.model_name} is no plain vision transformer",
                f"Take a ViT such as {DEFAULT_MODEL}.",
            )
        self.dim = int(visual.output_dim)
        self.patch, self.native = visual.patch_size, visual.image_size
        self.level, self.longest, self.edges = config.level, config.size or _LONGEST, config.edges
        self.masks_config = config.masks
        self._masks = None
        self.settings: dict[str, Any] = {
            "model": self.text.model_name,
            "weights": str(config.path) if config.path else "",
            "level": self.level,
            "size": self.longest,
            "edges": self.edges,
            "masks": str(config.masks) if config.masks else "",
            "version": 1,
        }

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] in 0..1 to [h, w, F] of unit length: one cell a patch (dense), or a quarter of the pixels."""
        image = check_image(image)
        dense = self.dense(image)
        if self.level == "dense":
            return F.normalize(along_edges(dense, image, self.edges), dim=-1)
        masks = levels(self._mask_source().masks(image))[self.level]
        height, width = (max(1, side // 2) for side in image.shape[:2])
        out = F.interpolate(dense.permute(2, 0, 1)[None], (height, width), mode="bilinear")[0].permute(1, 2, 0)
        out = F.normalize(out, dim=-1).contiguous()
        for mask, embedding in zip(masks, self.embed_masks(image, masks), strict=True):
            small = F.interpolate(mask[None, None].float(), (height, width), mode="area")[0, 0] >= 0.5
            out[small] = embedding
        return out

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, F] of unit length."""
        return self.text.encode_text(phrases)

    @torch.no_grad()
    def dense(self, image: Tensor) -> Tensor:
        """[H, W, 3] in 0..1 to patch features [h, w, F] of unit length."""
        size = fitted(image, self.longest, self.patch[0])
        size = (max(size[0], self.native[0]), max(size[1], self.native[1]))
        planes = self.preprocess(resized(image, *size))
        features = over_windows(planes, self.native, self.patch[0], self.patch_features)
        return F.normalize(features, dim=-1)

    @torch.no_grad()
    def patch_features(self, planes: Tensor) -> Tensor:
        """Preprocessed [1, 3, h, w] of the network's own size to [h / patch, w / patch, F], float32 on the CPU."""
        visual = self.model.visual
        *before, last = visual.transformer.resblocks
        # Blocks of the batch-first kind; the transformer itself would run the last one too.
        tokens = visual._embeds(planes.to(self.device))
        for block in before:
            tokens = block(tokens)
        values = last.ls_1(value_path(last.attn, last.ln_1(tokens)))
        features = visual.ln_post(values) @ visual.proj
        return features[0, 1:].unflatten(0, (planes.shape[-2] // self.patch[0], -1)).float().cpu()

    @torch.no_grad()
    def embed_masks(self, image: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Crops of boolean [H, W] masks to embeddings [M, F] of unit length."""
        crops = [crop(image, mask, self.native[0]) for mask in masks]
        if not crops:
            return torch.zeros(0, self.dim)
        batches = torch.cat(crops).split(_CROPS)
        return torch.cat([F.normalize(self.pooled(self.preprocess(b)), dim=-1) for b in batches])

    @torch.no_grad()
    def pooled(self, planes: Tensor) -> Tensor:
        """Preprocessed [B, 3, h, w] to CLIP's own image embeddings [B, F], float32 on the CPU."""
        return self.model.encode_image(planes.to(self.device)).float().cpu()

    def preprocess(self, planes: Tensor) -> Tensor:
        """Planes in 0..1, normalised as the network was trained."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.model.visual.image_mean, self.model.visual.image_std))
        return (planes - mean) / std

    def _mask_source(self) -> Any:
        """SAM where weights were given, else segments."""
        if self._masks is None:
            if self.masks_config is not None:
                from featuresplat.teachers.sam import Teacher as Sam

                self._masks = Sam(TeacherConfig(name="sam", path=self.masks_config), self.device)
            else:
                from featuresplat.teachers._segments import SegmentMasks

                self._masks = SegmentMasks()
        return self._masks


class TextSide:
    """CLIP's text tower with its tokenizer. The file of weights holds both towers, so both are loaded."""

    canonical = CANONICAL
    about = ABOUT

    def __init__(self, model_name: str, path: Any = None, device: str | torch.device = "cpu"):
        open_clip = need("open_clip", "clip")
        architecture, _, tag = model_name.partition("/")
        if architecture not in open_clip.list_models():
            raise FeaturesplatError(
                f"teacher 'clip': open_clip knows no model '{architecture}'",
                f"Write ARCHITECTURE/WEIGHTS, e.g. {DEFAULT_MODEL}.",
            )
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if path is None and tag not in tags:
            raise FeaturesplatError(
                f"teacher 'clip': open_clip has no weights '{tag}' for {architecture}", f"Known: {', '.join(tags)}."
            )
        self.model_name, self.device = model_name, torch.device(device)
        self.model = load_weights(
            "clip",
            f"CLIP {model_name}",
            lambda: open_clip.create_model(architecture, pretrained=str(path or tag), device=device),
            path,
        ).eval()
        self.tokenizer = open_clip.get_tokenizer(architecture)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, F] of unit length."""
        return F.normalize(self.model.encode_text(self.tokenizer(list(phrases)).to(self.device)).float().cpu(), dim=-1)


def text_side(settings: dict[str, Any]) -> TextSide:
    """The text tower of a finished field.

    Raises:
        FeaturesplatError: as `Teacher`.
    """
    from pathlib import Path

    weights = settings.get("weights")
    return TextSide(str(settings.get("model") or DEFAULT_MODEL), Path(weights) if weights else None)


def value_path(attention: torch.nn.MultiheadAttention, tokens: Tensor) -> Tensor:
    """What an attention layer gives when every token attends to itself alone: its value, projected.

    [B, L, E] to [B, L, E]; heads need no care, because the projection follows all of them.
    """
    width = attention.embed_dim
    values = F.linear(tokens, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    return attention.out_proj(values)


def _model_name(config: TeacherConfig) -> str:
    name = config.model or DEFAULT_MODEL
    if "/" in name or config.path is not None:
        return name
    raise FeaturesplatError(
        f"teacher 'clip': model: expected ARCHITECTURE/WEIGHTS, got '{name}'", f"For example {DEFAULT_MODEL}."
    )
