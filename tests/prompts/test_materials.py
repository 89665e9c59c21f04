"""What sentences about materials are understood as."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from sentences import edits, t
from table_scene import make_world

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import materials
from featuresplat.prompts.edit_files import edit_from_dict
from featuresplat.prompts.edits import Recolor, Transform
from featuresplat.prompts.materials import Material
from featuresplat.prompts.targets import Target


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("make the mug chrome", Material(t("mug"), "chrome")),
        ("Make the Mug chromed!", Material(t("mug"), "chrome")),
        ("make the bowl matte", Material(t("bowl"), roughness=0.9)),
        ("make the duck glossy", Material(t("duck"), roughness=0.15)),
        ("make the duck red plastic", Material(t("duck"), "plastic", "red")),
        ("make the duck dark blue plastic", Material(t("duck"), "plastic", "dark blue")),
        ("make the mug look like brushed copper", Material(t("mug"), "copper", roughness=0.35)),
        ("turn the mug into a mirror", Material(t("mug"), "mirror")),
        ("make the mug out of solid wood", Material(t("mug"), "wood")),
        ("make the gold ring matte", Material(t("gold ring"), roughness=0.9)),
        ("coat 'salt and pepper' with gold", Material(t("salt and pepper"), "gold")),
        ("paint the bowl matte black", Material(t("bowl"), color="black", roughness=0.9)),
        ("polish the pan", Material(t("pan"), roughness=0.06)),
        ("gild the bowl", Material(t("bowl"), "gold")),
        ("make the duck rougher", Material(t("duck"), roughness_factor=1.6)),
        ("make the duck a bit shinier", Material(t("duck"), roughness_factor=0.5)),
        ("make the bowl rough metallic", Material(t("bowl"), "metal", roughness=0.75)),
        ("set the roughness of the mug to 0.3", Material(t("mug"), roughness=0.3)),
        ("make the mug's metallic 1", Material(t("mug"), metallic=1.0)),
        ("change the material of the mug to steel", Material(t("mug"), "steel")),
        ("make everything matte", Material(Target(), roughness=0.9)),
        # Not about materials:
        ("make the mug blue", Recolor(t("mug"), color="blue")),
        ("make the steel ball twice as large", Transform(t("steel ball"), scale=2.0)),
        ("change the colour of the mug to gold", Recolor(t("mug"), color="gold")),
        # A colour where there are no materials.
        ("make the mug golden", Recolor(t("mug"), color="golden")),
    ],
)
def test_sentences(sentence, expected):
    assert edits(sentence) == [expected]


def test_several_and_it():
    assert edits("make the mug chrome and the bowl matte, then make it red plastic") == [
        Material(t("mug"), "chrome"),
        Material(t("bowl"), roughness=0.9),
        Material(t("bowl"), "plastic", "red"),
    ]


def test_every_name_of_the_table_is_understood():
    for name in (*materials.MATERIALS, *materials.SAME, *materials.FINISHES):
        if name not in materials.COLOUR_TOO:
            assert isinstance(edits(f"make the box {name}")[0], Material), name
    for named in materials.MATERIALS.values():
        assert 0 <= named.roughness <= 1
        assert named.metallic in (0, 1)
        assert named.color is None or all(0 <= c <= 1 for c in named.color)


def test_a_run_without_materials_says_where_to_get_them():
    scene, _ = make_world()
    with pytest.raises(FeaturesplatError) as caught:
        scene.edit(Material(Target(), "chrome"))
    assert "no materials" in caught.value.message
    assert "featuresplat inverse" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Material(), "nothing is given"),
        (Material(material="chrom"), "Perhaps you meant 'chrome'"),
        (Material(roughness=1.5), "roughness: expected 0..1"),
        (Material(metallic=-1.0), "metallic: expected 0..1"),
        (Material(color="no such"), "no such"),
        (Material(roughness_factor=0.0), "positive factor"),
    ],
)
def test_values_that_make_no_sense(edit, says):
    with pytest.raises(FeaturesplatError) as caught:
        edit.values()
    assert says in f"{caught.value.message} {caught.value.hint}"


def test_the_guide_tells_no_lies():
    text = (Path(__file__).resolve().parents[2] / "docs" / "inverse.md").read_text(encoding="utf-8")
    block = text.split("```yaml\n")[1].split("```")[0]
    found = [edit_from_dict(values) for values in yaml.safe_load(block)["edits"]]
    for edit in found:
        assert isinstance(edit, Material)
        edit.values()
    said = text.split("In words,")[1].split("As data:")[0]
    sentences = [" ".join(s.split()) for s in re.findall(r'"([^"]+)"', said)]
    assert len(sentences) >= 8
    assert all(isinstance(e, Material) for e in edits(". ".join(sentences)))
    named = text.split("| `material` |")[1].split(". Gives all")[0]
    assert [w.strip() for w in named.split(",")] == list(materials.MATERIALS)
