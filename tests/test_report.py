"""The report of a run: complete, self-contained, and calm about what is missing."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from featuresplat._report_layout import camera_layout
from featuresplat._report_page import duration, number, to_html
from featuresplat._report_svg import line_chart, nice_ticks, short
from featuresplat.config import TrainConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.io.images import write_image
from featuresplat.paths import look_at
from featuresplat.report import (
    ReportData,
    View,
    changed_values,
    choose_views,
    gather,
    read_log,
    read_metrics,
    write_report,
)
from featuresplat.scene import Scene
from featuresplat.types import Cameras, Gaussians

EVIL = '<script>alert("x")</script>\'"&.png'


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny pictures: waking threads on a busy machine takes longer than the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ring(count: int = 12, radius: float = 2.0, height: float = 1.0) -> Cameras:
    """Cameras on a circle around the origin in the x-z plane; y is down, as look_at has it."""
    target = torch.zeros(3, dtype=torch.float64)
    turns = [2 * math.pi * k / count for k in range(count)]
    eyes = torch.tensor([[radius * math.cos(a), -height, radius * math.sin(a)] for a in turns], dtype=torch.float64)
    K = torch.tensor([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]], dtype=torch.float64)
    names = [f"view_{k:02d}.jpg" for k in range(count)]
    return Cameras(
        look_at(eyes, target, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)),
        K.repeat(count, 1, 1),
        64,
        48,
        None,
        names,
    )


def cloud(count: int = 300) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        means=0.4 * torch.randn(count, 3, generator=g),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        log_scales=torch.full((count, 3), -3.0),
        logit_opacities=torch.full((count,), 2.0),
        sh0=torch.randn(count, 1, 3, generator=g),
        shN=torch.zeros(count, 0, 3),
    )


def picture(seed: int, height: int = 48, width: int = 64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)


def full_data() -> ReportData:
    views = [
        View(f"view_{k}.jpg", picture(k), label, True, picture(k + 9), picture(k + 20), 0.031, k == 1, picture(k + 30),
             (0.51, 4.2), 20.0 + k, 0.7 + 0.1 * k)
        for k, label in enumerate(("worst", "median", "best"))
    ]  # fmt: skip
    log = [
        {"step": s, "loss": 0.3 / (1 + s / 100), "psnr": 15 + s / 300, "gaussians": 1000 + s, "seconds": s / 50}
        | ({"test_psnr": 14 + s / 300} if s % 500 == 0 else {})
        for s in range(0, 3001, 10)
    ]
    images = [{"name": v.name, "psnr": v.psnr, "ssim": v.ssim} for v in views]
    metrics = {
        "format": 1,
        "test": {"psnr": 21.0, "ssim": 0.8, "lpips": None, "images": images},
        "train_seconds": 61.0,
        "gaussians": 4000,
        "peak_memory_bytes": 600 * 2**20,
        "backend": "cpu",
        "versions": {"featuresplat": "0.1.0", "torch": "2.13.0"},
    }
    layout = camera_layout(ring(), ["view_03.jpg"], cloud())
    config = [("steps", "3000", "7000")]
    return ReportData(
        "garden", "photos/garden", "fast", metrics, log, config, views, "All 3.", 0.25, layout, [], "0.1.0"
    )


class Page(HTMLParser):
    """Tags, attributes and texts; checks that tags nest."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_page_has_every_part_and_asks_for_nothing_outside():
    html = to_html(full_data())
    page, text = Page(html), " ".join(Page(html).texts)
    for heading in ("Test views", "Training", "Numbers", "Cameras", "Configuration"):
        assert heading in page.texts
    assert len(page.all("img")) == 12  # photograph, render, error, depth of three views
    assert all(i["src"].startswith("data:image/jpeg;base64,") and i["alt"] for i in page.all("img"))
    assert len(page.all("svg")) == 5  # loss, PSNR, Gaussians, top view, side view
    assert all(s["role"] == "img" and s["aria-label"] for s in page.all("svg"))
    assert not {"script", "link", "iframe", "object"} & {name for name, _ in page.tags}
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)|url\(|@import|https?://""", html)
    assert "21.00" in text
    assert "1 min 01 s" in text
    assert "4,000" in text
    assert "600 MiB" in text
    assert "25 % and more" in text
    assert len(html) < 200_000


def test_every_string_is_escaped():
    data = full_data()
    data.title = data.source = data.preset = data.views_note = data.version = EVIL
    data.notes = [EVIL]
    data.config = [(EVIL, EVIL, EVIL)]
    data.metrics |= {"backend": EVIL, "versions": {EVIL: EVIL}}
    data.metrics["test"]["images"][0]["name"] = EVIL
    for view in data.views:
        view.name = view.label = EVIL
    assert data.layout is not None
    data.layout.names[:] = [EVIL] * len(data.layout.names)
    html = to_html(data)
    page = Page(html)
    assert "<script" not in html
    assert not page.all("script")
    assert EVIL in page.texts  # and the reader still sees the name as it is
    assert all(set(i) == {"src", "width", "height", "alt"} for i in page.all("img"))
    assert page.all("img")[0]["alt"].startswith(EVIL)


def test_an_empty_run_is_told_not_hidden():
    text = " ".join(Page(to_html(ReportData("empty"))).texts)
    assert "n/a" in text
    assert "no log" in text
    assert "no metrics.json" in text
    assert "Every value is the default." in text


def test_renders_only():
    data = ReportData("bare", views=[View("a.jpg", picture(1), test=False)], notes=["The photographs are gone."])
    page = Page(to_html(data))
    assert len(page.all("img")) == 1
    assert "Training views" in page.texts
    assert "The photographs are gone." in page.texts
    assert "Error: 0 " not in page.texts  # no legend for what is not shown


def test_nan_anywhere_is_not_drawn_and_reads_not_available():
    nan = float("nan")
    data = full_data()
    data.log = [
        {"step": s, "loss": nan if s == 20 else 1.0 + s, "psnr": None, "seconds": nan} for s in range(0, 50, 10)
    ]
    data.log += [{"step": nan, "loss": 1.0}, {"step": "x"}, {}]
    data.metrics |= {"train_seconds": nan, "gaussians": "many", "peak_memory_bytes": None, "versions": 3}
    data.metrics["test"] = {"psnr": nan, "ssim": float("inf"), "images": [{"name": "a", "psnr": nan}, "junk"]}
    page = Page(to_html(data))
    attributes = [v for tag, attrs in page.tags if tag in ("path", "line", "circle", "text") for v in attrs.values()]
    assert not any("nan" in v or "inf" in v for v in attributes if v)
    assert page.texts.count("n/a") >= 6
    assert not any("nan" in text for text in page.texts)


def test_pictures_are_reduced_and_keep_their_shape():
    from featuresplat.io.html import PICTURE_WIDTH, data_uri

    small, large = data_uri(picture(0)), data_uri(torch.full((900, 1200, 3), 90, dtype=torch.uint8))
    assert size_of(small) == (64, 48)
    assert size_of(large) == (PICTURE_WIDTH, PICTURE_WIDTH * 3 // 4)


def size_of(uri: str) -> tuple[int, int]:
    import base64
    import io

    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))).size


def test_line_chart_is_wellformed_and_breaks_at_gaps():
    svg = line_chart("Loss & <more>", [("", [(0, 1.0), (10, 2.0), (20, None), (30, 3.0), (40, 4.0)], False)])
    root = ElementTree.fromstring(svg)
    path = next(e for e in root.iter("path") if "line" in e.attrib["class"])
    assert path.attrib["d"].count("M") == 2
    assert line_chart("none", [("", [(0, None), (1, float("nan"))], False)]) == ""
    ElementTree.fromstring(line_chart("one", [("", [(0, 5.0)], True)]))
    ElementTree.fromstring(line_chart("log", [("", [(0, 5.0), (1, 0.0), (2, -1.0), (3, 0.5)], False)], log=True))


def test_line_chart_goes_up_where_values_go_up():
    root = ElementTree.fromstring(line_chart("y", [("", [(0, 1.0), (100, 2.0)], False)]))
    path = next(e for e in root.iter("path") if "line" in e.attrib["class"]).attrib["d"]
    (x0, y0), (x1, y1) = ([float(v) for v in p.split()] for p in path[1:].split("L"))
    assert x1 > x0
    assert y1 < y0  # the SVG's y points down


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 7000, [0, 2000, 4000, 6000]), (17.2, 24.9, [18, 20, 22, 24]), (0, 1, [0, 0.5, 1]), (3, 3, [3])],
)
def test_nice_ticks(low, high, ticks):
    assert nice_ticks(low, high, 4) == pytest.approx(ticks)


def test_numbers_in_words():
    assert [short(v) for v in (0, 7000, 25_000, 1_250_000, 0.0251, 21.5)] == [
        "0", "7000", "25k", "1.25M", "0.0251", "21.5",
    ]  # fmt: skip
    assert [duration(s) for s in (9.84, 61, 292.4, 7500)] == ["9.8 s", "1 min 01 s", "4 min 52 s", "2 h 05 min"]
    assert [number(v) for v in (1, 2.5, True, "3", None, float("nan"), float("inf"))] == [1.0, 2.5] + [None] * 5


def test_layout_has_up_as_third_axis():
    layout = camera_layout(ring(height=1.0), ["view_03.jpg", "gone.jpg"], cloud())
    assert layout is not None
    # The ring is horizontal and one unit above the origin; world y points down.
    assert np.allclose(layout.positions[:, 2], 1.0, atol=1e-6)
    assert np.allclose(np.linalg.norm(layout.positions[:, :2], axis=1), 2.0, atol=1e-6)
    # The mean of the corner directions is the optical axis: towards the origin, of length 1.
    axis = layout.corners.mean(axis=1)
    assert np.allclose(axis, -layout.positions / math.sqrt(5), atol=1e-6)
    # Image top is above image bottom.
    assert (layout.corners[:, 0, 2] > layout.corners[:, 3, 2]).all()
    assert layout.test == [k == 3 for k in range(12)]


def test_layout_is_not_mirrored():
    """Three cameras on an L: going around them counter-clockwise from above stays counter-clockwise."""
    cameras = ring(8)
    layout = camera_layout(cameras, [])
    assert layout is not None
    a, b = layout.positions[0, :2], layout.positions[1, :2]
    # From +x to +z with y down is clockwise about the axis -y (up): x cross z = -y, so counter-clockwise seen from up.
    assert a[0] * b[1] - a[1] * b[0] > 0


def test_layout_of_one_camera_and_of_none():
    layout = camera_layout(ring(1), [])
    assert layout is not None
    assert np.isfinite(layout.positions).all()
    assert "<svg" in to_html(ReportData("one", layout=layout))
    assert camera_layout(ring(1)[[]], []) is None


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


def test_metrics_round_trip_into_the_page(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(full_data().metrics))
    data = ReportData("x", metrics=read_metrics(tmp_path / "metrics.json"))
    assert "21.000" in to_html(data)


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
