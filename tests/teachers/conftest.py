"""Small networks of the original packages with seeded random weights, saved to files that the teachers then load."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision_stand_in import ensure_torchvision

from featuresplat.config_fields import TeacherConfig

PACKAGES = {"clip": "open_clip", "sam": "segment_anything", "dino": "timm", "lseg": "timm"}


@pytest.fixture(scope="session")
def picture() -> Callable[..., Tensor]:
    """``picture(height, width, seed=0)``: smooth random colours [H, W, 3] in 0..1."""

    def make(height: int, width: int, seed: int = 0) -> Tensor:
        coarse = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(seed))
        return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)

    return make


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], TeacherConfig]]:
    """``tiny("clip")``: the configuration of a teacher with a small network; skips where its package is missing."""
    folder = tmp_path_factory.mktemp("weights")
    made: dict[str, TeacherConfig] = {}
    with pytest.MonkeyPatch.context() as patch:

        def config(name: str) -> TeacherConfig:
            if importlib.util.find_spec(PACKAGES[name]) is None or importlib.util.find_spec("open_clip") is None:
                pytest.skip(f"the package {PACKAGES[name]} is not installed")
            if name not in made:
                ensure_torchvision()
                torch.manual_seed(1)
                made[name] = {"clip": _clip, "sam": _sam, "dino": _dino, "lseg": _lseg}[name](folder, patch)
            return made[name]

        yield config


def _clip(folder: Path, patch: pytest.MonkeyPatch) -> TeacherConfig:
    import open_clip

    architecture = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "tiny-clip.json").write_text(json.dumps(architecture))
    open_clip.add_model_config(folder / "tiny-clip.json")
    _save(open_clip.create_model("tiny-clip"), folder / "clip.safetensors")
    return TeacherConfig(name="clip", model="tiny-clip", path=folder / "clip.safetensors", size=64)


def _sam(folder: Path, patch: pytest.MonkeyPatch) -> TeacherConfig:
    import segment_anything
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    side, cells, channels = 128, 8, 32

    def build(checkpoint=None) -> Sam:
        encoder = ImageEncoderViT(
            img_size=side,
            patch_size=16,
            embed_dim=24,
            depth=2,
            num_heads=2,
            out_chans=channels,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=3,
            global_attn_indexes=(1,),
        )
        prompts = PromptEncoder(
            embed_dim=channels,
            image_embedding_size=(cells, cells),
            input_image_size=(side, side),
            mask_in_chans=4,
        )
        transformer = TwoWayTransformer(depth=1, embedding_dim=channels, mlp_dim=32, num_heads=2)
        decoder = MaskDecoder(transformer_dim=channels, transformer=transformer, iou_head_hidden_dim=16)
        return Sam(encoder, prompts, decoder)

    patch.setitem(segment_anything.sam_model_registry, "tiny", build)
    _save(build(), folder / "sam.safetensors")
    return TeacherConfig(name="sam", model="tiny", path=folder / "sam.safetensors")


def _dino(folder: Path, patch: pytest.MonkeyPatch) -> TeacherConfig:
    import timm

    _save(timm.create_model("test_vit", num_classes=0, dynamic_img_size=True), folder / "dino.safetensors")
    return TeacherConfig(name="dino", model="test_vit", path=folder / "dino.safetensors", size=160)


def _lseg(folder: Path, patch: pytest.MonkeyPatch) -> TeacherConfig:
    import open_clip

    from featuresplat.teachers import lseg
    from featuresplat.teachers._dpt import DensePredictor, Shape

    shape = Shape(backbone="test_vit", width=64, stages=(8, 12, 16, 20), taps=(1, 2, 3, 5), features=8, out=24)
    patch.setitem(lseg.SHAPES, "tiny", shape)
    patch.setattr(lseg, "TEXT_MODEL", "tiny-clip")
    _clip(folder, patch)
    state = {"net." + k: v for k, v in _shaken(DensePredictor(shape)).items()}
    text = open_clip.create_model("tiny-clip")
    # As in the published file: CLIP whole, in half precision, and the transformer's head that nobody uses.
    state |= {"net.clip_pretrained." + k: v.half() for k, v in text.state_dict().items()}
    state["net.pretrained.model.head.weight"] = torch.zeros(10, 64)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "lseg.safetensors")
    return TeacherConfig(name="lseg", model="tiny", path=folder / "lseg.safetensors", size=96)


def _save(model: torch.nn.Module, path: Path) -> None:
    save_file(_shaken(model), path)


def _shaken(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state with noise on it: what starts at zero or one would hide that a part is never used."""
    state = model.state_dict()
    for name, value in state.items():
        if value.is_floating_point():
            noise = torch.randn(value.shape) * 0.05
            state[name] = (value + (noise.abs() if name.endswith("running_var") else noise)).contiguous()
    return {name: value.clone() for name, value in state.items()}
