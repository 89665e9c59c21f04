"""How fast the rasterizer's backends are, side by side on the matched workload.

    python benchmarks/rasterize.py                     the reference against the engine, 640x360
    python benchmarks/rasterize.py --quick             the same with fewer channels and repetitions
    python benchmarks/rasterize.py --size 640x360 960x540 --dims 0 32
    python benchmarks/rasterize.py --stages            each stage of the engine, 1 M Gaussians at 1920x1080

D is the number of feature channels beside colour, alpha and depth. In every repetition each backend runs
once, in turn, so that what else the machine does meets all of them alike. ``ratio`` is the reference's
median time by this backend's. "backward" is the backward pass alone (all gradients: geometry, colours,
features), timed after a forward pass that recorded it; "forward+backward" is both. Measure on a machine
that does nothing else: the reference's many small parallel steps suffer more from busy cores than the
engine does.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import featuresplat as fs
from featuresplat import registry
from featuresplat.raster import _native

sys.path.insert(0, str(Path(__file__).parent))
from workloads import Workload, matched

STAGES = ("project", "sort", "bin", "blend", "backward: tiles", "backward: gather", "backward: project")
PASSES = ("forward", "backward", "forward+backward", "lift")


class Case:
    """One workload with D feature channels, ready to be run by any backend."""

    def __init__(self, w: Workload, dim: int):
        self.w = w
        self.leaves = [t.clone().requires_grad_() for t in (w.means, w.quats, w.scales, w.opacities, w.colors)]
        self.features = w.features(dim).requires_grad_() if dim else None
        g = torch.Generator().manual_seed(2)
        self.seeds = [torch.randn(1, w.height, w.width, c, generator=g) for c in ((3, dim) if dim else (3,))]
        self.maps = torch.randn(1, w.height, w.width, dim, generator=g) if dim else None

    def render(self, backend: str) -> list[torch.Tensor]:
        w = self.w
        out = fs.rasterize(
            *self.leaves, w.viewmats, w.Ks, w.width, w.height, features=self.features, backend=backend
        )  # fmt: skip
        return [t for t in (out.rgb, out.features) if t is not None]

    def backward(self, images: list[torch.Tensor]) -> None:
        leaves = [*self.leaves] if self.features is None else [*self.leaves, self.features]
        torch.autograd.grad(images, leaves, self.seeds)

    def run(self, backend: str) -> dict[str, float]:
        """Milliseconds of each pass, once."""
        times = {}
        with torch.no_grad():
            times["forward"], _ = clock(lambda: self.render(backend))
        recorded, images = clock(lambda: self.render(backend))
        times["backward"], _ = clock(lambda: self.backward(images))
        times["forward+backward"] = recorded + times["backward"]
        if self.maps is not None:
            w, (means, quats, scales, opacities, _) = self.w, (t.detach() for t in self.leaves)
            times["lift"], _ = clock(
                lambda: fs.lift(
                    means,
                    quats,
                    scales,
                    opacities,
                    w.viewmats,
                    w.Ks,
                    w.width,
                    w.height,
                    self.maps,
                    backend=backend,
                )
            )
        return times


def clock(call: Callable):
    """(milliseconds, result)."""
    start = time.perf_counter()
    result = call()
    return 1e3 * (time.perf_counter() - start), result


def sweep(w: Workload, dims: list[int], backends: list[str], reps: int) -> list[dict]:
    """Rows of one image size."""
    rows = []
    for dim in dims:
        case = Case(w, dim)
        times: dict[str, list[dict[str, float]]] = {b: [] for b in backends}
        for rep in range(reps + 1):
            for backend in backends:
                once = case.run(backend)
                if rep > 0:  # the first one warms up
                    times[backend].append(once)
        for name in PASSES:
            for backend in backends:
                ms = [t[name] for t in times[backend] if name in t]
                if not ms:
                    continue
                base = statistics.median(t[name] for t in times["reference"]) if "reference" in times else None
                rows.append(
                    {
                        "backend": backend,
                        "pass": name,
                        "D": dim,
                        "width": w.width,
                        "height": w.height,
                        "gaussians": len(w.means),
                        "ms_median": round(statistics.median(ms), 3),
                        "ms_min": round(min(ms), 3),
                        "ratio": None if base is None else round(base / statistics.median(ms), 2),
                    }
                )
                print(line(rows[-1]), flush=True)
    return rows


HEADER = (
    f"{'backend':<10} {'pass':<17} {'D':>5} {'size':>10} {'Gaussians':>10} "
    f"{'median ms':>10} {'min ms':>10} {'ratio':>7}"
)


def line(row: dict) -> str:
    size = f"{row['width']}x{row['height']}"
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.1f}x"
    return (
        f"{row['backend']:<10} {row['pass']:<17} {row['D']:>5} {size:>10} "
        f"{row['gaussians']:>10,} {row['ms_median']:>10.1f} {row['ms_min']:>10.1f} {ratio:>7}"
    )


def stages(w: Workload, dims: list[int], reps: int) -> list[dict]:
    """Median milliseconds of each stage of the native engine, forward and backward."""
    timings = _native.library().fs_timings
    timings.restype, values = None, (ctypes.c_double * len(STAGES))()
    rows = []
    for dim in dims:
        case, samples = Case(w, dim), []
        for _ in range(reps + 1):
            images = case.render("cpu")
            case.backward(images)
            timings(values)
            samples.append(list(values))
        medians = [statistics.median(column) for column in zip(*samples[1:], strict=True)]
        row = {"backend": "cpu", "D": dim, "width": w.width, "height": w.height, "gaussians": len(w.means)}
        rows.append({**row, "ms": {n: round(m, 2) for n, m in zip(STAGES, medians, strict=True)}})
        print(
            f"D={dim:<5}" + "  ".join(f"{n} {m:.1f}" for n, m in zip(STAGES, medians, strict=True)),
            flush=True,
        )
    return rows


def provenance(threads: int) -> dict:
    """Machine, versions and commit."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [text.split(":", 1)[1].strip() for text in info.read_text().splitlines() if "model name" in text]
        model = names[0] if names else model
    here = Path(__file__).resolve().parents[1]
    git = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    dirty = subprocess.run(["git", "-C", str(here), "status", "--porcelain"], capture_output=True, text=True)
    commit = git.stdout.strip() + ("-dirty" if dirty.stdout.strip() else "") if git.returncode == 0 else None
    instructions = _native.isa() if _native.unavailable() is None else None
    return {
        "machine": {"cpu": model, "cores": os.cpu_count(), "threads": threads, "instructions": instructions},
        "versions": {
            "featuresplat": fs.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "commit": commit,
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", metavar="WxH", help="image sizes (default 640x360; --stages 1920x1080)")
    parser.add_argument("--gaussians", type=int, help="default: in proportion, 112 k at 640x360, 1 M at 1920x1080")
    parser.add_argument("--dims", nargs="+", type=int, help="feature channels (default 3 32 128 512)")
    parser.add_argument("--reps", type=int, help="repetitions after one to warm up (default 10)")
    parser.add_argument("--backends", nargs="+", help="default: all that run here")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of the engine alike (default 2)")
    parser.add_argument("--stages", action="store_true", help="the native engine's stages, without the reference")
    parser.add_argument("--quick", action="store_true", help="fewer channels and repetitions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    a = arguments(argv)
    dims = a.dims or ([3, 32] if a.quick else [3, 32, 128, 512])
    reps = a.reps or (3 if a.quick else 10)
    runs_here = {n: registry.load("raster", n).unavailable() for n in registry.names("raster")}
    for name in a.backends or ():
        if runs_here.get(name, "there is no such backend") is not None:
            print(
                f"backend '{name}' cannot run: {runs_here.get(name, 'there is no such backend')}",
                file=sys.stderr,
            )
            return 2
    if a.stages and runs_here["cpu"]:
        print(f"backend 'cpu' cannot run: {runs_here['cpu']}", file=sys.stderr)
        return 2
    torch.set_num_threads(a.threads)
    if runs_here["cpu"] is None:
        _native.set_num_threads(a.threads)
    report = provenance(a.threads)
    # Workloads lie on the CPU: a backend of another device is for its own benchmark.
    usable = a.backends or [n for n in ("reference", "cpu") if runs_here[n] is None]
    rows: list[dict] = []
    if not a.stages:
        print(HEADER)
    for size in a.size or (["1920x1080"] if a.stages else ["640x360"]):
        width, height = (int(v) for v in size.lower().split("x"))
        full = width * height == 1920 * 1080
        count = a.gaussians or (1_000_000 if full else round(112_000 * width * height / (640 * 360)))
        w = matched(count, width, height)
        rows += stages(w, dims, reps) if a.stages else sweep(w, dims, usable, reps)
    if a.json:
        a.json.write_text(json.dumps({**report, "stages" if a.stages else "rows": rows}, indent=1) + "\n")
        print(f"wrote {a.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
