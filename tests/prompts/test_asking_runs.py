"""Finished runs asked by the verb query: files, sizes, scores, and what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from table_scene import iou, true_mask

from featuresplat.cli import main
from featuresplat.errors import FeaturesplatError
from featuresplat.io.formats import load_gaussians
from featuresplat.prompts.edits import Remove
from featuresplat.prompts.photographs import full_size_views, view_named
from featuresplat.prompts.targets import Target
from featuresplat.query import Prompt, query_scene, slugs_of, views_of


def ask(*args) -> int:
    return main(["query", *map(str, args), "--quiet", "--device", "cpu"])


def mask_in(path: Path) -> torch.Tensor:
    image = np.asarray(Image.open(path))
    assert image.ndim == 2
    assert set(np.unique(image)) <= {0, 255}
    return torch.from_numpy(image > 127)


def test_phrases_give_masks_of_the_photographs_size_and_scores(run, world, large, tmp_path, capsys):
    assert ask(run, "red ball", "Blue Box", "--views", "test", "--masks", tmp_path / "m", "--scores") == 0
    for slug, label in (("red_ball", 2), ("blue_box", 3)):
        files = sorted((tmp_path / "m" / slug).iterdir())
        assert [f.name for f in files] == ["view_00.npy", "view_00.png", "view_01.npy", "view_01.png"]
        found = mask_in(tmp_path / "m" / slug / "view_01.png")
        assert tuple(found.shape) == (192, 256)
        assert iou(found, true_mask(*world, large[1], label)) > 0.85
        scores = np.load(tmp_path / "m" / slug / "view_01.npy", allow_pickle=False)
        assert scores.shape == (192, 256)
        assert scores.dtype == np.float32
        assert 0 <= scores.min() <= scores.max() <= 1
    told = json.loads((tmp_path / "m" / "scores.json").read_text())
    assert told["format"] == 1
    assert told["field"] == "truth"
    assert set(told["views"]) == {"red_ball", "blue_box"}
    view = told["views"]["red_ball"]["view_01"]
    assert view["size"] == [256, 192]
    assert view["pixels"] == int(mask_in(tmp_path / "m" / "red_ball" / "view_01.png").sum())
    assert told["phrases"]["red ball"]["slug"] == "red_ball"
    assert told["phrases"]["red ball"]["gaussians_above_half"] > 600
    assert "red ball" in capsys.readouterr().out


def test_gaussians_are_scored_and_rendered(run, world, large, tmp_path):
    assert ask(run, "red ball", "--gaussians", "--views", "all", "--masks", tmp_path / "m") == 0
    assert len(list((tmp_path / "m" / "red_ball").glob("*.png"))) == 10
    assert iou(mask_in(tmp_path / "m" / "red_ball" / "view_05.png"), true_mask(*world, large[5], 2)) > 0.85
    assert json.loads((tmp_path / "m" / "scores.json").read_text())["selected"] == {"red ball": 700}


def test_whole_objects_are_rendered(run, world, large, tmp_path):
    assert ask(run, "red ball", "table", "--objects", "--masks", tmp_path / "m") == 0
    for slug, label in (("red_ball", 2), ("table", 1)):
        assert iou(mask_in(tmp_path / "m" / slug / "view_01.png"), true_mask(*world, large[1], label)) > 0.85
    assert set(json.loads((tmp_path / "m" / "scores.json").read_text())["selected"]) == {"red ball", "table"}


@pytest.mark.parametrize("boxed", [False, True])
def test_a_point_or_a_box_in_pixels_of_the_photograph(run, world, large, tmp_path, boxed):
    mask = true_mask(*world, large[0], 4)
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    x, y = int(cols.median()), int(rows.median())
    where = ["--box", cols[0].item(), rows[0].item(), cols[-1].item() + 1, rows[-1].item() + 1]
    where = where if boxed else ["--point", x, y]
    assert ask(run, *where, "--view", "view_00", "--views", "train", "--masks", tmp_path / "m") == 0
    assert len(list((tmp_path / "m").glob("*.png"))) == 8
    assert iou(mask_in(tmp_path / "m" / "view_06.png"), true_mask(*world, large[6], 4)) > 0.8


def test_overlays_and_the_object_as_a_file(run, world, tmp_path):
    ply = tmp_path / "x.ply"
    assert ask(run, "green ball", "--overlays", tmp_path / "o", "--save", ply) == 0
    picture = Image.open(tmp_path / "o" / "green_ball" / "view_00.png")
    assert picture.size == (512, 192)  # the scores beside the picture
    loaded = load_gaussians(ply)
    assert abs(len(loaded.gaussians) - int((world[1] == 4).sum())) < 40
    assert loaded.features is not None
    assert ask(run, "green ball", "red ball", "--save", ply) == 0
    assert (tmp_path / "x-green_ball.ply").is_file()
    assert (tmp_path / "x-red_ball.ply").is_file()


def test_pictures_by_default(asked, tmp_path):
    asked.save(tmp_path / "run")
    assert ask(tmp_path / "run", "table") == 0
    assert len(list((tmp_path / "run" / "queries" / "table").glob("*.png"))) == 2


def test_folder_names_of_phrases():
    assert slugs_of(["A  Red/Mug!", "a red mug", "../..", "été", "x" * 200]) == [
        "a_red_mug", "a_red_mug__2", "prompt", "été", "x" * 80,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "expected a phrase, a point or a box"),
        ([""], "expected a phrase, got nothing"),
        (["red bal"], "knows a fixed list"),
        (["red ball", "--point", "3", "4", "--view", "view_00"], "a phrase and a point"),
        (["--point", "3", "4"], "none is named"),
        (["--point", "3000", "4", "--view", "view_00"], "outside the image of 256 x 192"),
        (["--box", "9", "9", "9", "9", "--view", "view_00"], "covers nothing"),
        (["--point", "3", "4", "--view", "nowhere"], "none called 'nowhere'"),
        (["red ball", "--field", "clip"], "none called 'clip'"),
        (["red ball", "--threshold", "nan"], "threshold: expected 0 to 1"),
        (["red ball", "--threshold", "7"], "threshold: expected 0 to 1"),
        (["red ball", "--save", "x.obj"], "x.obj"),
        (["background", "--save", "y.ply"], "no Gaussian is selected"),
    ],
)
def test_one_sentence_and_one_remedy(run, args, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ask(run, *args) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 2


def test_a_run_without_a_field(world, tmp_path, capsys):
    world[0].save(tmp_path / "run")
    assert ask(tmp_path / "run", "red ball") == 2
    assert "no feature field" in capsys.readouterr().err
    # Points need none.
    assert ask(tmp_path / "run", "--point", 128, 96, "--view", "view_00", "--masks", tmp_path / "m") == 0
    assert ask(tmp_path / "nowhere", "x") == 2


def test_views(asked):
    assert len(views_of(asked, "all")) == 10
    assert list(views_of(asked, "test").names) == ["view_00.png", "view_01.png"]
    with pytest.raises(FeaturesplatError, match="no test views"):
        views_of(replace(asked, info={}), "test")
    with pytest.raises(FeaturesplatError, match="none called 'some'"):
        views_of(asked, "some")
    plain = replace(asked, info={"split": asked.info["split"]})
    assert full_size_views(plain).sizes[0] == (128, 96)  # its photographs are unknown
    assert view_named(asked, "view_03").sizes == [(256, 192)]


def test_nothing_asked():
    with pytest.raises(FeaturesplatError, match="expected a phrase"):
        Prompt().check()


def test_progress_is_told(asked):
    words = []

    def bar(numbers, word):
        words.append(word)
        return numbers

    answer = query_scene(asked, Prompt(("table",)), asked.cameras[:2], masks=None, overlays=None, progress=bar)
    assert answer.files == []
    assert words == []


def test_a_removed_object_leaves_ground_behind(asked, world):
    """Without photographs the place it stood on is paved in the ground's colours."""
    labels = world[1]
    under = (asked.gaussians.means[:, :2] - torch.tensor([0.55, -0.3])).abs()
    covered = (under < torch.tensor([0.28, 0.18])).all(1) & (labels == 1)
    holed = asked.rows(~covered)  # nobody has seen the table under the box
    with pytest.warns(UserWarning, match="photographs of this run are gone"):
        filled = Remove(Target(text="blue box"), fill=True).apply(holed)
    plain = Remove(Target(text="blue box")).apply(holed)
    assert len(filled.gaussians) > len(plain.gaussians)
    fresh = filled.gaussians[slice(len(plain.gaussians) - 20, None)]
    assert float(fresh.means[:, 2].abs().median()) < 0.1
    camera = asked.cameras[0]
    table = true_mask(holed.rows(holed.fields["truth"].codes[:, 0] > -9), labels[~covered], camera, 3)
    before, after = (s.render(camera) for s in (plain, filled))
    assert float(after.alpha[0, ..., 0][table].mean()) > float(before.alpha[0, ..., 0][table].mean())
    assert float(after.rgb[0][table].mean(0)[0]) > float(before.rgb[0][table].mean(0)[0])
