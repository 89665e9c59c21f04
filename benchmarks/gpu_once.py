"""Every pass of the CUDA engine once: what compute-sanitizer and ncu watch, and a first check on a new machine.

python benchmarks/gpu_once.py                       small images, compared with the float64 reference on the CPU
python benchmarks/gpu_once.py --big --dims 128      the reference workload, without the comparison
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gpu_speed
from workloads import Workload, matched

import featuresplat as fs

ALLOWED = {"fp32": 2e-5, "fp16": 1e-3, "gradient": 1e-3}
"""Of the maximum. The workload is not freed of pixels at a threshold: gradients get room for single flips."""


def small(count: int, width: int, height: int) -> Workload:
    """The workload cut down to a few hundred Gaussians that still cover the image."""
    w = matched(count, width, height)
    means = torch.cat([w.means[:, :2] / w.means[:, 2:] * 2.0 * torch.sign(w.means[:, 2:]), w.means[:, 2:].abs()], dim=1)
    K = torch.tensor([[[0.9 * width, 0, width / 2 + 0.3], [0, 0.9 * width, height / 2 - 0.2], [0, 0, 1]]])
    fields = {n: getattr(w, n) for n in ("quats", "opacities", "colors", "viewmats", "width", "height")}
    return Workload(means=means, scales=8 * w.scales, Ks=K, **fields)


def passes(case: gpu_speed.Case, precision: str) -> dict[str, torch.Tensor]:
    """Image, gradients and lift of the CUDA engine."""
    ours = gpu_speed.Ours(case, precision)
    leaves = case.leaves(False)
    image = ours.draw(leaves)
    grads = torch.autograd.grad(image, leaves, case.seed)
    only = case.leaves(True)
    (features,) = torch.autograd.grad(ours.features_only(only), only[-1:], case.seed)
    found = dict(zip((*gpu_speed.SPLATS, "values"), grads, strict=True))
    return {"image": image.detach(), "features only": features, "lift": ours.lift(), **found}


def truth(case: gpu_speed.Case) -> dict[str, torch.Tensor]:
    """The same from the float64 reference."""
    w = case.w
    leaves = [t.detach().cpu().double().requires_grad_() for t in case.tensors]
    view = (w.viewmats.double(), w.Ks.double(), w.width, w.height)
    colors, features = (leaves[4], None) if case.dim == 3 else (None, leaves[4])
    out = fs.rasterize(*leaves[:4], colors, *view, features=features, backend="reference")
    image = out.rgb if case.dim == 3 else out.features
    assert image is not None
    seed = case.seed.cpu().double()
    grads = torch.autograd.grad(image, leaves, seed)
    found = dict(zip((*gpu_speed.SPLATS, "values"), grads, strict=True))
    lifted = fs.lift(*(t.detach() for t in leaves[:4]), *view, seed, backend="reference")[0]
    return {"image": image.detach(), "features only": found["values"], "lift": lifted, **found}


def first_call() -> int:
    """Print the seconds of the first forward and backward of a program, then those of the second."""
    torch.zeros(1, device=gpu_speed.DEVICE)  # torch's own start is not ours
    for dim in (3, 128):
        case = gpu_speed.Case(small(400, 72, 45), dim)
        contender = gpu_speed.Ours(case, "fp32")
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            leaves = case.leaves(False)
            torch.autograd.grad(contender.draw(leaves), leaves, case.seed)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        print(f"  D={dim}: first call {seconds[0]:.3f} s, second {seconds[1]:.4f} s", flush=True)
    return 0


def first_use() -> int:
    """Run `first_call` in two new programs, the first with an empty cache."""
    with tempfile.TemporaryDirectory() as folder:
        for state in ("empty", "full"):
            print(f"cache {state}:", flush=True)
            env = {**os.environ, "FEATURESPLAT_CACHE": folder}
            done = subprocess.run(
                [sys.executable, __file__, "--first-call"], env=env, stderr=subprocess.PIPE, text=True
            )
            if done.returncode:
                print(done.stderr[-1500:])
                return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", nargs="+", type=int, default=[3, 7, 16, 32, 129, 512])
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"])
    parser.add_argument("--big", action="store_true")
    parser.add_argument("--first-use", action="store_true")
    parser.add_argument("--first-call", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.first_use:
        return first_use()
    if a.first_call:
        return first_call()
    bad = 0
    for dim in a.dims:
        case = gpu_speed.Case(matched() if a.big else small(400, 72, 45), dim)
        true = None if a.big else truth(case)
        for precision in a.precision:
            start = time.perf_counter()
            got = passes(case, precision)
            if gpu_speed.DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            if true is None:
                print(f"D={dim} {precision}: {seconds:.2f} s", flush=True)
                continue
            worst = {}
            for name, expected in true.items():
                top = float(expected.abs().max())
                worst[name] = float((got[name].cpu().double() - expected).abs().max()) / max(top, 1e-30)
            limit = {n: ALLOWED[precision] if n in ("image", "lift") else ALLOWED["gradient"] for n in worst}
            wrong = [n for n, v in worst.items() if not v <= limit[n] * (2 if precision == "fp16" else 1)]
            bad += len(wrong)
            text = " ".join(f"{n} {v:.0e}" for n, v in worst.items())
            print(f"D={dim:<4} {precision} {seconds:6.2f} s  {text}  {'WRONG: ' + ', '.join(wrong) if wrong else 'ok'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
