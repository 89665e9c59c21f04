"""One command to a field, and what it answers afterwards: on a tiny scene with maps made from true masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import DEMO, small, write_scene
from torch import Tensor

from featuresplat.cli import main
from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.datasets import load_dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of
from featuresplat.fields.distill import distill
from featuresplat.prompts import text
from featuresplat.scene import Scene
from featuresplat.trainer import train

VIEWS = range(0, 40, 4)
DIM = 12


def labels(stem: str) -> Tensor:
    """int64 [60, 80]: the object at each pixel's centre."""
    image = Image.open(DEMO / "instance" / f"{stem}.png").resize((80, 60), Image.Resampling.NEAREST)
    return torch.from_numpy(np.array(image)).long()


def phrases() -> list[str]:
    objects = json.loads((DEMO / "meta.json").read_text())["objects"]
    names = {o["index"]: o["name"] for o in objects}
    return ["background", *(names[i] for i in range(1, max(names) + 1))]


def write_teacher(folder: Path, dim: int = DIM, seed: int = 0) -> Path:
    """A folder for the teacher `precomputed`: a random direction per object."""
    folder.mkdir()
    words = phrases()
    vectors = torch.randn(len(words), dim, generator=torch.Generator().manual_seed(seed))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    np.save(folder / "text.npy", vectors.numpy())
    described = {"name": "truth", "dim": dim, "phrases": {w: i for i, w in enumerate(words)}}
    (folder / "teacher.json").write_text(json.dumps(described))
    for view in VIEWS:
        np.save(folder / f"view_{view:03d}.npy", vectors[labels(f"view_{view:03d}")].half().numpy())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_scene(folder / "scene", VIEWS)
    write_teacher(folder / "maps")
    write_teacher(folder / "maps2", 5, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(data) -> Path:
    """A finished run with a field, made in one command."""
    config = small(data / "run", steps=150)
    config.data.downscale = 1
    config.teacher = TeacherConfig("precomputed", data / "maps")
    config.report = True
    train(data / "scene", config, progress=False)
    return data / "run"


def quality(scene: Scene) -> float:
    """Mean IoU of the four largest objects over the held-out views, by the best label of each pixel."""
    words = phrases()
    hits, union = torch.zeros(len(words)), torch.zeros(len(words))
    for camera in (scene.cameras[i] for i, n in enumerate(scene.cameras.names) if n in scene.names("test")):
        truth = labels(Path(str(camera.names[0])).stem)
        found = text.score_view(scene, camera, [w for w in words if w != "background"]).max(0)
        shown = torch.where(found.values > 0.5, found.indices + 1, 0)
        for k in range(1, len(words)):
            hits[k] += ((truth == k) & (shown == k)).sum()
            union[k] += ((truth == k) | (shown == k)).sum()
    iou = hits / union.clamp_min(1)
    return float(iou[union.topk(4).indices].mean())


def test_training_with_a_teacher_gives_a_field_that_answers(run, data):
    scene = Scene.load(run)
    name, field = scene.field()
    assert (name, field.teacher, field.dim, field.decoder) == ("precomputed", "precomputed", DIM, None)
    assert field.text is not None
    assert field.text.phrases == tuple(phrases())
    assert field.confidence is not None
    assert field.info["teacher"]["made_by"] == "truth"
    assert "Feature fields" in (run / "report.html").read_text(encoding="utf-8")
    assert "Prompts" in (run / "report.html").read_text(encoding="utf-8")
    assert quality(scene) > 0.6


def test_the_run_answers_without_its_maps_and_its_photographs(run, data, tmp_path):
    scene = Scene.load(run)
    before = text.score(scene, phrases()[1:3])
    (data / "maps").rename(tmp_path / "gone")
    (data / "scene").rename(tmp_path / "photographs")
    try:
        assert torch.equal(text.score(Scene.load(run), phrases()[1:3]), before)
    finally:
        (tmp_path / "gone").rename(data / "maps")
        (tmp_path / "photographs").rename(data / "scene")


def test_the_verb_adds_fields_to_a_finished_run(run, data, tmp_path, capsys):
    base = ["distill", str(run), "--teacher", "precomputed", "--no-report"]
    assert main([*base, "--teacher.path", str(data / "maps"), "--lift", "robust", "--out", str(tmp_path / "a")]) == 0
    assert "field precomputed: 12 channels, lift robust" in capsys.readouterr().out
    two = [*base, "--teacher.path", str(data / "maps2"), "--field.name", "small", "--dim", "3", "--steps", "20"]
    assert main([*two, "--out", str(tmp_path / "b")]) == 0
    assert "field small: 3 channels, decoded to 5, lift mean, 20 steps of cosine" in capsys.readouterr().out
    both = Scene.load(tmp_path / "b")
    assert list(both.fields) == ["precomputed", "small"]
    assert torch.equal(both.fields["precomputed"].codes, Scene.load(run).fields["precomputed"].codes)
    assert list(Scene.load(run).fields) == ["precomputed"]
    assert main([*two, "--out", str(tmp_path / "b")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_two_fields_saved_exported_and_read_back_answer_alike(run, data, tmp_path):
    scene = Scene.load(run)
    config = FieldConfig(name="book", dim=8, steps=5, codebook=16)
    scene = distill(scene, dataset_of(scene), TeacherConfig("precomputed", data / "maps"), config)
    scene.save(tmp_path / "two")
    assert main(["export", str(tmp_path / "two"), str(tmp_path / "two.ply")]) == 0
    for again in (Scene.load(tmp_path / "two"), Scene.load(tmp_path / "two.ply")):
        assert list(again.fields) == ["precomputed", "book"]
        for name in again.fields:
            words = phrases()[1:4]
            assert torch.equal(text.score(again, words, name), text.score(scene, words, name))
            assert again.fields[name].info == scene.fields[name].info


@pytest.mark.parametrize(
    ("config", "at_least"),
    [
        (FieldConfig(lift="cg"), 0.55),
        (FieldConfig(dim=6, steps=40), 0.5),
        (FieldConfig(dim=6, steps=40, decoder="mlp", loss="l1"), 0.4),
        (FieldConfig(codebook=32), 0.55),
    ],
    ids=["cg", "linear", "mlp", "codebook"],
)
def test_every_kind_of_field_finds_the_objects(run, data, config, at_least):
    scene = Scene.load(run)
    made = distill(scene, dataset_of(scene), TeacherConfig("precomputed", data / "maps"), config)
    assert quality(made) > at_least


def test_two_teachers_over_one_code_save_it_once(run, data, tmp_path, monkeypatch):
    from featuresplat import teachers

    scene = Scene.load(run)

    def make(name, config, device="cpu"):
        folder = data / ("maps" if name == "precomputed" else "maps2")
        made = teachers.registry.load("teachers", "precomputed").Teacher(TeacherConfig("precomputed", folder))
        made.name = name
        return made

    monkeypatch.setattr("featuresplat.fields.distill.teachers.make_teacher", make)
    config = FieldConfig(dim=9, steps=30, cache=tmp_path / "cache")
    made = distill(scene, dataset_of(scene), TeacherConfig("precomputed, dino"), config)
    assert [f.out_dim for f in made.fields.values()] == [DIM, 5]
    assert made.fields["precomputed"].codes is made.fields["dino"].codes
    assert quality(made) > 0.4
    made.save(tmp_path / "r")
    assert Scene.load(tmp_path / "r").fields["dino"].dim == 9
    head = (tmp_path / "r" / "gaussians.ply").read_bytes()[:4000]
    assert b"feature_8" in head
    assert b"feature_9\n" not in head


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--teacher", "clipp"], "there is none called 'clipp'"),
        (["--teacher", ""], "expected the name of one"),
        (["--teacher", "precomputed"], "expected the folder of maps"),
        (["--teacher", "precomputed,clip"], "share one code, which has to be trained"),
        (["--teacher", "precomputed", "--field.decoder", "mlp"], "an MLP has to be trained"),
        (["--teacher", "precomputed", "--dim", "-1"], "field.dim: expected at least 0, got -1"),
        (["--teacher", "precomputed", "--field.lr", "-1"], "field.lr: expected at least 0, got -1.0"),
        (["--teacher", "precomputed", "--teacher.size", "-1"], "teacher.size: expected at least 0, got -1"),
    ],
)
def test_mistakes_are_told_before_any_work(run, arguments, words, capsys):
    assert main(["distill", str(run), *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert words in said[0]
    assert len(said) == 2


def test_a_teacher_that_cannot_be_had_stops_the_training_before_it_begins(data, tmp_path, capsys):
    assert main(["train", str(data / "scene"), "--teacher", "precomputed", "--out", str(tmp_path / "r")]) == 2
    assert "expected the folder of maps" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_photographs_of_another_scene_are_told(run, data):
    scene = Scene.load(run)
    scene.info["split"] = {"train": ["view_000.png", "elsewhere.png"], "test": []}
    scene.cameras.names = ("view_000.png", "elsewhere.png", *scene.cameras.names[2:])
    with pytest.raises(FeaturesplatError, match=r"'elsewhere\.png' and 0 more of the scene's views"):
        distill(scene, load_dataset(data / "scene"), TeacherConfig("precomputed", data / "maps"))


def test_a_field_goes_into_a_new_folder_only(run, data, tmp_path, capsys):
    (tmp_path / "letter.txt").write_text("dear")
    teacher = ["--teacher", "precomputed", "--teacher.path", str(data / "maps")]
    for place, words in ((tmp_path, "is not empty"), (tmp_path / "letter.txt", "letter.txt: is a file")):
        assert main(["distill", str(run), *teacher, "--out", str(place)]) == 2
        assert words in capsys.readouterr().err
    assert main(["distill", str(run), *teacher, "--out", str(tmp_path / "letter.txt" / "x")]) == 2
    assert "in the place of the file" in capsys.readouterr().err
    assert (tmp_path / "letter.txt").read_text() == "dear"


def test_extract_tells_of_numbers_that_make_no_sense(data, capsys):
    scene = ["extract", str(data / "scene"), "--teacher", "precomputed", "--teacher.path", str(data / "maps")]
    assert main([*scene, "--channels", "-1"]) == 2
    assert "channels: expected at least 0, got -1" in capsys.readouterr().err
    assert main([*scene, "--data.max-pixels", "0"]) == 2
    assert "data.max_pixels: expected at least 1, got 0" in capsys.readouterr().err


def test_extract_of_maps_that_are_files_already(data, capsys):
    code = main(["extract", str(data / "scene"), "--teacher", "precomputed", "--teacher.path", str(data / "maps")])
    assert code == 0
    assert "files already" in capsys.readouterr().out


def test_labels_go_into_the_ply(run, tmp_path, capsys):
    from featuresplat.io.ply import read_ply

    assert main(["export", str(run), str(tmp_path / "a.ply"), "--labels"]) == 0
    read = read_ply(tmp_path / "a.ply")
    words = [w for w in phrases() if w != "background"]
    assert [c for c in read.comments if c.startswith("label ")] == [f"label {k} {w}" for k, w in enumerate(words)]
    counts = torch.bincount(read.extra["label"].long() + 1, minlength=len(words) + 1)
    assert int((counts[1:] > 0).sum()) >= 5
    assert main(["export", str(run), str(tmp_path / "b.ply"), "--labels", "--plain"]) == 2
    assert "a plain PLY holds no labels" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "c.ply"), "--plain"]) == 0
    plain = read_ply(tmp_path / "c.ply")
    assert (plain.features, plain.extra, plain.comments) == (None, {}, ())
    assert not (tmp_path / "c.fields.safetensors").exists()
    (tmp_path / "a.fields.safetensors").unlink()
    assert main(["export", str(run), str(tmp_path / "d.ply"), "--instances"]) == 0
    read = read_ply(tmp_path / "d.ply")
    names = [c for c in read.comments if c.startswith("instance ")]
    assert len(names) == int(read.extra["instance"].max()) + 1 > 0
    alone = Scene.load(tmp_path / "a.ply")
    assert list(alone.fields) == ["features"]


def test_a_sidecar_of_another_ply_is_told(run, tmp_path):
    assert main(["export", str(run), str(tmp_path / "a.ply")]) == 0
    content = (tmp_path / "a.fields.safetensors").read_bytes()
    (tmp_path / "a.fields.safetensors").write_bytes(content.replace(b'\\"dim\\": 12', b'\\"dim\\": 99'))
    with pytest.raises(FeaturesplatError, match="does not fit the PLY beside it"):
        Scene.load(tmp_path / "a.ply")
    (tmp_path / "a.fields.safetensors").write_bytes(content[:-10])
    with pytest.raises(FeaturesplatError, match="truncated"):
        Scene.load(tmp_path / "a.ply")


def test_fields_and_relevancies_are_rendered(run, tmp_path, capsys):
    out = tmp_path / "out"
    ask = ["render", str(run), "--path", "test", "--out", str(out), "--quiet"]
    assert main([*ask, "--what", "features,relevancy", "--prompt", "soccer ball"]) == 0
    names = sorted(p.name for p in (out / "features").iterdir())
    assert names == sorted(p.name for p in (out / "relevancy").iterdir())
    assert len(names) == 3
    picture = np.array(Image.open(out / "features" / names[0]))
    assert picture.shape == (60, 80, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    capsys.readouterr()
    assert main([*ask, "--what", "relevancy"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    assert main([*ask, "--what", "features", "--field", "x"]) == 2
    assert "has none called 'x'" in capsys.readouterr().err
    assert main([*ask, "--what", "feature"]) == 2
    assert "Known kinds: rgb, depth, alpha, features, relevancy" in capsys.readouterr().err


def test_the_report_shows_the_prompts_it_is_given(run, tmp_path):
    import shutil

    from featuresplat.report import write_report

    shutil.copytree(run, tmp_path / "r")
    page = write_report(tmp_path / "r", prompts=["soccer ball"]).read_text(encoding="utf-8")
    section = page[page.index("<h2>Prompts</h2>") :]
    assert "soccer ball" in section
    assert "<h2>Objects</h2>" in page
    page = write_report(tmp_path / "r", prompts=["a <b>dragon</b>"]).read_text(encoding="utf-8")
    assert "<b>dragon" not in page
    assert "A part of the report could not be made" in page
    assert "<h2>Feature fields</h2>" in page
    assert "<h2>Prompts</h2>" not in page


def test_the_python_of_it_in_one_breath(run, tmp_path):
    scene = Scene.load(run)
    heat = scene.query("soccer ball")
    assert heat.shape == (len(scene.gaussians),)
    assert scene.query(["soccer ball", "banana"]).shape == (2, len(scene.gaussians))
    ball = scene.select(heat > 0.5)
    assert 0 < len(ball.gaussians) < len(scene.gaussians) / 2
    assert ball.save(tmp_path / "ball.ply") == tmp_path / "ball.ply"
    again = Scene.load(tmp_path / "ball.ply")
    assert torch.equal(again.gaussians.means, ball.gaussians.means)
    assert torch.equal(again.query("soccer ball"), heat[heat > 0.5])
    assert len(again.cameras) == 0
