"""Teacher `sam`: Segment Anything's image embedding (the neck, 256 channels), its masks, and its decoder.

The photograph goes in as RGB, its longer side at 1024, padded below or to the right; of the neck's 64 x 64 cells the
padding is cut off, for portraits as for landscapes. Text cannot ask for these features: points and boxes can,
through `Teacher.predict`, which runs SAM's decoder on a map, of a photograph or rendered from a field.

Weights come from the project's own file server, by name, or from a local file (vit_b, vit_l or vit_h).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._weights import load_weights, need, read_state
from featuresplat.teachers._windows import check_image

DEFAULT_MODEL = "vit_h"
_URL = "https://dl.fbaipublicfiles.com/segment_anything/"
_FILES = {
    "vit_h": "sam_vit_h_4b8939.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_b": "sam_vit_b_01ec64.pth",
}
_WIDTHS = {1280: "vit_h", 1024: "vit_l", 768: "vit_b"}
"""Width of the encoder -> variant, so that a local file need not be named."""


class Teacher:
    """Segment Anything.

    Raises:
        FeaturesplatError: segment_anything or the weights are missing, or the variant is unknown.
    """

    name = "sam"

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        package = need("segment_anything", "sam")
        registry = package.sam_model_registry
        state = None if config.path is None else _local(config.path)
        variant = config.model or (DEFAULT_MODEL if state is None else _variant(state))
        if variant not in registry or variant == "default":
            known = ", ".join(v for v in registry if v != "default")
            raise FeaturesplatError(f"teacher 'sam': there is no variant '{variant}'", f"Known: {known}.")
        self.sam = registry[variant]()
        load_weights(
            "sam", f"SAM {variant}", lambda: self.sam.load_state_dict(state or _download(variant)), config.path
        )
        self.sam.to(device).eval()
        self.device = torch.device(device)
        encoder = self.sam.image_encoder
        self.dim = int(self.sam.prompt_encoder.embed_dim)
        self.side, self.patch = int(encoder.img_size), int(encoder.patch_embed.proj.kernel_size[0])
        self.settings: dict[str, Any] = {
            "model": variant,
            "weights": str(config.path) if config.path else "",
            "version": 1,
        }

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] in 0..1 to the neck without its padding: [64, round(64 W / H), 256] for a portrait."""
        return self.cut(self.neck(image), image.shape[:2])

    @torch.no_grad()
    def neck(self, image: Tensor) -> Tensor:
        """[H, W, 3] in 0..1 to the whole neck [64, 64, 256], padding included, float32 on the CPU."""
        pixels = (check_image(image) * 255).round().to(torch.uint8).numpy()
        height, width = self.input_size(image.shape[:2])
        # The original resizes 8-bit pictures with Pillow; only this reproduces it exactly.
        seen = np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
        planes = torch.from_numpy(seen).permute(2, 0, 1)[None].to(self.device)
        return self.sam.image_encoder(self.sam.preprocess(planes))[0].permute(1, 2, 0).float().cpu()

    def input_size(self, size: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        """Height and width at which the encoder sees a photograph of height and width ``size``."""
        scale = self.side / max(size)
        return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)

    def cut(self, neck: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
        """The whole neck to the part that shows the photograph: its own cells where its sides are whole patches,
        else resampled to whole cells."""
        height, width = (side / self.patch for side in self.input_size(size))
        rows, columns = max(1, round(height)), max(1, round(width))
        if (rows, columns) == (height, width):
            return neck[:rows, :columns].contiguous()
        return _resample(neck, rows, columns, height, width)

    def pad(self, features: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
        """The inverse of `cut`: a map [h, w, 256] of a photograph of ``size`` to the neck, zero in the padding."""
        cells = self.side // self.patch
        height, width = (side / self.patch for side in self.input_size(size))
        tall, wide = math.ceil(height), math.ceil(width)
        if (features.shape[0], features.shape[1]) != (height, width):
            rows, columns = features.shape[:2]
            features = _resample(features, tall, wide, tall * rows / height, wide * columns / width)
        return F.pad(features, (0, 0, 0, cells - wide, 0, cells - tall))

    @torch.no_grad()
    def predict(
        self,
        features: Tensor,
        size: tuple[int, int],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        box: Tensor | None = None,
    ) -> Tensor:
        """SAM's decoder on a map: [H, W] probability that a pixel belongs to what the prompt means.

        Args:
            features: [h, w, 256], as `encode_image` gives it or rendered from a field (any h and w).
            size: height H and width W of the photograph or render.
            points: [P, 2] x and y in pixels of that size, with ``labels`` [P] (1 inside, 0 outside).
            box: [4] x0, y0, x1, y1.

        Raises:
            FeaturesplatError: neither points nor a box.
        """
        logits, scores = self.logits(self.pad(features, size), size, points, labels, box)
        return logits[int(scores.argmax())].sigmoid()

    @torch.no_grad()
    def logits(
        self,
        neck: Tensor,
        size: tuple[int, int],
        points: Tensor | None = None,
        labels: Tensor | None = None,
        box: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The decoder's M candidates on a whole neck [64, 64, 256]: logits [M, H, W] and predicted qualities [M].

        One point is ambiguous, so it gives three candidates; a box or several points give one.
        """
        if points is None and box is None:
            raise FeaturesplatError("prompt: expected points or a box, got neither", "Give at least one point.")
        seen = self.input_size(size)
        scale = torch.tensor([seen[1] / size[1], seen[0] / size[0]], dtype=torch.float64)
        given, several = None, points is None or len(points) > 1 or box is not None
        if points is not None:
            marks = torch.ones(len(points)) if labels is None else labels
            given = (
                (points.double() * scale).float()[None].to(self.device),
                marks.to(self.device, torch.int64)[None],
            )
        corners = None if box is None else (box.double().view(2, 2) * scale).float().view(1, 4).to(self.device)
        sparse, dense = self.sam.prompt_encoder(points=given, boxes=corners, masks=None)
        low, scores = self.sam.mask_decoder(
            image_embeddings=neck.permute(2, 0, 1)[None].to(self.device),
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=not several,
        )
        return self.sam.postprocess_masks(low, seen, size)[0].float().cpu(), scores[0].float().cpu()

    def masks(self, image: Tensor) -> list[Tensor]:
        """[H, W, 3] in 0..1 to boolean [H, W] masks of everything, largest first.

        LangSplat's settings of the automatic generator: 32 points a side, predicted IoU 0.7, stability 0.85, one
        layer of crops, 100 pixels at least.
        """
        automatic = need("segment_anything.automatic_mask_generator", "sam").SamAutomaticMaskGenerator
        generator = automatic(
            self.sam,
            points_per_side=32,
            pred_iou_thresh=0.7,
            stability_score_thresh=0.85,
            crop_n_layers=1,
            crop_n_points_downscale_factor=1,
            min_mask_region_area=0,
        )
        pixels = (check_image(image) * 255).round().to(torch.uint8).numpy()
        found = [torch.from_numpy(m["segmentation"]) for m in generator.generate(pixels) if m["area"] >= 100]
        return sorted(found, key=lambda m: -int(m.sum()))


def _resample(values: Tensor, rows: int, columns: int, height: float, width: float) -> Tensor:
    """The first ``height`` x ``width`` cells (fractions count) of a map [h, w, F], as [rows, columns, F], bilinear."""
    y = (torch.arange(rows) + 0.5) * height / rows / values.shape[0] * 2 - 1
    x = (torch.arange(columns) + 0.5) * width / columns / values.shape[1] * 2 - 1
    grid = torch.stack([x[None].expand(rows, -1), y[:, None].expand(-1, columns)], dim=-1)[None]
    planes = values.float().permute(2, 0, 1)[None]
    out = F.grid_sample(planes, grid.to(planes), mode="bilinear", padding_mode="border", align_corners=False)
    return out[0].permute(1, 2, 0).contiguous()


def _local(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such file of weights", "Check --teacher.path.")
    return read_state(path)


def _variant(state: dict[str, Tensor]) -> str:
    position = state.get("image_encoder.pos_embed")
    width = 0 if position is None else position.shape[-1]
    if width not in _WIDTHS:
        raise FeaturesplatError("teacher 'sam': these are no weights of SAM", "Take vit_b, vit_l or vit_h.")
    return _WIDTHS[width]


def _download(variant: str) -> dict[str, Tensor]:
    return torch.hub.load_state_dict_from_url(
        _URL + _FILES[variant], map_location="cpu", progress=True, weights_only=True
    )
