"""The page of a report: complete, self-contained, escaped, and calm about what is missing."""

from __future__ import annotations

import json
import re

import torch
from report_data import Page, full_data, picture

from featuresplat._report.data import ReportData, View
from featuresplat._report.page import duration, number, to_html
from featuresplat._report.svg import short
from featuresplat.report import read_metrics

EVIL = '<script>alert("x")</script>\'"&.png'


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


def test_numbers_in_words():
    assert [short(v) for v in (0, 7000, 25_000, 1_250_000, 0.0251, 21.5)] == [
        "0", "7000", "25k", "1.25M", "0.0251", "21.5",
    ]  # fmt: skip
    assert [duration(s) for s in (9.84, 61, 292.4, 7500)] == ["9.8 s", "1 min 01 s", "4 min 52 s", "2 h 05 min"]
    assert [number(v) for v in (1, 2.5, True, "3", None, float("nan"), float("inf"))] == [1.0, 2.5] + [None] * 5


def test_metrics_round_trip_into_the_page(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(full_data().metrics))
    data = ReportData("x", metrics=read_metrics(tmp_path / "metrics.json"))
    assert "21.000" in to_html(data)
