"""Teacher `lseg`: language-driven segmentation (LSeg, Li et al. 2022): 512 channels that CLIP ViT-B/32's text answers.

Our own dense prediction transformer loads the published checkpoint (``demo_e200.ckpt``, clip_vitl16_384), which holds
CLIP's text tower too. There is no download: the file lies on a drive that asks for a browser. It is a Lightning
pickle; where torch's reader of bare tensors refuses it, convert it once, where its origin is trusted:

    state = torch.load("demo_e200.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, "lseg.safetensors")

and give either file with ``--teacher.path``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers._dpt import DensePredictor, Shape
from featuresplat.teachers._weights import OFFLINE_HINT, load_weights, need, read_state
from featuresplat.teachers._windows import along_edges, check_image, fitted, resized

ABOUT = "LSeg: knows everyday categories well (furniture, vehicles, food); names of rare things it mixes up."
TEXT_MODEL = "ViT-B-32-quickgelu"
_LONGEST = 480
_PREFIX, _TEXT_PREFIX = "net.", "clip_pretrained."
_UNUSED = ("pretrained.model.head.", "clip_pretrained.visual.", "scratch.head_block.", "scratch.output_conv.")
SHAPES = {"": Shape(), "clip_vitl16_384": Shape()}
"""Variants by name; tests add a small one."""


class Teacher:
    """LSeg's image side, with CLIP's text tower.

    Raises:
        FeaturesplatError: no file of weights was given, it is another network's, or a package is missing.
    """

    name = "lseg"
    canonical: tuple[str, ...] = ()
    about = ABOUT

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        if config.model not in SHAPES:
            raise FeaturesplatError(
                f"teacher 'lseg': there is no variant '{config.model}'", f"Known: {', '.join(k for k in SHAPES if k)}."
            )
        image_state, text_state = split_state(_read(config.path))
        self.model = DensePredictor(SHAPES[config.model])
        load_weights("lseg", "LSeg", lambda: self.model.load_state_dict(image_state), config.path)
        self.model.to(device).eval()
        self.text = TextSide(text_state, config.path, device)
        self.device, self.dim, self.longest = torch.device(device), SHAPES[config.model].out, config.size or _LONGEST
        self.edges = config.edges
        self.settings: dict[str, Any] = {
            "model": config.model or "clip_vitl16_384",
            "weights": str(config.path),
            "size": self.longest,
            "edges": self.edges,
            "version": 1,
        }

    @torch.no_grad()
    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] in 0..1 to [h, w, 512] of unit length, four pixels of the size it is seen at a cell.

        The network's own output is twice as fine, and smooth; its unit vectors are averaged by fours, so that maps
        of many photographs stay small.
        """
        image = check_image(image)
        planes = resized(image, *fitted(image, self.longest, 32)) * 2 - 1
        features = F.normalize(self.model(planes.to(self.device)), dim=1)
        grid = F.normalize(F.avg_pool2d(features, 2), dim=1)[0].permute(1, 2, 0).float().cpu().contiguous()
        return F.normalize(along_edges(grid, image, self.edges), dim=-1)

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, 512] of unit length."""
        return self.text.encode_text(phrases)


class TextSide:
    """The text tower of CLIP ViT-B/32 from LSeg's checkpoint."""

    canonical: tuple[str, ...] = ()
    about = ABOUT

    def __init__(self, state: dict[str, Tensor], path: Path | None, device: str | torch.device = "cpu"):
        open_clip = need("open_clip", "lseg")
        self.device = torch.device(device)
        self.model: Any = load_weights("lseg", "CLIP's text tower", lambda: _text_tower(open_clip, state), path)
        self.model.to(device).eval()
        self.tokenizer = open_clip.get_tokenizer(TEXT_MODEL)

    @torch.no_grad()
    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, 512] of unit length."""
        tokens = self.tokenizer(list(phrases)).to(self.device)
        return F.normalize(self.model.encode_text(tokens).float().cpu(), dim=-1)


def text_side(settings: dict[str, Any]) -> TextSide:
    """The text tower of a finished field.

    Raises:
        FeaturesplatError: as `Teacher`.
    """
    path = Path(str(settings.get("weights", "")))
    return TextSide(split_state(_read(path))[1], path)


def split_state(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint's tensors: those of the image side, and those of CLIP's text tower, under their own names."""
    plain = {k.removeprefix(_PREFIX): v.float() for k, v in state.items() if v.is_floating_point() or v.ndim == 0}
    plain = {k: v for k, v in plain.items() if not k.startswith(_UNUSED)}
    image = {k: v for k, v in plain.items() if k.startswith(("pretrained.", "scratch."))}
    text = {k.removeprefix(_TEXT_PREFIX): v for k, v in plain.items() if k.startswith(_TEXT_PREFIX)}
    return image, text


def _read(path: Path | None) -> dict[str, Tensor]:
    if path is None:
        raise FeaturesplatError(
            "teacher 'lseg': expected its file of weights, got none",
            f"Download LSeg's demo_e200.ckpt by a browser and give it with --teacher.path; {OFFLINE_HINT}.",
        )
    if not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such file of weights", "Check --teacher.path.")
    return read_state(path)


def _text_tower(open_clip: Any, state: dict[str, Tensor]) -> torch.nn.Module:
    """open_clip's ViT-B/32 without its image tower; the names of OpenAI's CLIP are its own."""
    model = open_clip.create_model(TEXT_MODEL, pretrained=None)
    del model.visual
    model.load_state_dict(state)
    return model
