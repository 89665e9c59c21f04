"""The report's HTML: from what was gathered to one page that needs nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from featuresplat._report.svg import Points, layout_chart, line_chart, short
from featuresplat.io.html import figure, ramp

if TYPE_CHECKING:
    from featuresplat._report.data import ReportData, View
    from featuresplat._report.layout import Layout

CURVE_POINTS = 240
"""Longer curves are averaged to this many points."""
NONE = "n/a"


def to_html(data: ReportData) -> str:
    """The whole page; every string of the run is escaped, and a content policy forbids requests."""
    css = (resources.files("featuresplat._report") / "report.css").read_text(encoding="utf-8")
    notes = "".join(f"<li>{escape(n)}</li>" for n in data.notes)
    preset = f", preset {escape(data.preset)}" if data.preset else ""
    body = [
        f"<header><h1>{escape(data.title)}</h1>",
        f'<p class="sub">Trained from {escape(data.source or "an unknown source")}{preset}</p></header>',
        _stats(data.metrics),
        f'<ul class="notes">{notes}</ul>' if notes else "",
        _views(data),
        *(f"<section><h2>{escape(title)}</h2>{html}</section>" for title, html in data.sections),
        _curves(data.log),
        _numbers(data.metrics),
        _layout(data.layout) if data.layout is not None else "",
        _config(data.config),
        f"<footer>featuresplat {escape(data.version)}</footer>",
    ]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(data.title)} - featuresplat report</title><style>\n{css}</style></head>\n"
        f"<body><main>\n{chr(10).join(part for part in body if part)}\n</main></body></html>\n"
    )


def number(value: Any) -> float | None:
    """``value`` as a finite number, else None: logs and metrics may hold NaN, null or nonsense."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def duration(seconds: float) -> str:
    """12.3 s, 4 min 52 s, 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _text(value: Any, form: str, unit: str = "") -> str:
    """A formatted number with its unit in small, or n/a."""
    known = number(value)
    return NONE if known is None else f"{known:{form}}" + (f" <small>{unit}</small>" if unit else "")


def _bytes(value: Any) -> str:
    known = number(value)
    if known is None:
        return NONE
    return f"{known / 2**30:.2f} GiB" if known >= 2**30 else f"{known / 2**20:.0f} MiB"


def _test(metrics: dict[str, Any]) -> dict[str, Any]:
    test = metrics.get("test")
    return test if isinstance(test, dict) else {}


def _stats(metrics: dict[str, Any]) -> str:
    test, seconds = _test(metrics), number(metrics.get("train_seconds"))
    items = [("Test PSNR", _text(test.get("psnr"), ".2f", "dB")), ("Test SSIM", _text(test.get("ssim"), ".3f"))]
    if number(test.get("lpips")) is not None:
        items.append(("Test LPIPS", _text(test["lpips"], ".3f")))
    items.append(("Gaussians", _text(metrics.get("gaussians"), ",.0f")))
    items.append(("Training time", NONE if seconds is None else duration(seconds)))
    items.append(("Backend", escape(str(metrics.get("backend") or NONE))))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in items)
    return f'<dl class="stats">{cells}</dl>'


def _views(data: ReportData) -> str:
    if not data.views:
        return ""
    what = "Test views" if all(v.test for v in data.views) else "Training views"
    rows = "".join(_view(v) for v in data.views)
    bar = ramp()
    legends = f"<div>Depth: far {bar} near; black where nothing is</div>"
    if any(v.error is not None for v in data.views):
        top = f"{100 * data.error_scale:.0f} % and more"
        legends = f"<div>Error: 0 {bar} {top} of full brightness{_masked(data.views)}</div>" + legends
    return (
        f'<section><h2>{what}</h2><p class="note">{escape(data.views_note)}</p>'
        f'<div class="legends">{legends}</div>{rows}</section>'
    )


def _masked(views: Sequence[View]) -> str:
    return "; black where masks leave pixels out" if any(v.masked for v in views) else ""


def _view(view: View) -> str:
    name = escape(view.name or "unnamed view")
    facts = [escape(view.label)] if view.label else []
    if view.psnr is not None:
        facts.append(f"PSNR {view.psnr:.2f} dB")
    if view.ssim is not None:
        facts.append(f"SSIM {view.ssim:.3f}")
    figures = []
    if view.truth is not None:
        figures.append(figure(view.truth, "Photograph", f"{name}: photograph"))
    figures.append(figure(view.render, "Render", f"{name}: render of the scene"))
    if view.error is not None:
        mean = "" if view.mean_error is None else f", mean {100 * view.mean_error:.1f} %"
        figures.append(figure(view.error, f"Error{mean}", f"{name}: absolute difference of render and photograph"))
    if view.depth is not None:
        span = "" if view.depth_range is None else f", {view.depth_range[0]:.3g} to {view.depth_range[1]:.3g} units"
        figures.append(figure(view.depth, f"Depth{span}", f"{name}: depth{span}"))
    few = " few" if len(figures) < 4 else ""
    return (
        f'<article class="view"><header><h3>{name}</h3>{"".join(f"<span>{f}</span>" for f in facts)}</header>'
        f'<div class="pictures{few}">{"".join(figures)}</div></article>'
    )


def _curves(log: list[dict[str, Any]]) -> str:
    loss, train, test, count = (_column(log, key) for key in ("loss", "psnr", "test_psnr", "gaussians"))
    # Test views are looked at now and then: the rows between are no gaps in the curve.
    test = [p for p in test if p[1] is not None]
    cards = [
        _chart("Loss", line_chart("Loss", [("", loss, False)], log=True), []),
        _chart(
            "PSNR, dB",
            line_chart("PSNR", [("training", train, False), ("test", test, True)]),
            [("s1", "training view, running mean", train), ("s2", "test views, mean", test)],
        ),
        _chart("Gaussians", line_chart("Gaussians", [("", count, False)], zero=True), []),
    ]
    if not any(cards):
        return '<section><h2>Training</h2><p class="note">The run has no log, so there are no curves.</p></section>'
    seconds = [s for _, s in _column(log, "seconds", thin=False) if s is not None]
    steps = [int(row["step"]) for row in log if number(row.get("step")) is not None]
    pace = f" in {duration(max(seconds))}" if seconds else ""
    note = f'<p class="note">{max(steps):,} steps{pace}; each chart runs over the steps.</p>'
    return f'<section><h2>Training</h2>{note}<div class="cards">{"".join(cards)}</div></section>'


def _column(log: list[dict[str, Any]], key: str, thin: bool = True) -> Points:
    """(step, value) of one column; averaged in neighbours when there are many."""
    rows = [(number(r.get("step")), number(r.get(key))) for r in log]
    points: list[tuple[float, float | None]] = [(s, v) for s, v in rows if s is not None]
    every = math.ceil(len(points) / CURVE_POINTS) if thin and key != "test_psnr" else 1
    if every < 2:
        return points
    out: list[tuple[float, float | None]] = []
    for start in range(0, len(points), every):
        group = points[start : start + every]
        known = [v for _, v in group if v is not None]
        out.append((group[-1][0], sum(known) / len(known) if known else None))
    return out


def _chart(title: str, svg: str, key: list[tuple[str, str, Points]]) -> str:
    if not svg:
        return ""
    shown = [(c, label) for c, label, points in key if any(v is not None for _, v in points)]
    keys = "".join(f'<span class="{c}">{label}</span>' for c, label in shown)
    return f'<div class="card"><h3>{title}</h3>{f"""<div class="key">{keys}</div>""" if keys else ""}{svg}</div>'


def _numbers(metrics: dict[str, Any]) -> str:
    if not metrics:
        return '<section><h2>Numbers</h2><p class="note">The run has no metrics.json yet.</p></section>'
    listed = _test(metrics).get("images")
    images = [i for i in listed if isinstance(i, dict)] if isinstance(listed, list) else []
    images.sort(key=lambda i: (number(i.get("psnr")) is None, number(i.get("psnr")) or 0.0))
    rows = "".join(
        f'<tr><th scope="row">{escape(str(i.get("name", "")))}</th><td class="num">{_text(i.get("psnr"), ".2f")}</td>'
        f'<td class="num">{_text(i.get("ssim"), ".3f")}</td></tr>'
        for i in images
    )
    per_image = (
        '<div class="card scroll"><table><caption>Test images, worst first</caption><thead><tr><th scope="col">Image'
        '</th><th scope="col" class="num">PSNR, dB</th><th scope="col" class="num">SSIM</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        if rows
        else ""
    )
    test, seconds = _test(metrics), number(metrics.get("train_seconds"))
    facts = [
        ("Test PSNR", _text(test.get("psnr"), ".3f", "dB")),
        ("Test SSIM", _text(test.get("ssim"), ".4f")),
        ("Test LPIPS", _text(test.get("lpips"), ".4f")),
        ("Gaussians", _text(metrics.get("gaussians"), ",.0f")),
        ("Training time", NONE if seconds is None else duration(seconds)),
        ("Peak memory", _bytes(metrics.get("peak_memory_bytes"))),
        ("Backend", escape(str(metrics.get("backend") or NONE))),
    ]
    versions = metrics.get("versions")
    if isinstance(versions, dict):
        facts += [(escape(str(name)), escape(str(value))) for name, value in versions.items()]
    run = "".join(f'<tr><th scope="row">{name}</th><td class="num">{value}</td></tr>' for name, value in facts)
    table = f'<div class="card scroll"><table><caption>The run</caption><tbody>{run}</tbody></table></div>'
    return f'<section><h2>Numbers</h2><div class="cards">{table}{per_image}</div></section>'


def _layout(layout: Layout) -> str:
    views = [("Top view", (0, 1)), ("Side view", (0, 2))]
    tests = sum(layout.test)
    key = '<div class="key"><span class="s1">training cameras</span>' + (
        '<span class="s2">test cameras</span></div>' if tests else "</div>"
    )
    charts = []
    for title, axes in views:
        svg = layout_chart(
            title, axes, layout.positions, layout.corners, layout.names, layout.test, layout.points
        )  # fmt: skip
        if svg:
            charts.append(f'<div class="card"><h3>{title}</h3>{key}{svg}</div>')
    if not charts:
        return ""
    note = (
        f"{len(layout.names) - tests} training and {tests} test cameras; dots are a sample of "
        f"{short(len(layout.points))} Gaussians. Which way is up is judged from the cameras."
    )
    return f'<section><h2>Cameras</h2><p class="note">{note}</p><div class="cards">{"".join(charts)}</div></section>'


def _config(rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return '<section><h2>Configuration</h2><p class="note">Every value is the default.</p></section>'
    cells = "".join(
        f'<tr><th scope="row"><code>{escape(key)}</code></th><td><code>{escape(value)}</code></td>'
        f"<td><code>{escape(default)}</code></td></tr>"
        for key, value, default in rows
    )
    return (
        '<section><h2>Configuration</h2><p class="note">The values that differ from the defaults; '
        "config.yaml in the run folder holds all of them.</p>"
        '<div class="card scroll"><table><thead><tr><th scope="col">Key</th><th scope="col">Value</th>'
        f'<th scope="col">Default</th></tr></thead><tbody>{cells}</tbody></table></div></section>'
    )
