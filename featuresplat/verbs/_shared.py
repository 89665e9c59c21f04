"""What the verbs share: arguments, progress, the closing lines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import tyro

from featuresplat.errors import FeaturesplatError

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
Flag = tyro.conf.FlagCreatePairsOff[bool]


def given(verb: str, value: str, what: str, example: str) -> Path:
    if not value:
        raise FeaturesplatError(f"{verb}: expected {what}, got none.", f"Give it: featuresplat {verb} {example}")
    return Path(value)


def progress(numbers: Iterable[int], word: str) -> Iterable[int]:
    from featuresplat.trainlog import progress_bar

    return progress_bar(numbers, word)


def summary(run: Path) -> None:
    """Where a run's results lie."""
    import json

    metrics = run / "metrics.json"
    if metrics.is_file():
        values = json.loads(metrics.read_text(encoding="utf-8"))
        test = values.get("test") or {}
        if test.get("psnr") is not None:
            views = f"{len(test['images'])} test views"
            print(f"PSNR {test['psnr']:.2f} dB, SSIM {test['ssim']:.3f} on {views}, {values['gaussians']} Gaussians")
    print(f"run     {run}")
    print(f"splats  {run / 'gaussians.ply'}")
    if (run / "report.html").is_file():
        print(f"open    {(run / 'report.html').resolve().as_uri()}")


def interactive() -> bool:
    """Somebody sits at a terminal: it makes sense to wait for a Ctrl-C."""
    import sys

    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
