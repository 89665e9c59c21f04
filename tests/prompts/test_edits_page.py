"""Every example of docs/edits.md does what the page says."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from table_scene import make_world, with_field

from featuresplat import registry
from featuresplat.prompts.edit_files import load_edits
from featuresplat.prompts.edits import KINDS, apply_all
from featuresplat.prompts.language import parse
from featuresplat.prompts.targets import Target
from featuresplat.scene import Scene

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "edits.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def rows(first: str) -> list[list[str]]:
    """Cells of the table whose head begins with ``first``."""
    table = re.search(rf"^\| {first} \|.*\n\|[-|]+\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in table[1].splitlines()]


SENTENCES = rows("say")


@pytest.fixture(scope="module")
def level() -> Scene:
    """Cameras on a ring, the first at +x looking to -x, up is +z."""
    return make_world(sh_degree=0, size=(32, 24))[0]


@pytest.mark.parametrize(("said", "understood"), SENTENCES, ids=[row[0] for row in SENTENCES])
def test_sentences_are_understood_as_the_page_says(level, said, understood):
    shown = "; ".join(plan.edit.describe() for plan in parse(said, level))
    assert shown == understood


@pytest.mark.parametrize("text", blocks("yaml"), ids=["file", "kinds", "targets"])
def test_files_can_be_applied(asked, tmp_path, text):
    (tmp_path / "edits.yaml").write_text(text, encoding="utf-8")
    found = load_edits(tmp_path / "edits.yaml")
    assert len(found) == len(re.findall(r"^- ", text, re.MULTILINE))
    scene = asked
    for edit in found:
        if getattr(edit, "fill", False):
            with pytest.warns(UserWarning, match="photographs of this run are gone"):
                scene = apply_all(scene, [edit])
        else:
            scene = apply_all(scene, [edit])
    changed = len(scene.gaussians) != len(asked.gaussians)
    assert changed or not torch.equal(scene.gaussians.sh0, asked.gaussians.sh0)


def test_the_page_lists_every_kind_with_its_values():
    told = {row[0].strip("`"): row[1] for row in rows("kind")}
    assert set(told) == set(KINDS)
    for name, kind in KINDS.items():
        values = [f.name for f in fields(kind) if f.name != "target"]
        shown = told["transform"] + told[name] if "as `transform`" in told[name] else told[name]
        assert all(f"`{value}`" in shown for value in values), name
    assert all(f"`{name}`" in PAGE for name in registry.load("modes", "dynamic").EDITS)


def test_the_page_lists_every_key_of_a_target():
    told = " ".join(cell for row in rows("key") for cell in row)
    assert all(f"`{f.name}`" in told for f in fields(Target))


def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Nobody has asked it yet: pieces of a scene are remembered, and another test's may be those of a faded ball.
    asked = with_field(*make_world())
    (code,) = blocks("python")
    names: dict = {"scene": asked}
    exec(compile(code, "docs/edits.md", "exec"), names)
    done, again = names["done"], names["again"]
    assert [e.kind for e in done.edits] == ["remove", "recolor", "opacity"]
    assert torch.equal(again.gaussians.logit_opacities, done.scene.gaussians.logit_opacities)
    assert torch.equal(names["same"].mask, names["larger"].mask)
    assert names["balls"].count == 1200
    assert not torch.equal(names["faded"].gaussians.logit_opacities, asked.gaussians.logit_opacities)
