"""The report of a run: what is read from its folder, which views it shows, and what it says of what is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_data import Page, cloud, ring

from featuresplat._report.page import to_html
from featuresplat.config import TrainConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.io.images import write_image
from featuresplat.report import changed_values, choose_views, gather, read_log, read_metrics, write_report
from featuresplat.scene import Scene


def test_views_are_the_worst_the_median_and_the_best():
    scores: list[tuple[int, float | None]] = [(i, float((i * 7) % 20)) for i in range(20)]
    chosen = choose_views(scores, 6)
    by_index = dict(scores)
    assert [by_index[i] for i, _ in chosen.rows] == [0, 1, 9, 10, 18, 19]
    assert [label for _, label in chosen.rows] == ["worst", "worst", "median", "median", "best", "best"]
    assert "6 of 20" in chosen.note


def test_views_when_few_or_unscored():
    assert choose_views([], 6).rows == []
    assert [i for i, _ in choose_views([(4, 30.0), (2, 20.0)], 6).rows] == [2, 4]
    assert choose_views([(4, 30.0)], 6).rows == [(4, "")]
    unscored = choose_views([(i, None) for i in range(11)], 6)
    assert [i for i, _ in unscored.rows] == [0, 2, 4, 6, 8, 10]
    assert "evenly spread" in unscored.note


def test_log_survives_a_half_written_line(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"step": 1, "loss": NaN}\n[1]\n\n{"step": 2, "loss": 0.5}\n{"step": 3, "lo')
    assert [row["step"] for row in read_log(path)] == [1, 2]


def test_broken_metrics_are_an_error_with_a_remedy(tmp_path):
    path = tmp_path / "metrics.json"
    assert read_metrics(path) == {}
    path.write_text("{")
    with pytest.raises(FeaturesplatError, match="featuresplat eval"):
        read_metrics(path)


def test_changed_values():
    config = TrainConfig(steps=1500, coarse_to_fine=(4, 2))
    config.model.budget = 7
    config.loss.random_background = True
    assert changed_values(config) == [
        ("steps", "1500", "7000"),
        ("coarse_to_fine", "[4, 2]", "[]"),
        ("model.budget", "7", "100000"),
        ("loss.random_background", "true", "false"),
    ]
    assert changed_values(TrainConfig(config="draft", resume=True)) == []


def trained_run(folder, held_out: bool = True):
    """A run folder as train leaves it, and the photographs it was made from: renders of the scene itself."""
    cameras, scene_folder, run = ring(10), folder / "photos", folder / "run <1>"
    names = list(cameras.names)
    test = names[::4] if held_out else []
    split = {"train": [n for n in names if n not in test], "test": test}
    scene = Scene(
        cloud(),
        cameras,
        config=TrainConfig(steps=10),
        info={"source": str(scene_folder), "split": split, "background": [0.0, 0.0, 0.0]},
    )
    frames = []
    for i, name in enumerate(names):
        rgb = scene.render(cameras[i], backend="reference").rgb
        assert rgb is not None
        write_image(scene_folder / "images" / Path(name).with_suffix(".png"), rgb[0])
        c2w = cameras.c2w[i].clone()
        c2w[:3, 1:3] *= -1  # OpenGL axes, as transforms.json has them
        frames.append({"file_path": f"images/{Path(name).stem}.png", "transform_matrix": c2w.tolist()})
    scene.cameras.names = tuple(f"{Path(n).stem}.png" for n in names)
    for part in split.values():
        part[:] = [f"{Path(n).stem}.png" for n in part]
    K = {"fl_x": 50.0, "fl_y": 50.0, "cx": 32.0, "cy": 24.0, "w": 64, "h": 48}
    (scene_folder / "transforms.json").write_text(json.dumps({**K, "frames": frames}))
    scene.save(run)
    rows = [json.dumps({"step": s, "loss": 1 / s, "psnr": 20.0, "gaussians": 300, "seconds": s}) for s in (1, 5, 10)]
    (run / "log.jsonl").write_text("\n".join(rows))
    return run, scene_folder, split


def test_report_of_a_run(tmp_path):
    run, _, split = trained_run(tmp_path)
    images = [{"name": n, "psnr": 30.0 - k, "ssim": 0.9} for k, n in enumerate(split["test"])]
    (run / "metrics.json").write_text(json.dumps({"format": 1, "test": {"psnr": 29.0, "ssim": 0.9, "images": images}}))
    data = gather(run)
    assert [v.name for v in data.views] == [i["name"] for i in reversed(images)]  # worst first
    assert [v.label for v in data.views] == ["worst", "", "best"]
    # The photographs are the scene's own renders: what remains is rounding, of whichever backend runs here.
    assert all(v.mean_error is not None and v.mean_error < 2 / 255 for v in data.views)
    assert [v.psnr for v in data.views] == [28.0, 29.0, 30.0]  # the evaluation's numbers, not our own
    assert data.notes == []
    assert ("steps", "10", "7000") in data.config
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert len(page.all("img")) == 12
    assert "run <1>" in page.texts


def test_report_without_the_photographs(tmp_path):
    run, photos, _ = trained_run(tmp_path)
    photos.rename(tmp_path / "moved")
    data = gather(run)
    assert len(data.views) == 3
    assert all(v.truth is None and v.error is None and v.depth is not None for v in data.views)
    assert len(data.notes) == 1
    assert "only renders are shown" in data.notes[0]
    assert "only renders are shown" in write_report(run).read_text(encoding="utf-8")


def test_report_when_the_photographs_have_changed(tmp_path):
    run, photos, split = trained_run(tmp_path)
    (photos / "images" / split["test"][0]).write_bytes(b"no image")
    data = gather(run)
    assert all(v.truth is None for v in data.views)
    assert split["test"][0] in data.notes[0]


def test_report_without_held_out_views(tmp_path):
    run, _, _ = trained_run(tmp_path, held_out=False)
    data = gather(run)
    assert len(data.views) == 4
    assert not any(v.test for v in data.views)
    assert data.views_note.startswith("No views were held out")
    assert all(v.psnr is not None and v.psnr > 40 for v in data.views)  # measured here: nobody else did
    assert "Training views" in Page(to_html(data)).texts


def test_report_of_what_is_no_run(tmp_path):
    with pytest.raises(FeaturesplatError, match="is empty"):
        write_report(tmp_path)
