"""What every teacher keeps, of ours and from outside: one set of tests over all that are registered.

A teacher from outside whose weights are not here is skipped, unless its module has ``for_tests() -> Teacher``.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from featuresplat import registry
from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import MaskTeacher, make_teacher, text_side

SMALL = ("clip", "sam", "dino", "lseg")
"""Teachers that get a small random network."""


@pytest.fixture(scope="module", params=registry.names("teachers"))
def teacher(request, tiny, tmp_path_factory):
    name = request.param
    module = registry.load("teachers", name)
    if hasattr(module, "for_tests"):
        return module.for_tests()
    if name in SMALL:
        return make_teacher(name, tiny(name))
    if name == "precomputed":
        folder = tmp_path_factory.mktemp("maps")
        (folder / "teacher.json").write_text(json.dumps({"name": "noise", "dim": 4, "phrases": {"a mug": 0}}))
        np.save(folder / "text.npy", np.eye(4, dtype=np.float32))
        np.save(folder / "photo.npy", np.ones((3, 4, 4), np.float16))
        return make_teacher(name, TeacherConfig(path=folder))
    if name == "offline":  # as it is, but for a size that takes a tenth of the time
        made = TeacherConfig(name=name, size=320)
    else:
        made = None
    try:
        return make_teacher(name, made)
    except FeaturesplatError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (33, 47)])
def test_a_map_is_finite_and_as_deep_as_promised(teacher, picture, height, width):
    features = teacher.encode_image(picture(height, width), name="photo.jpg")
    assert features.ndim == 3
    assert features.shape[2] == teacher.dim
    assert min(features.shape) > 0
    assert features.dtype == torch.float32
    assert features.device.type == "cpu"
    assert not features.requires_grad
    assert bool(features.isfinite().all())
    assert float(features.abs().max()) < 65504  # the cache keeps half floats


def test_the_same_image_gives_the_same_map(teacher, picture):
    image = picture(48, 64)
    before = image.clone()
    first, second = (teacher.encode_image(image, name="photo.jpg") for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(image, before, rtol=0, atol=0)


def test_name_and_settings_are_plain(teacher):
    assert teacher.name in registry.names("teachers")
    assert isinstance(teacher.dim, int)
    assert json.loads(json.dumps(teacher.settings)) == teacher.settings


def test_text_lives_in_the_space_of_the_maps(teacher):
    if not hasattr(teacher, "encode_text"):
        pytest.skip(f"'{teacher.name}' does not answer text")
    phrases = ["a mug"] if teacher.name == "precomputed" else ["a mug", "a dog", *teacher.canonical]
    vectors = teacher.encode_text(phrases)
    assert vectors.shape == (len(phrases), teacher.dim)
    assert bool(vectors.isfinite().all())
    assert float(vectors.norm(dim=1).min()) > 0.5
    assert isinstance(teacher.about, str)
    assert len(teacher.about) > 20
    assert isinstance(teacher.canonical, tuple)


def test_a_finished_run_gets_the_same_answer_from_the_settings(teacher):
    if not hasattr(teacher, "encode_text"):
        with pytest.raises(FeaturesplatError, match="text cannot ask"):
            text_side(teacher.name, teacher.settings)
        return
    side = text_side(teacher.name, json.loads(json.dumps(teacher.settings)))
    torch.testing.assert_close(side.encode_text(["a mug"]), teacher.encode_text(["a mug"]), rtol=0, atol=0)
    assert side.canonical == teacher.canonical
    assert side.about == teacher.about


def test_images_that_are_none_are_refused(teacher, picture):
    if teacher.name == "precomputed":
        pytest.skip("looks at no pixels")
    for image in (
        picture(48, 64)[..., :2],
        (picture(48, 64) * 255).to(torch.uint8),
        torch.full((48, 64, 3), torch.nan),
        torch.zeros(0, 64, 3),
    ):
        with pytest.raises(FeaturesplatError, match="image"):
            teacher.encode_image(image, name="photo.jpg")


def test_masks_are_boolean_and_of_the_images_size(teacher, picture, monkeypatch):
    if not isinstance(teacher, MaskTeacher):
        pytest.skip(f"'{teacher.name}' makes no masks")
    if teacher.name == "sam":  # 32 x 32 points take a minute even with a small network
        import segment_anything.automatic_mask_generator as automatic

        whole = automatic.SamAutomaticMaskGenerator

        def few(model, **settings):
            return whole(model, **{**settings, "points_per_side": 2, "crop_n_layers": 0})

        monkeypatch.setattr(automatic, "SamAutomaticMaskGenerator", few)
    for mask in teacher.masks(picture(48, 64)):
        assert mask.shape == (48, 64)
        assert mask.dtype == torch.bool


def test_an_unknown_teacher_names_the_nearest():
    with pytest.raises(FeaturesplatError, match="none called 'clipp'") as caught:
        make_teacher("clipp")
    assert "clip" in caught.value.hint
