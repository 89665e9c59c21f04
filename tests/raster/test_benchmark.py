"""The benchmark runs, and its JSON has the rows that others read."""

from __future__ import annotations

import json

import pytest
from benchmark_scripts import load

from featuresplat.raster import _native


@pytest.fixture(scope="module")
def rasterize():
    threads = None if _native.unavailable() else _native.num_threads()
    yield load("rasterize")
    if threads is not None:
        _native.set_num_threads(threads)


def test_rows(rasterize, tmp_path, capsys):
    file = tmp_path / "rows.json"
    arguments = ["--size", "48x32", "--gaussians", "400", "--dims", "0", "2", "--reps", "2", "--threads", "1"]
    assert rasterize.main([*arguments, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert set(report) == {"machine", "versions", "commit", "rows"}
    keys = {"backend", "pass", "D", "width", "height", "gaussians", "ms_median", "ms_min", "ratio"}
    assert all(set(row) == keys for row in report["rows"])
    found = {(r["backend"], r["pass"], r["D"]) for r in report["rows"]}
    assert {("reference", p, 2) for p in ("forward", "backward", "forward+backward", "lift")} <= found
    assert ("reference", "lift", 0) not in found  # nothing to lift
    assert all(r["ratio"] == 1.0 for r in report["rows"] if r["backend"] == "reference")
    assert all(0 < r["ms_min"] <= r["ms_median"] for r in report["rows"])
    assert "forward+backward" in capsys.readouterr().out


def test_a_backend_that_cannot_run_is_told(rasterize, capsys):
    assert rasterize.main(["--backends", "nothing"]) == 2
    assert "backend 'nothing' cannot run" in capsys.readouterr().err


def test_the_workload_is_what_it_says():
    """The small workload's statistics, as benchmarks/workloads.py states them."""
    workloads = load("workloads")
    w = workloads.matched(112_000, 640, 360)
    assert 1e-4 <= w.scales.min() < w.scales.max() <= 0.02
    found = workloads.statistics(w)
    assert found["tile_intersections"] == pytest.approx(234_060, rel=1e-3)
    assert found["median_per_tile"] == pytest.approx(184, abs=2)
    assert found["max_per_tile"] == pytest.approx(1411, rel=0.01)
    assert found["pairs_per_pixel"] == pytest.approx(53.0, abs=0.2)
    again = workloads.matched(112_000, 640, 360)
    assert all((getattr(w, n) == getattr(again, n)).all() for n in ("means", "quats", "scales", "opacities"))
