"""What a training writes down and shows."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from featuresplat.errors import FeaturesplatError
from featuresplat.trainlog import TrainLog


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def log(folder: Path, start: int = 0, progress: bool = False, tensorboard: bool = False) -> TrainLog:
    return TrainLog(folder, "static", 100, start, progress, tensorboard)


def test_one_object_a_line_at_once(tmp_path):
    writer = log(tmp_path)
    writer.write({"step": 10, "loss": 0.5})
    assert rows(tmp_path) == [{"step": 10, "loss": 0.5}]  # before it is closed
    writer.write({"step": 20, "loss": 0.25})
    writer.close()
    assert [r["step"] for r in rows(tmp_path)] == [10, 20]


def test_a_resumed_run_drops_what_it_will_log_again(tmp_path):
    lines = [json.dumps({"step": s}) for s in (10, 20, 30)]
    (tmp_path / "log.jsonl").write_text("\n".join(lines) + '\n{"step": 4')  # killed in the middle of a line
    writer = log(tmp_path, start=20)
    writer.write({"step": 30, "again": True})
    writer.close()
    assert rows(tmp_path) == [{"step": 10}, {"step": 20}, {"step": 30, "again": True}]


def test_a_new_run_starts_an_empty_log(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 0}\n{"step": 10}\n')
    log(tmp_path).close()
    assert rows(tmp_path) == []


def test_lines_without_a_step_are_dropped(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"loss": 1}\nnonsense\n{"step": 5}\n')
    log(tmp_path, start=10).close()
    assert rows(tmp_path) == [{"step": 5}]


def test_silent_without_progress(tmp_path, capsys):
    writer = log(tmp_path)
    writer.show(10, "loss 0.5")
    writer.test(20.0)
    writer.close()
    assert capsys.readouterr().out == ""


def test_without_a_terminal_a_line_now_and_then(tmp_path, capsys):
    writer = log(tmp_path, progress=True)
    writer.test(21.5)
    writer.show(10, "loss 0.5")  # too soon after the start
    writer._last -= 16
    writer.show(20, "loss 0.4")
    writer.show(30, "loss 0.3")
    writer.close()
    out = capsys.readouterr().out
    assert out.count("step ") == 1
    assert "static: step 20/100  loss 0.4  test 21.50 dB" in out


def test_tensorboard_missing_is_told_with_its_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(FeaturesplatError, match="tensorboard: the package is not installed") as caught:
        log(tmp_path, tensorboard=True)
    assert "pip install tensorboard" in caught.value.hint


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the package tensorboard is not installed")
def test_tensorboard_gets_events(tmp_path):
    writer = log(tmp_path, tensorboard=True)
    writer.write({"step": 10, "loss": 0.5})
    writer.close()
    assert any((tmp_path / "tensorboard").iterdir())
