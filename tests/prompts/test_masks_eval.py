"""How well a field finds things: against true masks, in figures, by the verb eval, and what goes wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from table_scene import NAMES, true_mask, with_field

from featuresplat.cli import main
from featuresplat.errors import FeaturesplatError
from featuresplat.masks_eval import measure_masks, read_masks
from featuresplat.scene import Scene

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"


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
