"""The CUDA engine on the reference workload, alone or against gsplat: times, memory, latency, kernels.

    python benchmarks/gpu_speed.py                                 the engine alone
    python benchmarks/gpu_speed.py --against gsplat                with gsplat 1.5.3 in the same process
    python benchmarks/gpu_speed.py --profile --dims 3 128          where the time goes, kernel by kernel

D channels are asked of everybody: for D = 3 as colours, above as features without colours (gsplat: colours of D
channels). Same Gaussians, camera, constants (eps2d 0.3, 16-pixel tiles, near, far) and incoming gradients. In every
repetition each contender runs each pass once, in turn, a different one first each time; times are between CUDA events,
call overhead included (``host_ms``: until the call came back). gsplat runs with packed=False, at its default
channel_chunk (32) and at the chunk that is fastest here for that pass.

Passes: ``forward``; ``backward`` (all gradients, after a recorded forward); ``features`` (backward to the features
alone); ``lift`` (a D-channel map onto the Gaussians; gsplat has no transpose, so its forward and backward are run, as
is done with it in practice).
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu_report import PASSES, merged, show
from workloads import Workload, matched

import featuresplat as fs

DIMS = (3, 16, 32, 64, 128, 256, 512)
CHUNKS = (32, 64, 128)
"""gsplat's choices. Above 128 its backward has no room in shared memory, and its forward is slower."""
DEVICE = "cuda"
SPLATS = ("means", "quats", "scales", "opacities")


class Case:
    """The workload on the GPU with D channels, and what flows back."""

    def __init__(self, w: Workload, dim: int):
        self.w, self.dim = w, dim
        values = w.colors if dim == 3 else w.features(dim)
        self.tensors = [getattr(w, n).to(DEVICE) for n in SPLATS] + [values.to(DEVICE)]
        self.viewmats, self.Ks = w.viewmats.to(DEVICE), w.Ks.to(DEVICE)
        g = torch.Generator(DEVICE).manual_seed(2)
        self.seed = torch.randn(1, w.height, w.width, dim, generator=g, device=DEVICE)

    def leaves(self, features_only: bool) -> list[Tensor]:
        last = len(self.tensors) - 1
        return [t.detach().requires_grad_(i == last or not features_only) for i, t in enumerate(self.tensors)]


class Ours:
    """featuresplat's CUDA backend."""

    def __init__(self, case: Case, precision: str):
        self.case, self.name, self.precision = case, f"featuresplat {precision}", precision

    def draw(self, leaves: list[Tensor], mode: str = "full") -> Tensor:
        c = self.case
        *splats, values = leaves
        colors, features = (values, None) if c.dim == 3 else (None, values)
        out = fs.rasterize(
            *splats, colors, c.viewmats, c.Ks, c.w.width, c.w.height, features=features, geometry_grad=mode,
            backend="cuda", precision=self.precision,
        )  # fmt: skip
        image = out.rgb if c.dim == 3 else out.features
        assert image is not None
        return image

    def features_only(self, leaves: list[Tensor]) -> Tensor:
        return self.draw(leaves, "none")

    def lift(self) -> Tensor:
        c = self.case
        return fs.lift(
            *c.tensors[:4], c.viewmats, c.Ks, c.w.width, c.w.height, c.seed, backend="cuda"
        )[0]  # fmt: skip


class Gsplat:
    """gsplat's ``rasterization``."""

    def __init__(self, case: Case, chunk: int):
        self.case, self.chunk = case, chunk
        self.name = f"gsplat chunk {chunk}"

    def draw(self, leaves: list[Tensor]) -> Tensor:
        from gsplat import rasterization  # pyright: ignore[reportMissingImports]

        c = self.case
        image, _, _ = rasterization(
            *leaves, c.viewmats, c.Ks, c.w.width, c.w.height, packed=False, eps2d=0.3, tile_size=16,
            channel_chunk=self.chunk,
        )  # fmt: skip
        return image

    features_only = draw

    def lift(self) -> Tensor:
        leaves = self.case.leaves(True)
        return torch.autograd.grad(self.draw(leaves), leaves[-1:], self.case.seed)[0]


def timed(call: Callable[[], Any]) -> tuple[float, float]:
    """(milliseconds between CUDA events around a call, milliseconds until the call came back)."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    clock = time.perf_counter()
    start.record()
    result = call()
    end.record()
    clock = time.perf_counter() - clock
    torch.cuda.synchronize()
    del result
    return start.elapsed_time(end), 1e3 * clock


def once(contender: Any, name: str) -> tuple[float, float]:
    """`timed` of one pass."""
    case: Case = contender.case
    if name == "forward":
        with torch.no_grad():
            return timed(lambda: contender.draw(case.tensors))
    if name == "lift":
        return timed(contender.lift)
    only = name == "features"
    leaves = case.leaves(only)
    image = contender.features_only(leaves) if only else contender.draw(leaves)
    torch.cuda.synchronize()
    return timed(lambda: torch.autograd.grad(image, leaves[-1:] if only else leaves, case.seed))


def peak(contender: Any, name: str) -> int:
    """Bytes of torch's memory that a pass (backward: with its forward) needs at most, beyond inputs and seeds."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once(contender, name)
    return torch.cuda.max_memory_allocated() - before


def works(contender: Any, name: str) -> str | None:
    """None when a pass runs, else what it said."""
    try:
        once(contender, name)
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError, ValueError, TypeError, fs.FeaturesplatError) as error:
        return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return None


def best_chunks(case: Case) -> dict[str, int]:
    """gsplat's fastest channel_chunk for each pass, by the best of three tries."""
    chosen = {}
    for name in PASSES:
        times = {}
        for chunk in (c for c in CHUNKS if c == 32 or c // 2 < case.dim):
            contender = Gsplat(case, chunk)
            if works(contender, name) is None:
                times[chunk] = min(once(contender, name)[0] for _ in range(3))
        chosen[name] = min(times, key=lambda c: times[c])
    return chosen


def measure(case: Case, contenders: dict[str, dict[str, Any]], reps: int) -> Iterator[dict]:
    """Rows of one channel count, as they come. ``contenders``: label -> pass -> who runs it."""
    for name in PASSES:
        running, times = {}, {}
        for label, by_pass in contenders.items():
            failure = works(by_pass[name], name)
            if failure is None:
                running[label], times[label] = by_pass[name], []
            else:
                print(f"{label} {name} D={case.dim}: {failure}", flush=True)
                yield {"contender": label, "pass": name, "D": case.dim, "failed": failure}
        mallocs = 0
        for rep in range(reps + 2):
            if rep == 2:
                mallocs = torch.cuda.memory_stats().get("num_device_alloc", 0)
            # Who runs first changes, since whoever follows another finds caches and memory as that one left them.
            turn = rep % max(len(running), 1)
            for label in [*running][turn:] + [*running][:turn]:
                ms = once(running[label], name)
                if rep >= 2:
                    times[label].append(ms)
        mallocs = torch.cuda.memory_stats().get("num_device_alloc", 0) - mallocs
        for label, contender in running.items():
            row = {
                "contender": label, "pass": name, "D": case.dim,
                "ms_median": round(statistics.median(ms for ms, _ in times[label]), 4),
                "ms_min": round(min(ms for ms, _ in times[label]), 4),
                "host_ms": round(statistics.median(host for _, host in times[label]), 4),
                "mallocs": mallocs,  # of the driver, by all contenders together; 0 when torch's cache has settled
                "peak_MiB": round(peak(contender, name) / 2**20, 1),
            }  # fmt: skip
            if isinstance(contender, Gsplat):
                row["channel_chunk"] = contender.chunk
            yield row


def agreement(case: Case, ours: Ours, theirs: Gsplat) -> dict:
    """Relative differences of images and gradients."""
    result = {}
    images, grads = [], []
    for contender in (ours, theirs):
        leaves = case.leaves(False)
        image = contender.draw(leaves)
        grads.append(torch.autograd.grad(image, leaves, case.seed))
        images.append(image.detach())
    pairs = [("image", *images), *((n, a, b) for n, a, b in zip((*SPLATS, "values"), *grads, strict=True))]
    for name, a, b in pairs:
        result[name] = float((a.double() - b.double()).norm() / b.double().norm())
    return {"D": case.dim, "relative_difference": {n: float(f"{v:.2e}") for n, v in result.items()}}


def latency(contender_of: Callable[[Case], Any], calls: int = 200) -> dict[str, float]:
    """Microseconds a call takes on a scene too small for the GPU to matter: the host's overhead."""
    w = matched(300, 64, 64)
    case = Case(w, 3)
    contender = contender_of(case)
    leaves = case.leaves(False)

    def forward() -> None:
        with torch.no_grad():
            contender.draw(case.tensors)

    def both() -> None:
        torch.autograd.grad(contender.draw(leaves), leaves, case.seed)

    found = {}
    for name, call in (("forward", forward), ("forward+backward", both)):
        for _ in range(20):
            call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        found[name] = round(1e6 * (time.perf_counter() - start) / calls, 1)
    return found


def profile(case: Case, contender: Any, reps: int = 5) -> list[dict]:
    """Microseconds of each kernel in one forward, one backward and one lift: means over ``reps``."""
    rows = []
    for name in PASSES:
        if works(contender, name) is not None:
            continue
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as p:
            for _ in range(reps):
                once(contender, name)
            torch.cuda.synchronize()
        for e in p.key_averages():
            us = getattr(e, "self_device_time_total", 0) or getattr(e, "self_cuda_time_total", 0)
            if us > 0:
                rows.append(
                    {"pass": name, "D": case.dim, "kernel": e.key[:60], "us": us / reps, "calls": e.count / reps}
                )
    return rows


def provenance() -> dict:
    """Machine, versions and commit."""
    here = Path(__file__).resolve().parents[1]
    git = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = os.environ.get("FEATURESPLAT_COMMIT") or (git.stdout.strip() if git.returncode == 0 else None)
    p = torch.cuda.get_device_properties(0)
    versions = {"featuresplat": fs.__version__, "torch": torch.__version__, "python": platform.python_version()}
    versions["cuda"] = torch.version.cuda or ""
    from featuresplat.raster import _nvrtc_compile

    versions["nvrtc"] = ".".join(map(str, _nvrtc_compile.version()))
    machine = {"gpu": p.name, "memory_GiB": round(p.total_memory / 2**30), "multiprocessors": p.multi_processor_count}
    return {"machine": machine, "versions": versions, "commit": commit}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="+", type=int, default=list(DIMS))
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"], choices=["fp32", "fp16"])
    parser.add_argument("--against", choices=["gsplat"])
    parser.add_argument("--reps", type=int, default=20)
    parser.add_argument("--size", default="1920x1080", metavar="WxH")
    parser.add_argument("--gaussians", type=int, default=1_000_000)
    parser.add_argument("--profile", action="store_true", help="kernel times in place of the table")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--no-latency", action="store_true")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE", help="show reports again, as one; no GPU")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    a = arguments(argv)
    if a.table:
        report = merged(a.table)
        if a.json:
            a.json.write_text(json.dumps(report, indent=1) + "\n")
        show(report)
        return 0
    if not torch.cuda.is_available():
        print("gpu_speed.py needs an NVIDIA GPU", file=sys.stderr)
        return 2
    faulthandler.enable()
    width, height = (int(v) for v in a.size.split("x"))
    w = matched(a.gaussians, width, height)
    report: dict[str, Any] = {**provenance(), "size": a.size, "gaussians": a.gaussians, "reps": a.reps}
    rows: list[dict] = []
    profiles: list[dict] = []
    agreements: list[dict] = []
    start = time.perf_counter()
    for dim in a.dims:
        case = Case(w, dim)
        ours = {f"featuresplat {p}": dict.fromkeys(PASSES, Ours(case, p)) for p in a.precision}
        if a.profile:
            profiles += profile(case, Ours(case, a.precision[0]))
            continue
        contenders: dict[str, dict[str, Any]] = ours
        if a.against:
            agreements.append(agreement(case, Ours(case, a.precision[0]), Gsplat(case, 32)))
            print(agreements[-1], flush=True)
            best = best_chunks(case)
            contenders = ours | {
                "gsplat default": dict.fromkeys(PASSES, Gsplat(case, 32)),
                "gsplat best": {name: Gsplat(case, best[name]) for name in PASSES},
            }
        for row in measure(case, contenders, a.reps):
            rows.append(row)
            report |= {"rows": rows, "agreement": agreements}
            if a.json:  # now: a contender may take the process with it
                a.json.write_text(json.dumps(report, indent=1) + "\n")
        print(f"D={dim} after {time.perf_counter() - start:.0f} s", flush=True)
        del case, ours, contenders
        gc.collect()
        torch.cuda.empty_cache()
    if not a.profile and not a.no_latency:
        report["latency_us"] = {"featuresplat": latency(lambda c: Ours(c, "fp32"))}
        if a.against:
            report["latency_us"]["gsplat"] = latency(lambda c: Gsplat(c, 32))
    report |= {"rows": rows, "profile": profiles, "agreement": agreements}
    if a.json:
        a.json.write_text(json.dumps(report, indent=1) + "\n")
    show(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
