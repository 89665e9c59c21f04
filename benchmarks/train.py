"""How many seconds a scene takes to reach a PSNR on its held-out views.

    python benchmarks/train.py SCENE --config draft --downscale 2 --split every --target 21.7
    python benchmarks/train.py SCENE --config fast --json fast.json

Trains once in this process and reads the run's own log while it grows. A level counts as reached at the first
look at the test views whose mean is at least that; looks are ``--look`` steps apart. "wall" runs from the call
until the look's line is in the log: reading the photographs and all looks at test views are in it; "CPU" is what
this process used of all cores until then. "training" is the clock of the log itself: steps and earlier looks,
without the reading. The last line is the final evaluation on all test views. Measure on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

from featuresplat.config import TrainConfig, load_config
from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _native

sys.path.insert(0, str(Path(__file__).parent))
from rasterize import provenance

LEVELS = range(16, 41)
"""PSNR levels of the table, dB."""


class LogWatch(threading.Thread):
    """Follows a log.jsonl while another thread writes it, and stamps every look at the test views."""

    def __init__(self, path: Path, interval: float = 0.1):
        super().__init__(daemon=True)
        self.path, self.interval = path, interval
        self.looks: list[dict[str, Any]] = []
        self.last: dict[str, Any] = {}
        self._read = 0
        self._ended = threading.Event()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def run(self) -> None:
        while not self._ended.wait(self.interval):
            self.poll()

    def finish(self) -> None:
        self._ended.set()
        self.join()
        self.poll()

    def poll(self) -> None:
        """Take in the whole lines that are new."""
        if not self.path.is_file():
            return
        with open(self.path, "rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]  # the rest is still being written
        self._read += len(whole)
        for line in whole.splitlines():
            row = json.loads(line)
            self.last = row
            if row.get("test_psnr") is None:
                continue
            look = {"step": row["step"], "test_psnr": row["test_psnr"], "gaussians": row["gaussians"]}
            look |= {"training_seconds": row["seconds"], "wall_seconds": round(time.perf_counter() - self._wall, 2)}
            self.looks.append(look | {"cpu_seconds": round(time.process_time() - self._cpu, 2)})


def reached(looks: list[dict[str, Any]], level: float) -> dict[str, Any] | None:
    """The first look at which the test views' mean PSNR was at least ``level``."""
    return next((look for look in looks if math.isfinite(look["test_psnr"]) and look["test_psnr"] >= level), None)


def measure(scene: Path, config: TrainConfig, run: Path) -> dict[str, Any]:
    """Train once and return the looks and the final numbers."""
    from featuresplat.trainer import train

    config.out, config.overwrite, config.report = run, True, False
    watch = LogWatch(run / "log.jsonl")
    wall, cpu = time.perf_counter(), time.process_time()
    watch.start()
    try:
        train(scene, config, progress=False)
    finally:
        watch.finish()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    seconds = watch.last.get("seconds") or metrics["train_seconds"]
    return {
        "looks": watch.looks,
        "final": {
            "psnr": metrics["test"]["psnr"],
            "ssim": metrics["test"]["ssim"],
            "steps": config.steps,
            "gaussians": metrics["gaussians"],
            "train_seconds": metrics["train_seconds"],
            "wall_seconds": round(wall, 2),
            "cpu_seconds": round(cpu, 2),
            "steps_per_second": round(config.steps / seconds, 3),
            "peak_memory_bytes": metrics["peak_memory_bytes"],
            "backend": metrics["backend"],
        },
    }


def table(result: dict[str, Any], levels: list[float]) -> str:
    """Seconds to each level that lies in the run's range, and the final numbers."""
    looks, final = result["looks"], result["final"]
    lines = [f"{'PSNR, dB':>9} {'step':>7} {'training s':>11} {'wall s':>8} {'CPU s':>8} {'Gaussians':>10}"]
    for level in levels:
        look = reached(looks, level)
        if look is None:
            lines.append(f"{level:>9g} {'not reached':>7}")
            continue
        lines.append(
            f"{level:>9g} {look['step']:>7} {look['training_seconds']:>11.1f} {look['wall_seconds']:>8.1f} "
            f"{look['cpu_seconds']:>8.1f} {look['gaussians']:>10,}"
        )
    scores = [f"{name} {'n/a' if value is None else format(value, form)}" for name, value, form in (
        ("PSNR", final["psnr"], ".2f"), ("SSIM", final["ssim"], ".4f"),
    )]  # fmt: skip
    lines.append(
        f"final: {', '.join(scores)} after {final['steps']:,} steps, {final['train_seconds']:.1f} s of training "
        f"({final['wall_seconds']:.1f} s wall, {final['cpu_seconds']:.1f} s CPU in all), "
        f"{final['steps_per_second']:.1f} steps/s, {final['gaussians']:,} Gaussians, "
        f"{final['peak_memory_bytes'] / 2**20:,.0f} MiB at peak, backend {final['backend']}"
    )
    return "\n".join(lines)


def levels_of(looks: list[dict[str, Any]], target: float | None) -> list[float]:
    """Whole decibels from the first look to the best one, and the target."""
    seen = [look["test_psnr"] for look in looks if math.isfinite(look["test_psnr"])]
    levels = {float(v) for v in LEVELS if seen and seen[0] - 1 <= v <= max(seen)}
    return sorted(levels | ({target} if target is not None else set()))


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="anything that `featuresplat train` takes")
    parser.add_argument("--config", default="fast", help="preset or YAML file (default fast)")
    parser.add_argument("--downscale", type=int, help="divide the image size by this")
    parser.add_argument("--split", choices=("auto", "every"), help="the data's own test views, or every 8th")
    parser.add_argument("--steps", type=int, help="default: the preset's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--budget", type=int, help="most Gaussians; default: the preset's")
    parser.add_argument("--target", type=float, metavar="DB", help="exit with 1 when the test PSNR stays below")
    parser.add_argument("--look", type=int, help="steps between two looks at the test views (default: a 30th of all)")
    parser.add_argument("--views", type=int, default=1_000_000, help="test views of a look (default all)")
    parser.add_argument("--threads", type=int, help="of torch and of the engine (default: as they choose)")
    parser.add_argument("--out", type=Path, help="keep the run here; default: a temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    return parser.parse_args(argv)


def configured(a: argparse.Namespace) -> TrainConfig:
    """The preset with what the command line changes."""
    config = load_config(a.config)
    config.seed, config.device = a.seed, a.device
    config.steps = a.steps or config.steps
    config.eval_every = a.look or max(config.steps // 30, 1)
    config.eval_views = a.views
    config.data.downscale = config.data.downscale if a.downscale is None else a.downscale
    config.data.split = a.split or config.data.split
    config.model.budget = a.budget or config.model.budget
    return config


def main(argv: list[str] | None = None) -> int:
    a = arguments(argv)
    if a.threads:
        torch.set_num_threads(a.threads)
        if _native.unavailable() is None:
            _native.set_num_threads(a.threads)
    try:
        config = configured(a)
        with tempfile.TemporaryDirectory() as folder:
            result = measure(a.scene, config, a.out or Path(folder) / "run")
    except FeaturesplatError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(result, levels_of(result["looks"], a.target)))
    if a.json:
        threads = a.threads or torch.get_num_threads()
        asked = {"scene": a.scene.name, "config": a.config, "downscale": config.data.downscale, "seed": a.seed}
        asked |= {"split": config.data.split, "steps": config.steps, "budget": config.model.budget}
        report = {**provenance(threads), "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}
        a.json.write_text(json.dumps({**report, "asked": asked, "rows": result["looks"], "final": result["final"]},
                                     indent=1) + "\n")  # fmt: skip
        print(f"wrote {a.json}")
    if a.target is not None and reached(result["looks"], a.target) is None:
        print(f"target {a.target:g} dB: not reached", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
