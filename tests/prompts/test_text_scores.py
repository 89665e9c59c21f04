"""Scores of phrases: the formula by hand, per Gaussian and per pixel, and what cannot be asked."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from table_scene import NAMES, iou, true_mask
from torch.nn.functional import normalize

from featuresplat import teachers
from featuresplat.decoders import Decoder, LinearDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import text
from featuresplat.types import FeatureField, TextTable


def one_field(scene, codes, phrases, vectors, **more):
    n = len(scene.gaussians)
    field = FeatureField(codes.repeat(n, 1)[:n], "precomputed", text=TextTable(phrases, vectors), **more)
    return replace(scene, fields={"f": field})


PLANE = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])


def test_the_score_by_hand_in_a_closed_vocabulary(world):
    """Feature (0.8, 0.6), labels a = (1,0), b = (0,1), c = (0.6,0.8): cosines 0.8, 0.6, 0.96."""
    scene = one_field(world[0], torch.tensor([[0.8, 0.6]]), ("a", "b", "c"), PLANE)
    found = text.score(scene, ["a", "b", "c"])[:, 0]
    expected = [1 / (1 + math.exp(-10 * d)) for d in (0.8 - 0.96, 0.6 - 0.96, 0.96 - 0.8)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert text.ask(scene, "a").closed


def test_the_score_is_lerfs_relevancy_with_canonical_phrases(world):
    """min over c of exp(10 q) / (exp(10 q) + exp(10 c)), Kerr et al. 2023."""
    g = torch.Generator().manual_seed(3)
    phrases = ("mug", *teachers.CANONICAL)
    vectors = normalize(torch.randn(5, 6, generator=g), dim=1)
    codes = torch.randn(40, 6, generator=g)
    scene = world[0].rows(torch.arange(40))
    scene = replace(scene, fields={"f": FeatureField(codes, "precomputed", text=TextTable(phrases, vectors))})
    query = text.ask(scene, "mug")
    assert not query.closed
    cosines = normalize(codes, dim=1) @ vectors.T
    e = (10 * cosines).exp()
    expected = (e[:, :1] / (e[:, :1] + e[:, 1:])).amin(1)
    assert torch.allclose(query.gaussians(scene)[0], expected, atol=1e-6)


def test_more_has_to_be_beaten_by_negatives_and_by_each_other(world):
    scene = world[0].rows(torch.arange(1))
    phrases = ("q", "r", *teachers.CANONICAL)
    vectors = normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.4, 0], *[[0.0, 0, 1]] * 4]), dim=1)
    field = FeatureField(torch.tensor([[0.8, 0.6, 0.0]]), "precomputed", text=TextTable(phrases, vectors))
    scene = replace(scene, fields={"f": field})
    alone = text.score(scene, ["q", "r"])[:, 0]
    assert bool((alone > 0.99).all())
    assert float(text.score(scene, "q", negatives=["r"])[0, 0]) < 0.5
    together = text.ask(scene, ["q", "r"], compete=True).gaussians(scene)[:, 0]
    assert together[0] < 0.5 < together[1]
    # What is asked twice need not beat itself.
    assert torch.allclose(text.ask(scene, ["q", "Q"], compete=True).gaussians(scene)[:, 0], alone[0])


def test_above_half_is_best_of_all_in_a_closed_vocabulary(asked):
    query = text.ask(asked, NAMES[1:])
    scores = query.gaussians(asked)
    field = asked.fields["truth"]
    best = (normalize(field.codes, dim=1) @ normalize(field.text.vectors, dim=1).T).argmax(1) - 1
    assert torch.equal(query.masks(scores).float().argmax(0), best)
    assert bool((query.masks(scores).sum(0) == 1).all())


def test_the_background_is_a_label_that_wins_where_it_is_best(world):
    scene = one_field(world[0], torch.tensor([[1.0, 0.0]]), ("background", "b", "c"), PLANE)
    assert not bool(text.ask(scene, "b").masks(text.score(scene, "b")).any())
    assert text.labels_of(scene) == ("b", "c")
    assert bool((text.score(scene, "background") > 0.5).all())


def test_case_spaces_and_underscores_do_not_matter(asked):
    assert torch.equal(text.score(asked, "Red  Ball"), text.score(asked, "red_ball"))


@pytest.mark.parametrize("label", range(2, len(NAMES)))
def test_masks_of_a_view_are_the_objects(world, asked, label):
    scene, labels = world
    query = text.ask(asked, NAMES[label])
    for i in (0, 5):
        camera = scene.cameras[i]
        truth = true_mask(scene, labels, camera, label)
        scores = query.view(asked, camera)
        assert scores.shape == (1, camera.height, camera.width)
        assert iou(query.masks(scores)[0], truth) > 0.9
        y, x = divmod(int(scores[0].argmax()), camera.width)
        assert bool(truth[y, x])


def test_nothing_scores_nothing(asked):
    empty = replace(asked, gaussians=replace(asked.gaussians, means=asked.gaussians.means + 1000))
    assert float(text.score_view(empty, asked.cameras[0], "table").max()) == 0
    zero = replace(asked.fields["truth"], codes=torch.zeros_like(asked.fields["truth"].codes))
    assert float(text.score(replace(asked, fields={"truth": zero}), "table").max()) == 0


def linear_pair(asked):
    """Two fields that decode to the same features: by a matrix, and by a decoder that does not say it is linear."""
    field = asked.fields["truth"]
    g = torch.Generator().manual_seed(5)
    codes = torch.randn(len(field.codes), 3, generator=g).abs()
    decoder = LinearDecoder(3, field.out_dim)
    with torch.no_grad():
        for p in decoder.parameters():
            p.copy_(torch.randn(p.shape, generator=g))

    class Opaque(Decoder):
        kind = "mlp"

        def __init__(self):
            super().__init__(3, field.out_dim)
            self.inner = decoder

        def forward(self, x):
            return self.inner(x)

    return [replace(field, codes=codes, decoder=d) for d in (decoder, Opaque())]


def test_projecting_before_splatting_ranks_as_decoding_each_pixel_does(asked):
    """The winner of a closed vocabulary does not depend on the length of a feature, so both ways agree on it."""
    fast, slow = (replace(asked, fields={"truth": f}) for f in linear_pair(asked))
    assert fast.fields["truth"].project(torch.eye(8)) is not None
    assert slow.fields["truth"].project(torch.eye(8)) is None
    camera = asked.cameras[3]
    a = text.score_view(fast, camera, NAMES)
    b = text.score_view(slow, camera, NAMES)
    seen = a.amax(0) > 0
    clear = (a.amax(0) - 0.5).abs() > 0.02
    assert float(clear.float().mean()) > 0.3
    assert torch.equal(a.argmax(0)[seen & clear], b.argmax(0)[seen & clear])
    assert torch.allclose(text.score(fast, NAMES), text.score(slow, NAMES), atol=1e-4)


def test_relevancy_masks_by_hand():
    """One bright square on nothing: the mean over 30 x 30 hardly counts, and what is over 0.7 of the way up is in."""
    scores = torch.full((1, 60, 80), 0.1)
    scores[0, 20:40, 30:50] = 0.9
    found = text.relevancy_masks(scores)[0]
    assert bool(found[22:38, 32:48].all())
    assert not bool(found[:10].any() or found[50:].any())
    flat = text.relevancy_masks(torch.full((2, 40, 40), 0.3))
    assert not bool(flat.any())


def test_the_mean_over_a_window_is_scipys():
    from scipy.ndimage import uniform_filter

    scores = torch.rand(2, 50, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner = (slice(None), slice(20, -20), slice(20, -20))
    # scipy's even windows reach one further to the left.
    expected = torch.from_numpy(uniform_filter(scores.flip(1, 2).numpy(), (0, 30, 30))).flip(1, 2)
    assert torch.allclose(text._box_mean(scores, 30)[inner], expected[inner])


class Side:
    canonical = teachers.CANONICAL
    about = ""

    def __init__(self):
        self.calls = 0

    def encode_text(self, phrases):
        self.calls += 1
        return torch.stack([torch.tensor([float(len(p)), 1.0, 2.0]) for p in phrases])


@pytest.fixture
def side(monkeypatch):
    """A teacher of the name clip whose text side is not CLIP."""
    found = Side()
    monkeypatch.setattr(text, "_side", lambda teacher, settings: found)
    text._encode.cache_clear()
    yield found
    text._encode.cache_clear()


def test_a_teacher_answers_for_a_field_without_a_table(world, side):
    field = FeatureField(torch.randn(len(world[0].gaussians), 3), "clip", info={"teacher": {"model": "x"}})
    scene = replace(world[0], fields={"clip": field})
    query = text.ask(scene, ["a mug", "things"])
    assert query.contrast.shape == (4, 3)
    assert query.beats.tolist() == [[True] * 4, [True, False, True, True]]
    calls = side.calls
    text.ask(scene, ["a mug", "things"])
    assert side.calls == calls  # phrases are encoded once


def test_a_teacher_without_canonical_phrases_beats_everything_else(world, side):
    side.canonical = ()
    field = FeatureField(torch.randn(len(world[0].gaussians), 3), "lseg")
    query = text.ask(replace(world[0], fields={"lseg": field}), "mug")
    assert query.contrast.shape == (1, 3)
    assert bool(query.beats.all())


def test_a_field_of_other_channels_than_its_teacher_is_told(world, side):
    field = FeatureField(torch.randn(len(world[0].gaussians), 5), "clip")
    with pytest.raises(FeaturesplatError, match="5 channels, but its teacher 'clip' answers text with 3"):
        text.ask(replace(world[0], fields={"clip": field}), "mug")


@pytest.mark.parametrize("phrases", ["", "   ", [], ["table", " "]])
def test_nothing_is_no_prompt(asked, phrases):
    with pytest.raises(FeaturesplatError, match="expected a phrase"):
        text.ask(asked, phrases)


def test_what_cannot_be_asked(world, asked):
    with pytest.raises(FeaturesplatError, match="no feature field"):
        text.ask(world[0], "table")
    with pytest.raises(FeaturesplatError, match="none called 'x'"):
        text.ask(asked, "table", "x")
    with pytest.raises(FeaturesplatError, match="not this one") as caught:
        text.ask(asked, "red bal")
    assert "red ball" in caught.value.hint
    with pytest.raises(FeaturesplatError, match="at most 1000"):
        text.ask(asked, "x" * 10_000)


def test_a_field_without_text_says_so(world):
    mute = FeatureField(torch.randn(len(world[0].gaussians), 4), "sam")
    scene = replace(world[0], fields={"sam": mute})
    assert not text.answers_text(mute)
    with pytest.raises(FeaturesplatError, match="text cannot ask"):
        text.ask(scene, "mug", "sam")
    with pytest.raises(FeaturesplatError, match=r"none of this scene's fields \(sam\)"):
        text.ask(scene, "mug")


def test_maps_that_came_without_phrases_say_so(world):
    mute = FeatureField(torch.randn(len(world[0].gaussians), 4), "precomputed", info={"teacher": {"text": ""}})
    with pytest.raises(FeaturesplatError, match=r"none of this scene's fields \(maps\)"):
        text.ask(replace(world[0], fields={"maps": mute}), "mug")


def test_the_last_field_that_answers_is_asked(world, asked):
    mute = FeatureField(torch.randn(len(world[0].gaussians), 4), "sam")
    both = replace(asked, fields={**asked.fields, "sam": mute})
    assert text.ask(both, "table").field == "truth"
