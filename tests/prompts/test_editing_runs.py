"""Finished runs edited by the verb edit: sentences, flags and files, and what is left as it was."""

from __future__ import annotations

import pytest
import torch

from featuresplat.cli import main
from featuresplat.prompts.edit_files import load_edits
from featuresplat.scene import Scene


def edit(*args) -> int:
    return main(["edit", *map(str, args), "--device", "cpu"])


def test_a_sentence_edits_into_another_run(run, world, tmp_path, capsys):
    before = (run / "scene.json").read_bytes()
    assert edit(run, "remove the red ball and make the blue box green", "--out", tmp_path / "out") == 0
    out = capsys.readouterr().out
    assert "understood: remove 'red ball'" in out
    assert "understood: recolor 'blue box' color green" in out
    scene = Scene.load(tmp_path / "out")
    assert abs(len(world[1]) - len(scene.gaussians) - 700) < 30
    assert scene.info["edits"] == ["remove 'red ball'", "recolor 'blue box' color green"]
    assert "truth" in scene.fields
    assert (run / "scene.json").read_bytes() == before
    # The edits replay from the file that was written.
    assert len(load_edits(tmp_path / "out" / "edits.yaml")) == 2
    assert edit(run, tmp_path / "out" / "edits.yaml", "--out", tmp_path / "again") == 0
    again = Scene.load(tmp_path / "again")
    assert torch.equal(again.gaussians.sh0, scene.gaussians.sh0)


def test_flags_edit_too(run, tmp_path, world):
    assert edit(run, "--remove", "the red ball", "--remove", "green ball", "--out", tmp_path / "a") == 0
    assert [e.target.text for e in load_edits(tmp_path / "a" / "edits.yaml")] == ["red ball", "green ball"]
    assert edit(run, "--keep", "the red ball", "--out", tmp_path / "b") == 0
    assert abs(len(Scene.load(tmp_path / "b").gaussians) - 700) < 30
    assert edit(run, "--remove", "red ball", "--dry", "--out", tmp_path / "c") == 0
    assert not (tmp_path / "c").exists()


def test_nothing_is_overwritten_silently(run, tmp_path, capsys):
    out = tmp_path / "out"
    assert edit(run, "--remove", "red ball", "--out", out) == 0
    assert edit(run, "--remove", "blue box", "--out", out) == 2
    assert "exists already" in capsys.readouterr().err
    assert edit(run, "--remove", "blue box", "--out", out, "--overwrite") == 0
    assert [e.target.text for e in load_edits(out / "edits.yaml")] == ["blue box"]
    assert edit(run, "--remove", "blue box", "--out", run, "--overwrite") == 2
    assert "the run itself" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    assert edit(run, "--remove", "blue box", "--out", tmp_path / "mine", "--overwrite") == 2
    assert (tmp_path / "mine" / "letter.txt").is_file()
    assert edit(run, "--remove", "blue box", "--out", tmp_path / "mine" / "letter.txt" / "out") == 2
    assert "in the place of the file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "expected a sentence"),
        (["dance"], "'dance' is not understood"),
        (["none.yaml"], "no such file of edits"),
        (["--remove", "red bal"], "knows a fixed list"),
    ],
)
def test_edits_that_cannot_be_done_write_nothing(run, args, said, capsys, tmp_path):
    assert edit(run, *args, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
