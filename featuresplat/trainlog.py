"""What a training tells while it runs: a progress bar, log.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featuresplat.errors import FeaturesplatError


class TrainLog:
    """Progress for people (a bar with ETA) and for programs (one JSON object a line in ``log.jsonl``).

    Args:
        folder: the run folder.
        word: what is trained.
        steps: how many there will be.
        start: the step to go on from; later lines of an older log are dropped.
        progress: show the bar (and plain lines where no terminal is attached).
        tensorboard: write events too.
    """

    def __init__(self, folder: Path, word: str, steps: int, start: int, progress: bool, tensorboard: bool):
        self.path = folder / "log.jsonl"
        self._keep_until(start)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the training is
        self._events = _event_writer(folder) if tensorboard else None
        self._bar = _bar(word, steps, start) if progress else None
        self._word, self._test = word, ""
        self._last = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        """One line of log.jsonl, and its numbers to TensorBoard."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._events is not None:
            for key, value in row.items():
                if key != "step" and isinstance(value, (int, float)):
                    self._events.add_scalar(key, value, row["step"])

    def show(self, step: int, text: str) -> None:
        """Move the bar; without a terminal, print a line now and then."""
        if self._bar is None:
            return
        self._bar.update(self._bar.tasks[0].id, completed=step, text=f"{text}{self._test}")
        if not self._bar.console.is_terminal and time.monotonic() - self._last > 15:
            self._last = time.monotonic()
            total = self._bar.tasks[0].total
            print(f"{self._word}: step {step}/{total:.0f}  {text}{self._test}", flush=True)

    def test(self, psnr: float) -> None:
        self._test = f"  test {psnr:.2f} dB"

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()
        if self._bar is not None:
            self._bar.stop()

    def _keep_until(self, start: int) -> None:
        """A killed run has logged beyond its last checkpoint; the resumed one will log those steps again."""
        if not self.path.is_file():
            return
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= start:
                    rows.append(line + "\n")
            except (ValueError, KeyError):
                continue
        self.path.write_text("".join(rows) if start else "", encoding="utf-8")


def progress_bar(numbers: Iterable[int], word: str) -> Iterable[int]:
    """A bar on standard error that goes away when the loop ends."""
    from rich.console import Console
    from rich.progress import track

    return track(numbers, description=word, console=Console(stderr=True), transient=True)


def _bar(word: str, steps: int, start: int):
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(word), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("ETA"))
    bar = Progress(
        *columns, TimeRemainingColumn(), TextColumn("{task.fields[text]}"), console=Console(file=sys.stdout)
    )  # fmt: skip
    bar.add_task("train", total=steps, completed=start, text="")
    if bar.console.is_terminal:
        bar.start()
    return bar


def _event_writer(folder: Path):
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise FeaturesplatError(
            "tensorboard: the package is not installed", "Run 'pip install tensorboard' or leave --tensorboard out."
        ) from None
    return SummaryWriter(str(folder / "tensorboard"))
