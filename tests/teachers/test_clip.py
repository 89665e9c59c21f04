"""Teacher `clip` against open_clip itself, with small random weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import make_teacher, text_side


@pytest.fixture(scope="module")
def teacher(tiny):
    return make_teacher("clip", tiny("clip"))


@pytest.fixture(scope="module")
def original(tiny):
    """The same weights through open_clip's own loader."""
    config = tiny("clip")
    import open_clip

    return open_clip.create_model(config.model, pretrained=str(config.path)).eval()


def test_pooled_is_open_clips_encode_image(teacher, original, picture):
    planes = teacher.preprocess(picture(32, 32).permute(2, 0, 1)[None])
    with torch.no_grad():
        expected = original.encode_image(planes)
    torch.testing.assert_close(teacher.pooled(planes), expected, rtol=0, atol=0)


def test_preprocessing_is_open_clips(teacher, original, picture):
    import open_clip
    from PIL import Image

    mean, std = original.visual.image_mean, original.visual.image_std
    preprocess = open_clip.image_transform(32, is_train=False, mean=mean, std=std)
    pixels = (picture(32, 32) * 255).round().to(torch.uint8)
    ours = teacher.preprocess(pixels.permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(ours[0], preprocess(Image.fromarray(pixels.numpy())), rtol=0, atol=1e-6)


def test_dense_is_the_last_block_with_every_patch_attending_to_itself(teacher, original, picture):
    planes = teacher.preprocess(picture(32, 32).permute(2, 0, 1)[None])
    visual = original.visual
    with torch.no_grad():
        tokens = visual._embeds(planes)
        for block in visual.transformer.resblocks[:-1]:
            tokens = block(tokens)
        last = visual.transformer.resblocks[-1]
        alone = torch.full((tokens.shape[1], tokens.shape[1]), -torch.inf).fill_diagonal_(0)
        attended = last.attention(last.ln_1(tokens), attn_mask=alone)
        expected = (visual.ln_post(attended) @ visual.proj)[0, 1:].view(4, 4, -1)
    torch.testing.assert_close(teacher.patch_features(planes), expected, rtol=1e-5, atol=1e-6)


def test_at_the_native_size_there_is_one_window(tiny, picture):
    teacher = make_teacher("clip", replace(tiny("clip"), size=32))
    image = picture(32, 32)
    planes = teacher.preprocess(image.permute(2, 0, 1)[None])
    expected = F.normalize(teacher.patch_features(planes), dim=-1)
    torch.testing.assert_close(teacher.encode_image(image), expected)


@pytest.mark.parametrize(("height", "width", "cells"), [(48, 64, (6, 8)), (64, 48, (8, 6)), (20, 64, (4, 8))])
def test_windows_cover_landscapes_and_portraits(teacher, picture, height, width, cells):
    features = teacher.encode_image(picture(height, width))
    assert features.shape == (*cells, 24)  # patches of 8; never less than one window of 32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(cells))


def test_text_is_open_clips(teacher, original):
    import open_clip

    tokenizer = open_clip.get_tokenizer("tiny-clip")
    with torch.no_grad():
        expected = F.normalize(original.encode_text(tokenizer(["a red mug", "things"])), dim=-1)
    torch.testing.assert_close(teacher.encode_text(["a red mug", "things"]), expected)
    torch.testing.assert_close(text_side("clip", teacher.settings).encode_text(["a red mug", "things"]), expected)


@pytest.mark.parametrize("level", ["whole", "part", "subpart"])
def test_a_mask_gets_the_embedding_of_its_crop(tiny, picture, level):
    teacher = make_teacher("clip", replace(tiny("clip"), level=level))
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:30, 10:30] = True

    class OneMask:
        def masks(self, image):
            return [mask]

    teacher._masks = OneMask()
    image = picture(40, 40)
    features = teacher.encode_image(image)
    on_black = image[10:30, 10:30].permute(2, 0, 1)[None]
    on_black = F.interpolate(on_black, (32, 32), mode="bilinear", antialias=True, align_corners=False)
    expected = F.normalize(teacher.pooled(teacher.preprocess(on_black))[0], dim=0)
    assert features.shape == (20, 20, 24)
    torch.testing.assert_close(features[5:15, 5:15], expected.expand(10, 10, -1))
    assert (features[:5] - expected).abs().amax(-1).min() > 1e-3  # outside the mask: dense


def test_without_weights_one_sentence_says_what_runs_offline(tiny, monkeypatch):
    tiny("clip")
    import open_clip

    def no_network(*args, **kwargs):
        raise OSError("could not reach the hub")

    monkeypatch.setattr(open_clip, "create_model", no_network)
    with pytest.raises(FeaturesplatError, match="could not be downloaded") as caught:
        make_teacher("clip")
    assert "--teacher.path" in caught.value.hint
    assert "offline" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TeacherConfig(model="ViT-B-16"), "expected ARCHITECTURE/WEIGHTS"),
        (TeacherConfig(model="ViT-Z-99/openai"), "knows no model 'ViT-Z-99'"),
        (TeacherConfig(model="ViT-B-16/nobody"), "no weights 'nobody'"),
        (TeacherConfig(model="RN50/openai", path=None), "no plain vision transformer"),
    ],
)
def test_models_that_do_not_exist_are_named(tiny, monkeypatch, config, message):
    tiny("clip")
    import open_clip

    if config.model.startswith("RN50"):
        plain = open_clip.create_model
        monkeypatch.setattr(open_clip, "create_model", lambda name, **k: plain("RN50"))
    with pytest.raises(FeaturesplatError, match=message):
        make_teacher("clip", config)


def test_a_file_of_other_weights_is_refused(tiny, tmp_path):
    config = tiny("clip")
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not weights")
    with pytest.raises(FeaturesplatError, match=r"wrong\.safetensors"):
        make_teacher("clip", replace(config, path=wrong))
    with pytest.raises(FeaturesplatError, match="no such file"):
        make_teacher("clip", replace(config, path=tmp_path / "missing.safetensors"))
