"""Teacher `lseg`: the published checkpoint's keys, and the published code's numbers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import make_teacher, text_side


@pytest.fixture(scope="module")
def teacher(tiny):
    return make_teacher("lseg", tiny("lseg"))


def published_keys() -> set[str]:
    """Names of the image side's tensors in demo_e200.ckpt, from the published code (lang-seg, bb00b21):
    LSegNet(backbone="clip_vitl16_384", features=256), whose transformer is timm's vit_large_patch16_384."""

    def both(name: str) -> list[str]:
        return [f"{name}.weight", f"{name}.bias"]

    keys = ["pretrained.model.cls_token", "pretrained.model.pos_embed"]
    keys += both("pretrained.model.patch_embed.proj") + both("pretrained.model.norm")
    for i in range(24):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            keys += both(f"pretrained.model.blocks.{i}.{part}")
    for i in (1, 2, 3, 4):
        keys += both(f"pretrained.act_postprocess{i}.0.project.0") + both(f"pretrained.act_postprocess{i}.3")
        keys += [] if i == 3 else both(f"pretrained.act_postprocess{i}.4")
        keys += [f"scratch.layer{i}_rn.weight"] + both(f"scratch.refinenet{i}.out_conv")
        for unit in (1, 2):
            at = f"scratch.refinenet{i}.resConfUnit{unit}"
            for j in (1, 2):
                keys += [f"{at}.conv{j}.weight", *both(f"{at}.bn{j}")]
                keys += [f"{at}.bn{j}.{k}" for k in ("running_mean", "running_var", "num_batches_tracked")]
    return set(keys + both("scratch.head1"))


def test_our_keys_are_the_published_ones(tiny):
    tiny("lseg")
    from featuresplat.teachers._dpt import DensePredictor

    with torch.device("meta"):
        state = DensePredictor().state_dict()
    assert set(state) == published_keys()
    shapes = {
        "pretrained.model.pos_embed": (1, 577, 1024),
        "pretrained.act_postprocess1.4.weight": (256, 256, 4, 4),
        "pretrained.act_postprocess2.4.weight": (512, 512, 2, 2),
        "pretrained.act_postprocess4.4.weight": (1024, 1024, 3, 3),
        "pretrained.act_postprocess3.0.project.0.weight": (1024, 2048),
        "scratch.layer4_rn.weight": (256, 1024, 3, 3),
        "scratch.head1.weight": (512, 256, 1, 1),
    }
    assert {k: tuple(state[k].shape) for k in shapes} == shapes


def by_formula(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that anybody can compute again: sines, around 1 for the weights of norms and for variances."""
    out = {}
    for k, (name, value) in enumerate(sorted(state.items())):
        wave = torch.sin(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + k) * 0.3
        norms = ("norm1.weight", "norm2.weight", "norm.weight", "bn1.weight", "bn2.weight", "running_var")
        wave = wave + 1 if name.endswith(norms) else wave
        out[name] = wave.float().view(value.shape) if value.is_floating_point() else value.clone()
    return out


def test_features_are_the_published_codes(tiny):
    """The numbers were computed by the published code itself (lang-seg, bb00b21) from the same weights and image,
    with timm's test_vit in place of the large transformer."""
    tiny("lseg")
    from featuresplat.teachers._dpt import DensePredictor
    from featuresplat.teachers.lseg import SHAPES

    model = DensePredictor(SHAPES["tiny"])
    model.load_state_dict(by_formula(model.state_dict()))
    image = torch.sin(torch.arange(3 * 64 * 96, dtype=torch.float64) * 0.01).float().view(1, 3, 64, 96)
    with torch.no_grad():
        features = model.eval()(image)
    assert features.shape == (1, 24, 32, 48)
    found = features.flatten()
    expected = torch.tensor([-21.773056, -311.746216, -5834.30957, 368.827271])
    torch.testing.assert_close(found[::9973], expected, rtol=1e-3, atol=0.5)
    assert found.double().mean().item() == pytest.approx(-34.62005895928966, rel=1e-3)
    assert found.double().std().item() == pytest.approx(1477.8268205959257, rel=1e-3)


def test_a_published_file_loads_strictly(teacher, tiny):
    stored = load_file(tiny("lseg").path)
    assert all(k.startswith("net.") for k in stored)
    assert "net.pretrained.model.head.weight" in stored  # an unused head is left out
    loaded = teacher.model.state_dict()
    for name, value in loaded.items():
        torch.testing.assert_close(value, stored["net." + name], rtol=0, atol=0)
    text = teacher.text.model.state_dict()
    torch.testing.assert_close(
        text["text_projection"], stored["net.clip_pretrained.text_projection"].float(), rtol=0, atol=0
    )


def test_a_missing_tensor_is_no_weights_of_lseg(tiny, tmp_path):
    config = tiny("lseg")
    stored = load_file(config.path)
    stored.pop("net.scratch.head1.bias")
    save_file(stored, tmp_path / "short.safetensors")
    with pytest.raises(FeaturesplatError, match=r"short\.safetensors: these are no weights of LSeg"):
        make_teacher("lseg", TeacherConfig(model="tiny", path=tmp_path / "short.safetensors"))


@pytest.mark.parametrize(("height", "width", "cells"), [(64, 96, (16, 24)), (120, 90, (24, 16))])
def test_maps_are_unit_vectors_at_a_quarter_of_what_is_seen(teacher, picture, height, width, cells):
    features = teacher.encode_image(picture(height, width))
    assert features.shape == (*cells, 24)
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(cells))


def test_text_is_clips(teacher, tiny):
    tiny("clip")
    import open_clip

    clip = open_clip.create_model("tiny-clip")
    state = {k.removeprefix("net.clip_pretrained."): v for k, v in load_file(tiny("lseg").path).items()}
    clip.load_state_dict({k: v.float() for k, v in state.items() if not k.startswith("net.")})
    with torch.no_grad():
        tokens = open_clip.get_tokenizer("tiny-clip")(["chair", "other"])
        expected = torch.nn.functional.normalize(clip.eval().encode_text(tokens), dim=-1)
    torch.testing.assert_close(teacher.encode_text(["chair", "other"]), expected)
    torch.testing.assert_close(text_side("lseg", teacher.settings).encode_text(["chair", "other"]), expected)


def test_without_a_file_it_says_which(tiny):
    tiny("lseg")
    with pytest.raises(FeaturesplatError, match="expected its file of weights") as caught:
        make_teacher("lseg")
    assert "demo_e200.ckpt" in caught.value.hint
    assert "offline" in caught.value.hint
    with pytest.raises(FeaturesplatError, match="no variant 'large'"):
        make_teacher("lseg", TeacherConfig(model="large"))


def test_a_pickle_with_code_in_it_is_refused(tiny, tmp_path):
    tiny("lseg")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"state_dict": {}, "callbacks": Bomb()}, tmp_path / "bomb.ckpt")
    with pytest.raises(FeaturesplatError, match="holds more than tensors"):
        make_teacher("lseg", TeacherConfig(path=tmp_path / "bomb.ckpt"))
    assert not (tmp_path / "boom").exists()
