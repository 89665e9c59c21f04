"""Teacher `dino` against timm itself, with small random weights."""

from __future__ import annotations

import pytest
import torch

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import make_teacher


@pytest.fixture(scope="module")
def teacher(tiny):
    return make_teacher("dino", tiny("dino"))


def test_features_are_timms(teacher, tiny, picture):
    import timm

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, dynamic_img_size=True)
    model.load_state_dict(teacher.model.state_dict())
    from timm.data import resolve_model_data_config

    image = picture(160, 160)
    settings = resolve_model_data_config(model)
    mean, std = (torch.tensor(settings[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        tokens = model.eval().forward_features((image.permute(2, 0, 1)[None] - mean) / std)
    expected = tokens[0, model.num_prefix_tokens :].view(10, 10, -1)
    torch.testing.assert_close(teacher.encode_image(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "cells"), [(120, 160, (8, 10)), (320, 240, (10, 8)), (50, 160, (3, 10))])
def test_the_grid_follows_the_photograph(teacher, picture, height, width, cells):
    assert teacher.encode_image(picture(height, width)).shape == (*cells, 64)


def test_features_follow_the_edges_where_asked(tiny, picture):
    from dataclasses import replace

    from featuresplat.teachers._upsample import upsample

    image = picture(120, 160)
    patches = make_teacher("dino", tiny("dino")).encode_image(image)
    fine = make_teacher("dino", replace(tiny("dino"), edges=80)).encode_image(image)
    assert fine.shape == (60, 80, 64)
    torch.testing.assert_close(fine, upsample(patches, image, (60, 80)))


def test_models_that_do_not_fit(tiny, tmp_path, monkeypatch):
    tiny("dino")
    with pytest.raises(FeaturesplatError, match="knows no model 'vit_nothing'"):
        make_teacher("dino", TeacherConfig(model="vit_nothing"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(FeaturesplatError, match=r"other\.pth: these are no weights of test_vit"):
        make_teacher("dino", TeacherConfig(model="test_vit", path=tmp_path / "other.pth"))
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(FeaturesplatError, match="test_resnet"):
        make_teacher("dino", TeacherConfig(model="test_resnet", path=tmp_path / "resnet.pth"))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(FeaturesplatError, match="could not be downloaded"):
        make_teacher("dino")
