"""Compile every CUDA kernel for every architecture without a GPU: registers, spills and shared memory in a table.

    python scripts/cubins.py                     all architectures; exit code 1 when a hot kernel spills
    python scripts/cubins.py --arch 90 --all     one architecture, every kernel and combination of constants
    python scripts/cubins.py --out DIR           keeps the cubins there (for cuobjdump and nvdisasm)

Needs NVRTC, which needs no GPU: pip install 'featuresplat[cuda13]'.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _nvrtc_compile as compiler
from featuresplat.raster._cuda_options import combinations
from featuresplat.raster._nvrtc_sources import engine_sources, key

ALONE = ("ssim.cu",)
"""Files without constants that the rasterizer does not list among its own."""
ARCHITECTURES = (75, 80, 86, 89, 90, 120)
_ENTRY = re.compile(
    r"Compiling entry function '(?P<kernel>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel. ``stack``, ``spills`` in bytes a thread, ``shared`` in static bytes a block."""

    kernel: str
    file: str
    arch: int
    constants: tuple[tuple[str, int], ...]
    registers: int
    stack: int
    spills: int
    shared: int


def parse(log: str, file: str, arch: int, constants: tuple[tuple[str, int], ...]) -> list[Usage]:
    """The kernels of one compiler log."""
    found = []
    for m in _ENTRY.finditer(log):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        spills = int(m["stores"]) + int(m["loads"])
        size = int(shared[1]) if shared else 0
        found.append(Usage(m["kernel"], file, arch, constants, int(m["registers"]), int(m["stack"]), spills, size))
    return found


def examine(architectures: tuple[int, ...], out: Path | None = None, threads: int = 1) -> list[Usage]:
    """Compile everything.

    Raises:
        FeaturesplatError: NVRTC is missing or a file does not compile.
    """
    sources = engine_sources()
    jobs = []
    for arch in architectures:
        jobs += [(file, arch, key(constants)) for file, constants in combinations(arch)]
    jobs += [(file, arch, ()) for file in sources.files for arch in architectures if file in ALONE]

    def one(job: tuple) -> list[Usage]:
        file, arch, constants = job
        done = compiler.compile_file(sources, file, arch, constants)
        usages = parse(done.log, file, arch, constants)
        expected = {k.name for k in sources.kernels.values() if k.file == file}
        if not {u.kernel for u in usages} <= expected or not usages:
            raise FeaturesplatError(f"{file}: NVRTC's log names {[u.kernel for u in usages]}", "Read the log by hand.")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            name = "-".join([Path(file).stem, f"sm_{arch}", *(f"{n}{v}" for n, v in constants)])
            (out / f"{name}.cubin").write_bytes(done.code)
        return usages

    with ThreadPoolExecutor(threads) as pool:
        return [u for usages in pool.map(one, jobs) for u in usages]


def spilling(usages: list[Usage]) -> list[Usage]:
    """The kernels that keep registers in local memory. A stack frame without spills is an array with a run-time index,
    which costs the same: it counts.
    """
    return [u for u in usages if u.spills or u.stack]


def table(usages: list[Usage], every: bool) -> str:
    """One line a kernel (or, with ``every``, a combination of constants); the worst over the constants in each cell."""
    architectures = sorted({u.arch for u in usages})
    rows: dict[tuple, dict[int, list[Usage]]] = {}
    for u in usages:
        label = " ".join(f"{n}={v}" for n, v in u.constants) if every else ""
        rows.setdefault((u.file, u.kernel, label), {}).setdefault(u.arch, []).append(u)
    lines = [
        "registers a thread / static shared bytes a block, the most over the constants; ! spills",
        f"{'kernel':<34}" + "".join(f"{f'sm_{a}':>13}" for a in architectures) + ("  constants" if every else ""),
    ]
    for (file, kernel, label), by_arch in sorted(rows.items()):
        cells = []
        for a in architectures:
            mine = by_arch.get(a)
            if mine is None:
                cells.append(f"{'-':>13}")
                continue
            mark = "!" if spilling(mine) else ""
            cells.append(f"{f'{mark}{max(u.registers for u in mine)} / {max(u.shared for u in mine)}':>13}")
        lines.append(f"{Path(file).stem + ':' + kernel:<34}" + "".join(cells) + (f"  {label}" if every else ""))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", type=int, default=list(ARCHITECTURES))
    parser.add_argument("--all", action="store_true", help="a line for every combination of constants")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args(argv)
    start = time.perf_counter()
    try:
        usages = examine(tuple(a.arch), a.out, a.threads)
    except FeaturesplatError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(usages, a.all))
    count = len({(u.file, u.arch, u.constants) for u in usages})
    version = ".".join(map(str, compiler.version()))
    print(f"{count} cubins, {len(usages)} kernels in {time.perf_counter() - start:.0f} s by NVRTC {version}")
    spills = spilling(usages)
    for u in spills:
        what = " ".join(f"{n}={v}" for n, v in u.constants)
        print(
            f"spills: {u.kernel} on sm_{u.arch}: {u.spills} bytes, stack frame {u.stack} bytes; {what}", file=sys.stderr
        )
    return 1 if spills else 0


if __name__ == "__main__":
    sys.exit(main())
