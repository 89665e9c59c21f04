"""How much of torch's memory the CUDA engine needs on the reference workload, added up without a GPU.

    python benchmarks/gpu_memory.py                     beside what gsplat took where it was measured
    python benchmarks/gpu_memory.py --peak 32 backward  what is alive at the peak of one pass

Every tensor that a pass makes is counted from when it is made until nobody holds it, in multiples of 512 bytes, as
torch's CUDA allocator does (which may leave a larger block whole: where both were known, a device's count was 0 to 5
MiB above this one). Tensors are on the device ``meta``, which has shapes and no memory; kernels do nothing; the numbers
of splats and pairs are those of the workload. Passes as in gpu_speed.py (``backward``: with its forward).
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import featuresplat as fs
from featuresplat.raster import _nvrtc

HERE = Path(__file__).resolve().parent
DIMS = (3, 16, 32, 64, 128, 256, 512)
PASSES = ("forward", "backward", "features", "lift")
GAUSSIANS, SIZE = 1_000_000, (1920, 1080)
SPLATS, PAIRS = 298_726, 2_305_010
"""Of workloads.matched(1_000_000, 1920, 1080): Gaussians in front of the camera, their pairs with tiles."""
ROWS = {"lift": 10_900_000, "backward": 4_970_000, "features": 4_970_000}
"""Pairs of a Gaussian and a patch of pixels whose weights the transpose stores, from the memory that it took on an
H200; fewer where it is known which pixels have stopped."""
_BLOCK = 512


class Account(TorchDispatchMode):
    """Within it, bytes of the storages that operators make: ``live`` now, ``peak`` at most, ``at_peak`` by where."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.at_peak: Counter[str] = Counter()
        self._alive: dict[int, tuple[int, str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        before = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and id(t.untyped_storage()) not in before:
                self._count(t.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key, size = id(storage), -(-storage.nbytes() // _BLOCK) * _BLOCK
        if key in self._alive or size == 0:
            return
        frames = (f for f in reversed(traceback.extract_stack()) if "raster" in f.filename and f.name != "empty")
        where = next((f"{Path(f.filename).name}:{f.name}" for f in frames), "elsewhere")
        self._alive[key] = size, where
        self.live += size
        weakref.finalize(storage, self._forget, key).atexit = False
        if self.live > self.peak:
            self.peak, self.at_peak = self.live, Counter()
            for bytes_, of in self._alive.values():
                self.at_peak[of] += bytes_

    def _forget(self, key: int) -> None:
        self.live -= self._alive.pop(key)[0]


class Idle:
    """A launcher whose kernels do nothing, and which has found what the workload holds."""

    arch, multiprocessors, shared_limit = 90, 132, 227 * 1024

    def __init__(self, rows: int):
        self.rows = rows

    def launch(self, *_: Any) -> None:
        pass

    def fetch(self, tensor: Tensor) -> Any:
        values = [PAIRS, SPLATS, 0] if tensor.numel() > 1 else [self.rows]
        return SimpleNamespace(wait=lambda: values)


class Case:
    """The workload's shapes with D channels."""

    def __init__(self, dim: int):
        self.dim = dim
        self.splats = [torch.empty(GAUSSIANS, *shape, device="meta") for shape in ((3,), (4,), (3,), ())]
        self.values = torch.empty(GAUSSIANS, dim, device="meta")
        self.cameras = (torch.empty(1, 4, 4, device="meta"), torch.empty(1, 3, 3, device="meta"), *SIZE)
        self.seed = torch.empty(1, SIZE[1], SIZE[0], dim, device="meta")

    def draw(self, leaves: list[Tensor], mode: str = "full") -> Tensor:
        *splats, values = leaves
        colors, features = (values, None) if self.dim == 3 else (None, values)
        out = fs.rasterize(
            *splats, colors, *self.cameras, features=features, geometry_grad=mode, backend="cuda", precision="fp32"
        )  # fmt: skip
        image = out.rgb if self.dim == 3 else out.features
        assert image is not None
        return image

    def run(self, name: str) -> None:
        """One pass."""
        if name == "lift":
            fs.lift(*self.splats, *self.cameras, self.seed, backend="cuda")
        elif name == "forward":
            with torch.no_grad():
                self.draw([*self.splats, self.values])
        else:
            only = name == "features"
            leaves = [t.detach().requires_grad_(t is self.values or not only) for t in (*self.splats, self.values)]
            image = self.draw(leaves, "none" if only else "full")
            found = torch.autograd.grad(image, leaves[-1:] if only else leaves, self.seed)
            del found


def account(dim: int, name: str) -> Account:
    """A pass, once what it remembers of calls before is known."""
    before, case = dict(_nvrtc.stand_ins), Case(dim)
    _nvrtc.stand_ins["meta"] = Idle(ROWS.get(name, 0))
    try:
        case.run(name)
        with Account() as found:
            case.run(name)
    finally:
        _nvrtc.stand_ins.clear()
        _nvrtc.stand_ins.update(before)
    return found


def measured(file: Path = HERE / "results/gpu-h200.json") -> dict[tuple[str, int], float]:
    """MiB that gsplat took at its best chunk, by pass and channels."""
    rows = json.loads(file.read_text())["rows"]
    return {(r["pass"], r["D"]): r["peak_MiB"] for r in rows if r["contender"] == "gsplat best"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peak", nargs=2, metavar=("D", "PASS"))
    a = parser.parse_args(argv)
    if a.peak:
        found = account(int(a.peak[0]), a.peak[1])
        for where, size in found.at_peak.most_common():
            print(f"{size / 2**20:9.1f}  {where}")
        print(f"{found.peak / 2**20:9.1f}  together")
        return 0
    theirs = measured()
    print("MiB at the peak, and gsplat's\n" + " " * 4 + "".join(f"{name:>20}" for name in PASSES))
    for dim in DIMS:
        cells = [f"{account(dim, n).peak / 2**20:.1f} / {theirs[n, dim]:.1f}" for n in PASSES]
        print(f"{dim:4}" + "".join(f"{c:>20}" for c in cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
