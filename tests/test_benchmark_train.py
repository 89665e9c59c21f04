"""The training benchmark reads a growing log rightly and says what was reached when."""

from __future__ import annotations

import json

import pytest
from benchmark_scripts import FOLDER, load


@pytest.fixture(scope="module")
def bench():
    return load("train")


def look(step: int, psnr: float) -> dict:
    seconds = {"training_seconds": step / 10, "wall_seconds": step / 5, "cpu_seconds": step / 4}
    return {"step": step, "test_psnr": psnr, "gaussians": 1000 + step, **seconds}


def test_a_level_is_reached_at_the_first_look_that_has_it(bench):
    looks = [look(100, 18.0), look(200, float("nan")), look(300, 21.9), look(400, 21.5)]
    assert bench.reached(looks, 18.0)["step"] == 100
    assert bench.reached(looks, 21.7)["step"] == 300
    assert bench.reached(looks, 22.0) is None
    assert bench.levels_of(looks, 21.7) == [17.0, 18.0, 19.0, 20.0, 21.0, 21.7]
    assert bench.levels_of([], 21.7) == [21.7]


def test_the_log_is_followed_line_by_line(bench, tmp_path):
    path = tmp_path / "log.jsonl"
    watch = bench.LogWatch(path)
    watch.poll()  # not there yet
    first = json.dumps({"step": 50, "gaussians": 7, "seconds": 1.0})
    second = json.dumps({"step": 100, "gaussians": 9, "seconds": 2.5, "test_psnr": 20.5})
    path.write_text(f"{first}\n{second[:12]}")
    watch.poll()
    assert watch.looks == []
    assert watch.last["step"] == 50
    path.write_text(f"{first}\n{second}\n")
    watch.poll()
    watch.poll()
    (found,) = watch.looks
    assert (found["step"], found["test_psnr"], found["training_seconds"], found["gaussians"]) == (100, 20.5, 2.5, 9)
    assert found["wall_seconds"] >= 0


def test_training_on_the_demo(bench, tmp_path, capsys):
    file = tmp_path / "rows.json"
    scene = FOLDER.parent / "data" / "demo"
    arguments = [str(scene), "--config", "draft", "--steps", "4", "--look", "2", "--downscale", "8", "--views", "2"]
    assert bench.main([*arguments, "--json", str(file), "--target", "5", "--device", "cpu"]) == 0
    report = json.loads(file.read_text())
    assert set(report) == {"machine", "versions", "commit", "load", "asked", "rows", "final"}
    assert [row["step"] for row in report["rows"]] == [2, 4]
    assert report["final"]["steps_per_second"] > 0
    assert "final: PSNR" in capsys.readouterr().out
    assert bench.main([*arguments, "--target", "60", "--device", "cpu"]) == 1
    assert "60 dB: not reached" in capsys.readouterr().err


def test_wrong_input_is_one_sentence(bench, tmp_path, capsys):
    assert bench.main([str(tmp_path / "nothing"), "--config", "draft"]) == 2
    assert bench.main([str(tmp_path), "--config", "drafd"]) == 2
    assert "draft" in capsys.readouterr().err
