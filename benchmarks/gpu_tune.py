"""Which shapes of the kernels are fastest on this GPU: every variant's kernels timed one by one, in one process.

    python benchmarks/gpu_tune.py [--dims 32 128 512] [--only features lift]

Milliseconds are medians between CUDA events around each launch. What `featuresplat/raster/_cuda_options.py` chooses
comes from tables like this one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workloads import matched

import featuresplat as fs
from featuresplat.raster import _cuda_options as options
from featuresplat.raster import _nvrtc
from featuresplat.raster._inputs import GeometryGrad, Precision
from featuresplat.raster._nvrtc_sources import Sources, engine_sources

VARIANTS: dict[str, list[dict[str, int]]] = {
    "features": [{"features.QUADS": q, "features.WARPS": w} for q in (2, 4) for w in (1, 2, 4, 8)],
    "few": [{"FEW": 0}, {"FEW": 16}],
    "lift": [
        {"lift.STORED": s, "lift.TILES": t, "lift.BATCH": b}
        for s in (1, 1 << 20)  # the weights of patches: computed once and kept; or by every block
        for t in (2, 4, 8)
        for b in (16, 32)
    ],
    "backward": [
        {"backward.GROUP": g, "backward.AHEAD": a, "backward.WARPS": w}
        for g, a, w in ((16, 1, 4), (32, 0, 4), (32, 1, 4), (64, 1, 4), (32, 0, 2), (32, 0, 8))
    ],
}
LIFTS = ("lift", "count_rows", "weigh", "lift_rows")
RED = """
#include "device.cuh"
FS_KERNEL(256, red_rows, float* out, const int* rows, int64_t count, int64_t dim) {
  for (int64_t i = fs_global_thread(); i < count * dim / 4; i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const int64_t row = i * 4 / dim;
    fs_red_add4(out + rows[row] * dim + i * 4 % dim, 1.f, 1.f, 1.f, 1.f);
  }
}
"""


class Timed:
    """A launcher that puts events around every kernel."""

    def __init__(self, inner):
        self.inner, self.events = inner, []

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def launch(self, kernel, *args):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        self.inner.launch(kernel, *args)
        after.record()
        self.events.append((kernel, before, after))

    def take(self) -> dict[str, float]:
        torch.cuda.synchronize()
        found: dict[str, float] = {}
        for kernel, before, after in self.events:
            found[kernel] = found.get(kernel, 0) + before.elapsed_time(after)
        self.events.clear()
        return found


def measure(timed: Timed, run, repeat: int) -> dict[str, float]:
    run()
    timed.take()
    rounds = []
    for _ in range(repeat):
        run()
        rounds.append(timed.take())
    return {k: statistics.median(r[k] for r in rounds) for k in rounds[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="*", default=[16, 32, 128, 512])
    parser.add_argument("--only", nargs="*", default=list(VARIANTS))
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda", torch.cuda.current_device())
    timed = Timed(_nvrtc.launcher(device))
    _nvrtc.stand_ins["cuda"] = timed  # pyright: ignore[reportArgumentType]
    w = matched()
    splats = [getattr(w, n).to(device) for n in ("means", "quats", "scales", "opacities")]
    view, K = w.viewmats.to(device), w.Ks.to(device)
    print(torch.cuda.get_device_name(device))
    red(device)

    def show(label: str, found: dict[str, float], *kernels: str) -> None:
        names = kernels or tuple(found)
        print(f"{label:58}", *(f"{k} {found[k]:.3f}" for k in names if k in found), flush=True)

    for dim in args.dims:
        g = torch.Generator(device).manual_seed(1)
        rows = torch.randn(len(w.means), dim, generator=g, device=device)
        seed = torch.randn(1, w.height, w.width, dim, generator=g, device=device)

        def forward(precision: Precision = "fp32", rows=rows):
            fs.rasterize(
                splats[0], splats[1], splats[2], splats[3], None, view, K, w.width, w.height, features=rows,
                precision=precision, backend="cuda",
            )  # fmt: skip

        def backward(mode: GeometryGrad = "full", rows=rows, seed=seed):
            leaves = [t.detach().requires_grad_(mode == "full") for t in splats]
            features = rows.detach().requires_grad_()
            out = fs.rasterize(
                leaves[0], leaves[1], leaves[2], leaves[3], None, view, K, w.width, w.height, features=features,
                geometry_grad=mode, backend="cuda",
            )  # fmt: skip
            assert out.features is not None
            out.features.backward(seed)

        show(f"D={dim} forward", measure(timed, forward, args.repeat))
        show(f"D={dim} forward fp16", measure(timed, lambda: forward("fp16"), args.repeat))
        show(f"D={dim} backward", measure(timed, backward, args.repeat))
        for group in args.only:
            for change in VARIANTS[group]:
                options.overrides.update(change)
                try:
                    label = f"D={dim} " + " ".join(f"{k}={v}" for k, v in change.items())
                    if group in ("features", "few"):
                        show(label, measure(timed, forward, args.repeat), "blend", "blend_features")
                    if group == "lift" and dim >= 32:
                        show(label, measure(timed, lambda: backward("none"), args.repeat), *LIFTS)
                    if group in ("backward", "few"):
                        show(label + " backward", measure(timed, backward, args.repeat), "blend_backward", *LIFTS)
                except Exception as error:  # a variant that does not fit is a row like the others
                    print(f"{label:58} {type(error).__name__}: {str(error)[:120]}")
                options.overrides.clear()


def red(device: torch.device) -> None:
    """How fast sums reach memory: rows of 512 bytes to random places, as the transpose adds them."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "red.cu").write_text(RED)
        sources = Sources(Path(folder), (engine_sources().folder,))
        timed = Timed(_nvrtc.DeviceLauncher(device.index, sources))
        for dim in (128, 512):
            out = torch.zeros(1_000_000, dim, device=device)
            rows = torch.randint(0, len(out), (2_000_000,), dtype=torch.int32, device=device)
            args = ("red_rows", 16 * timed.multiprocessors, 256, 0, (out, rows, len(rows), dim))
            found = measure(timed, lambda args=args: timed.launch(*args), 5)
            ms = found["red_rows"]
            print(f"red.add to rows of {dim} floats: {ms:.3f} ms, {len(rows) * dim * 4 / ms / 1e9:.2f} TB/s")


if __name__ == "__main__":
    main()
