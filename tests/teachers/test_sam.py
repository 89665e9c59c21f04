"""Teacher `sam` against segment_anything itself, with small random weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import MaskTeacher, make_teacher, text_side

SIZES = [(96, 128), (128, 96), (64, 64), (90, 128), (128, 50)]  # the last two end inside a patch


@pytest.fixture(scope="module")
def teacher(tiny):
    return make_teacher("sam", tiny("sam"))


@pytest.fixture(scope="module")
def predictor(teacher):
    from segment_anything import SamPredictor

    return SamPredictor(teacher.sam)


def shown(picture, height, width):
    """A picture of whole bytes, so that the original package sees the same."""
    return (picture(height, width) * 255).round() / 255


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_neck_is_the_predictors(teacher, predictor, picture, height, width):
    image = shown(picture, height, width)
    predictor.set_image((image * 255).round().to(torch.uint8).numpy(), image_format="RGB")
    expected = predictor.get_image_embedding()[0].permute(1, 2, 0)
    torch.testing.assert_close(teacher.neck(image), expected, rtol=0, atol=0)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("prompt", ["point", "points", "box"])
def test_mask_logits_are_the_predictors(teacher, predictor, picture, height, width, prompt):
    image = shown(picture, height, width)
    predictor.set_image((image * 255).round().to(torch.uint8).numpy())
    points = np.array([[20.5, 31.0], [40.0, 12.5]])[: 1 if prompt == "point" else 2]
    labels = np.array([1, 0])[: len(points)]
    box = np.array([5.0, 6.0, 41.0, 44.0]) if prompt == "box" else None
    if box is not None:
        points, labels = None, None
    expected, scores, _ = predictor.predict(points, labels, box, multimask_output=prompt == "point", return_logits=True)
    logits, ours = teacher.logits(
        teacher.neck(image),
        (height, width),
        None if points is None else torch.from_numpy(points),
        None if labels is None else torch.from_numpy(labels),
        None if box is None else torch.from_numpy(box),
    )
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, torch.from_numpy(scores), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(96, 128, (6, 8)), (128, 96, (8, 6)), (300, 400, (6, 8)), (90, 128, (6, 8))]
)
def test_the_padding_is_cut_off(teacher, picture, height, width, cells):
    features = teacher.encode_image(picture(height, width))
    assert features.shape == (*cells, 32)
    if teacher.input_size((height, width)) == (cells[0] * 16, cells[1] * 16):
        torch.testing.assert_close(features, teacher.neck(picture(height, width))[: cells[0], : cells[1]])


def test_cutting_and_padding_undo_each_other(teacher):
    neck = torch.rand(8, 8, 32, generator=torch.Generator().manual_seed(0))
    padded = teacher.pad(teacher.cut(neck, (96, 128)), (96, 128))
    torch.testing.assert_close(padded[:6], neck[:6], rtol=0, atol=0)
    assert not padded[6:].any()
    # A side that ends inside a patch is resampled; linear ramps survive that, but for the last cell.
    ramp = torch.arange(8.0)[:, None, None].expand(8, 8, 32).contiguous()
    back = teacher.pad(teacher.cut(ramp, (90, 128)), (90, 128))
    torch.testing.assert_close(back[1:5], ramp[1:5], rtol=0, atol=0.02)


def test_a_map_of_any_size_answers_a_prompt(teacher, picture):
    features = teacher.encode_image(picture(96, 128))
    coarse = teacher.predict(features, (96, 128), torch.tensor([[30.0, 40.0]]), torch.tensor([1]))
    assert coarse.shape == (96, 128)
    assert bool(((coarse >= 0) & (coarse <= 1)).all())
    fine = torch.nn.functional.interpolate(features.permute(2, 0, 1)[None], (48, 64), mode="nearest")[0]
    rendered = teacher.predict(fine.permute(1, 2, 0), (96, 128), torch.tensor([[30.0, 40.0]]), torch.tensor([1]))
    torch.testing.assert_close(rendered, coarse, atol=1e-4, rtol=0)


def test_a_prompt_needs_points_or_a_box(teacher, picture):
    with pytest.raises(FeaturesplatError, match="points or a box"):
        teacher.predict(teacher.encode_image(picture(64, 64)), (64, 64))


def test_automatic_masks_are_boolean_and_sorted(teacher, picture, monkeypatch):
    import segment_anything.automatic_mask_generator as automatic

    asked = {}

    class Generator:
        def __init__(self, model, **settings):
            asked.update(settings)

        def generate(self, pixels):
            assert pixels.shape == (40, 60, 3)
            assert pixels.dtype == np.uint8
            small, large = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
            small[:11, :11], large[:30, :30] = True, True
            speck = np.zeros((40, 60), bool)
            speck[0, 0] = True
            return [{"segmentation": m, "area": int(m.sum())} for m in (small, large, speck)]

    monkeypatch.setattr(automatic, "SamAutomaticMaskGenerator", Generator)
    masks = teacher.masks(picture(40, 60))
    assert isinstance(teacher, MaskTeacher)
    assert [int(m.sum()) for m in masks] == [900, 121]
    assert asked["points_per_side"] == 32
    assert (asked["pred_iou_thresh"], asked["stability_score_thresh"], asked["crop_n_layers"]) == (0.7, 0.85, 1)


def test_the_original_generator_runs_on_it(teacher, picture):
    """The whole path once, whatever random weights find."""
    from segment_anything import SamAutomaticMaskGenerator

    found = SamAutomaticMaskGenerator(teacher.sam, points_per_side=2, pred_iou_thresh=-9, stability_score_thresh=-9)
    assert isinstance(found.generate((picture(40, 60) * 255).to(torch.uint8).numpy()), list)


def test_no_text(teacher):
    with pytest.raises(FeaturesplatError, match="text cannot ask"):
        text_side("sam", teacher.settings)


def test_variants_and_weights_that_do_not_exist(tiny, tmp_path, monkeypatch):
    tiny("sam")
    with pytest.raises(FeaturesplatError, match="no variant 'vit_x'"):
        make_teacher("sam", TeacherConfig(model="vit_x"))
    with pytest.raises(FeaturesplatError, match="no such file"):
        make_teacher("sam", TeacherConfig(path=tmp_path / "none.pth"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(FeaturesplatError, match="no weights of SAM"):
        make_teacher("sam", TeacherConfig(path=tmp_path / "other.pth"))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(FeaturesplatError, match="could not be downloaded") as caught:
        make_teacher("sam", TeacherConfig(model="tiny"))
    assert "offline" in caught.value.hint
