"""Sentences and what they are understood as."""

from __future__ import annotations

import math

import pytest
import torch
from sentences import edits, t
from table_scene import make_world

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Duplicate, Extract, Insert, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.language import parse


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("remove the mug", [Remove(t("mug"))]),
        ("Please delete the red mug.", [Remove(t("red mug"))]),
        ("remove the mug and make the duck blue", [Remove(t("mug")), Recolor(t("duck"), color="blue")]),
        (
            "remove the mug and the ball, then delete a frying pan",
            [Remove(t("mug")), Remove(t("ball")), Remove(t("frying pan"))],
        ),
        ("remove the mug and fill the hole", [Remove(t("mug"), fill=True)]),
        ("remove 'salt and pepper'", [Remove(t("salt and pepper"))]),
        ('get rid of "the Mug, old"', [Remove(t("the Mug, old"))]),
        ("keep only the bowl", [Extract(t("bowl"))]),
        ("remove everything except the ball", [Extract(t("ball"))]),
        ("make the mug blue and the duck red", [Recolor(t("mug"), color="blue"), Recolor(t("duck"), color="red")]),
        ("make the small duck dark blue", [Recolor(t("small duck"), color="dark blue")]),
        ("paint the soccer ball in light green", [Recolor(t("soccer ball"), color="light green")]),
        ("recolor the mug to #ff8800", [Recolor(t("mug"), color="#ff8800")]),
        ("change the colour of the teapot to red", [Recolor(t("teapot"), color="red")]),
        ("make the teapot brighter", [Recolor(t("teapot"), lightness=1.4)]),
        ("darken the teapot", [Recolor(t("teapot"), lightness=0.6)]),
        ("make the table more colourful", [Recolor(t("table"), saturation=1.6)]),
        ("shift the hue of the mug by 90 degrees", [Recolor(t("mug"), hue=90.0)]),
        ("make the box twice as large", [Transform(t("box"), scale=2.0)]),
        ("make the cone half as large", [Transform(t("cone"), scale=0.5)]),
        ("make the mug half the size", [Transform(t("mug"), scale=0.5)]),
        ("make the ball 50% smaller", [Transform(t("ball"), scale=0.5)]),
        ("make the ball 20% larger", [Transform(t("ball"), scale=1.2)]),
        ("scale the mug by 1.5", [Transform(t("mug"), scale=1.5)]),
        ("shrink the teapot by 2", [Transform(t("teapot"), scale=0.5)]),
        ("make the mug bigger", [Transform(t("mug"), scale=1.5)]),
        ("make the bowl transparent", [Opacity(t("bowl"), factor=0.25)]),
        ("make the bowl half transparent", [Opacity(t("bowl"), factor=0.5)]),
        ("fade the bowl", [Opacity(t("bowl"), factor=0.25)]),
        ("make the bowl invisible", [Opacity(t("bowl"), factor=0.0)]),
        ("insert runs/Duck/gaussians.ply", [Insert(source="runs/Duck/gaussians.ply")]),
        ("make the mug blue and then remove it", [Recolor(t("mug"), color="blue"), Remove(t("mug"))]),
        ("make everything darker", [Recolor(lightness=0.6)]),
    ],
)
def test_sentences(sentence, expected):
    assert edits(sentence) == pytest.approx(expected)


def test_what_was_said_is_told():
    (plan,) = parse("Remove the mug")
    assert str(plan) == "Remove the mug -> remove 'mug'"


@pytest.fixture(scope="module")
def scene():
    """Cameras on a ring, the first at +x looking to -x, up is +z."""
    return make_world(sh_degree=0, size=(32, 24))[0]


@pytest.mark.parametrize(
    ("sentence", "kind", "expected"),
    [
        ("move the ball up by 0.2", Transform, (0, 0, 0.2)),
        ("move the ball down by 20 cm", Transform, (0, 0, -0.2)),
        ("raise the ball by .3", Transform, (0, 0, 0.3)),
        ("lower the ball by 300 mm", Transform, (0, 0, -0.3)),
        ("push the ball away by 1", Transform, (-1, 0, 0)),
        ("move the ball to the right by 2", Transform, (0, 2, 0)),
        ("move the ball left by two", Transform, (0, -2, 0)),
        ("move the ball closer by 1", Transform, (1, 0, 0)),
        ("duplicate the ball to the left by 1", Duplicate, (0, -1, 0)),
        ("insert runs/a.ply to the right by 0.5", Insert, (0, 0.5, 0)),
    ],
)
def test_directions_are_as_the_first_camera_sees_them(scene, sentence, kind, expected):
    (edit,) = edits(sentence, scene)
    assert type(edit) is kind
    assert edit.translate == pytest.approx(expected, abs=1e-6)


def test_unsaid_distances_are_a_share_of_the_scene(scene):
    (some,), (little,) = edits("move the ball up", scene), edits("move the ball up a little", scene)
    assert some.translate[2] == pytest.approx(0.15)  # units of scale 1
    assert little.translate[2] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("sentence", "axis", "angle"),
    [
        ("turn the pan by 90 degrees", (0, 0, 1), 90),
        ("rotate the pan 45 degrees clockwise", (0, 0, 1), -45),
        ("rotate the pan by 30° to the left", (0, 0, 1), 30),
        ("rotate the pan by 90 degrees about the x axis", (1, 0, 0), 90),
        ("rotate the pan -90 degrees around y", (0, 1, 0), -90),
        ("turn the pan upside down", (0, 1, 0), 180),
    ],
)
def test_turns(scene, sentence, axis, angle):
    (edit,) = edits(sentence, scene)
    half = math.radians(angle) / 2
    expected = torch.tensor([math.cos(half), *(math.sin(half) * a for a in axis)])
    found = torch.tensor(edit.rotate)
    assert float((found * expected).sum().abs()) == pytest.approx(1.0, abs=1e-5)  # q and -q are one rotation


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("", "got nothing"),
        ("   ", "got nothing"),
        ("sing a song", "'sing a song' is not understood"),
        ("remove the mug and make it sing", "'make it sing' is not understood"),
        ("make it darker", "does not say what 'it' is"),
        ("fill the hole", "follows no removal"),
        ("move the ball up by 1", "directions need a scene"),
        ("make the mug zorp", "not understood"),
        ("z" * 900, f"'{'z' * 77}...' is not understood"),
        ("scale the mug by 100000", "scales by"),
        ("x" * 10_000, "at most 1000"),
        ("__import__('os').system('true')", "not understood"),
        ("remove the mug\x00; make it blue\x001\x00", "not understood"),
    ],
)
def test_what_is_not_understood(sentence, said):
    with pytest.raises(FeaturesplatError, match=said):
        parse(sentence)


def test_nothing_said_takes_long():
    """Patterns must not explode on long nonsense."""
    for sentence in ("make " + "a " * 490, "move the " + "up " * 300, "turn " * 200, "and " * 240 + "x"):
        with pytest.raises(FeaturesplatError):
            parse(sentence)


def test_a_mode_is_asked_first(scene, monkeypatch):
    static = registry.load("modes", "static")

    def understands(clause, given):
        return Opacity(t("frozen"), factor=1.0) if clause.startswith("freeze") and given is scene else None

    monkeypatch.setattr(static, "understands", understands, raising=False)
    assert edits("freeze the duck and remove the mug", scene) == [Opacity(t("frozen"), factor=1.0), Remove(t("mug"))]
