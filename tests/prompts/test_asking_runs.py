"""Finished runs asked, measured against true masks and edited: files, sizes, figures, and what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from table_scene import NAMES, iou, true_mask, with_field

from featuresplat.cli import main
from featuresplat.errors import FeaturesplatError
from featuresplat.io.formats import load_gaussians
from featuresplat.masks_eval import measure_masks, read_masks
from featuresplat.prompts.edit_files import load_edits
from featuresplat.prompts.edits import Remove
from featuresplat.prompts.photographs import full_size_views, view_named
from featuresplat.prompts.targets import Target
from featuresplat.query import Prompt, query_scene, slugs_of, views_of
from featuresplat.scene import Scene


@pytest.fixture(scope="module")
def run(asked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked") / "run"
    asked.save(folder)
    return folder


def ask(*args) -> int:
    return main(["query", *map(str, args), "--quiet", "--device", "cpu"])


def mask_in(path: Path) -> torch.Tensor:
    image = np.asarray(Image.open(path))
    assert image.ndim == 2
    assert set(np.unique(image)) <= {0, 255}
    return torch.from_numpy(image > 127)


@pytest.fixture
def large(world, asked):
    """Views at the photographs' size."""
    return full_size_views(asked)


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


# Against true masks


@pytest.fixture
def truth(world, large, tmp_path) -> Path:
    """<view>/<label>.png of two test views, at the photographs' size."""
    for i in (0, 1):
        for label in (2, 3, 4):
            path = tmp_path / "masks" / f"view_{i:02d}" / f"{NAMES[label].replace(' ', '_')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(true_mask(*world, large[i], label).numpy()).convert("L").save(path)
    return tmp_path / "masks"


def test_a_perfect_field_measures_as_one(asked, truth):
    masks = read_masks(truth, asked)
    assert set(masks) == {"view_00.png", "view_01.png"}
    for how in ({}, {"gaussians": True}, {"objects": True}):
        found = measure_masks(asked, masks, **how)
        assert found["miou"] > 0.9
        assert found["accuracy"] > 0.98
        assert found["localisation"] == 1
        assert set(found["labels"]) == set(NAMES[2:])
        assert found["labels"]["red ball"]["views"] == 2
        assert found["agreement"] is None  # there are no photographs


def test_figures_by_hand(asked, world, truth):
    """Two labels changed for one another: none is found, and everything is called by the other's name."""
    labels = world[1].clone()
    labels[world[1] == 2], labels[world[1] == 4] = 4, 2
    swapped = with_field(replace(world[0], fields={}), labels)
    masks = {name: {k: v for k, v in m.items() if k != "blue box"} for name, m in read_masks(truth, asked).items()}
    found = measure_masks(swapped, masks)
    assert found["miou"] == pytest.approx(0, abs=0.01)
    assert found["accuracy"] == pytest.approx(0, abs=0.02)
    assert found["localisation"] == 0


def test_a_label_that_is_nowhere_to_be_seen_does_not_count(asked, truth):
    masks = read_masks(truth, asked)
    masks["view_00.png"]["blue box"].mask[:] = False
    found = measure_masks(asked, masks)
    assert found["labels"]["blue box"]["views"] == 1


def test_label_files_of_lerf(asked, world, large, tmp_path):
    mask = true_mask(*world, large[0], 3)
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    box = [int(cols[0]), int(rows[0]), int(cols[-1]), int(rows[-1])]
    corners = [[box[0], box[1]], [box[2], box[1]], [box[2], box[3]], [box[0], box[3]]]
    info = {"name": "view_00.jpg", "width": 256, "height": 192}
    objects = [
        {"category": "blue box", "bbox": box, "segmentation": corners},
        {"category": "blue box", "bbox": [0, 0, 4, 4], "segmentation": [[0, 0], [4, 0], [4, 4], [0, 4]]},
        {"category": "red_ball", "bbox": [[1, 2], [30, 40]], "segmentation": [[[1, 2], [30, 2], [30, 40]]]},
    ]
    (tmp_path / "frame.json").write_text(json.dumps({"info": info, "objects": objects}))
    (tmp_path / "other.json").write_text("{}")
    found = read_masks(tmp_path, asked)["view_00.png"]
    assert set(found) == {"blue box", "red ball"}
    assert found["blue box"].boxes == [box, [0, 0, 4, 4]]
    assert found["blue box"].mask.shape == (192, 256)
    assert bool(found["blue box"].mask[2, 2])
    assert bool(found["blue box"].mask[(box[1] + box[3]) // 2, (box[0] + box[2]) // 2])
    assert found["red ball"].boxes == [[1, 2, 30, 40]]
    assert found["red ball"].holds(5, 5)
    assert not found["red ball"].holds(100, 100)


def damage(folder: Path, how: str) -> None:
    mask = folder / "view_00" / "red_ball.png"
    if how == "size":
        Image.new("L", (100, 100)).save(mask)
    elif how == "truncated":
        mask.write_bytes(mask.read_bytes()[:40])
    elif how == "views":
        (folder / "view_00").rename(folder / "a")
        (folder / "view_01").rename(folder / "b")
    elif how == "empty":
        for file in folder.rglob("*.png"):
            file.unlink()
    elif how == "lerf":
        (folder / "x.json").write_text('{"info": {}, "objects": [3]}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("size", "the mask is 100 x 100 pixels"),
        ("truncated", "damaged or no PNG"),
        ("views", "none of a, b"),
        ("empty", "neither <view>/<label>.png nor LERF-OVS"),
        ("lerf", "no LERF-OVS label file"),
    ],
)
def test_masks_that_cannot_be_used(asked, truth, how, said):
    damage(truth, how)
    with pytest.raises(FeaturesplatError, match=said):
        read_masks(truth, asked)


def test_no_folder_of_masks(asked, tmp_path):
    with pytest.raises(FeaturesplatError, match="no folder"):
        read_masks(tmp_path / "none", asked)


# Edited runs


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


# The verb eval


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory) -> Path:
    """The demo scene's start points as Gaussians with the field of a teacher that tells the cone from all else."""
    from featuresplat.config import TrainConfig
    from featuresplat.datasets import load_dataset
    from featuresplat.points import gaussians_from_points
    from featuresplat.types import FeatureField, TextTable

    config = TrainConfig()
    config.data.downscale = 4
    data = load_dataset(DEMO, config.data)
    assert data.points is not None
    gaussians = gaussians_from_points(data.points, 0, 0.9)
    orange = (gaussians.colors - torch.tensor([0.9, 0.35, 0.1])).norm(dim=1) < 0.35
    vectors = torch.eye(3)
    field = FeatureField(vectors[orange.long()], "precomputed", text=TextTable(("table", "orange thing", "x"), vectors))
    names = list(data.cameras.names)
    split = {"train": [names[i] for i in data.train], "test": [names[i] for i in data.test]}
    scene = Scene(gaussians, data.cameras, {"f": field}, config=config, info={"source": str(DEMO), "split": split})
    folder = tmp_path_factory.mktemp("demo") / "run"
    scene.save(folder)
    name = Path(split["test"][0]).stem
    index = np.asarray(Image.open(DEMO / "instance" / f"{name}.png"))
    objects = {o["name"]: o["index"] for o in json.loads((DEMO / "meta.json").read_text())["objects"]}
    for label, mask in (
        ("table", index == objects["wooden table"]),
        ("orange_thing", index == objects["traffic cone"]),
    ):
        (folder.parent / "masks" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).convert("L").save(folder.parent / "masks" / name / f"{label}.png")
    return folder


DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


def test_eval_adds_masks_to_the_metrics_and_keeps_them(demo_run, capsys):
    masks = demo_run.parent / "masks"
    assert main(["eval", str(demo_run), "--masks", str(masks), "--quiet", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "orange thing" in out
    found = json.loads((demo_run / "metrics.json").read_text())
    assert {"miou", "accuracy", "localisation", "labels"} <= set(found["masks"])
    assert set(found["masks"]["labels"]) == {"table", "orange thing"}
    assert found["masks"]["labels"]["table"]["iou"] > 0.3
    assert found["test"]["psnr"] > 0
    assert main(["eval", str(demo_run), "--quiet", "--device", "cpu"]) == 0
    assert json.loads((demo_run / "metrics.json").read_text())["masks"] == found["masks"]


def test_eval_tells_of_masks_before_it_measures(demo_run, tmp_path, capsys):
    assert main(["eval", str(demo_run), "--masks", str(tmp_path / "none"), "--quiet"]) == 2
    assert "no folder" in capsys.readouterr().err
    wrong = demo_run.parent / "wrong" / next((demo_run.parent / "masks").iterdir()).name
    wrong.mkdir(parents=True, exist_ok=True)
    Image.new("L", (320, 240), 255).save(wrong / "zebra.png")
    assert main(["eval", str(demo_run), "--masks", str(wrong.parent), "--quiet"]) == 2
    assert "zebra" in capsys.readouterr().err
