"""A short table of what ncu wrote: ``python benchmarks/gpu_ncu.py FILE.csv LABEL`` (page "details", as CSV)."""

from __future__ import annotations

import csv
import sys
from collections import defaultdict

COLUMNS = {
    "Duration": "time",
    "DRAM Throughput": "DRAM",
    "L2 Cache Throughput": "L2",
    "L1/TEX Cache Throughput": "L1",
    "Compute (SM) Throughput": "SM",
    "Issue Slots Busy": "issue",
    "Achieved Occupancy": "occup.",
    "Registers Per Thread": "regs",
    "Dynamic Shared Memory Per Block": "dyn.sh",
    "Static Shared Memory Per Block": "st.sh",
    "Local Memory Spilling Requests": "spills",
}


def read(path: str) -> list[dict[str, str]]:
    """One row a launch: kernel name and the metrics of `COLUMNS`, with their units."""
    with open(path, newline="") as f:
        lines = [line for line in f if line.startswith('"')]
    launches: dict[str, dict[str, str]] = defaultdict(dict)
    for row in csv.DictReader(lines):
        launch = launches[row["ID"]]
        launch["kernel"] = row["Kernel Name"].split("(")[0]
        name = row.get("Metric Name") or ""
        if name in COLUMNS:
            unit = row["Metric Unit"]
            short = {"%": "%", "register/thread": "", "Kbyte/block": "K", "byte/block": "B"}.get(unit, unit)
            value = row["Metric Value"]
            if unit in ("ns", "nsecond"):
                value, short = f"{float(value.replace(',', '')) / 1e3:.1f}", "us"
            launch[COLUMNS[name]] = value + short
    return list(launches.values())


def distinct(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The first launch of each kernel and shape of block (registers, shared memory)."""
    shape = ("kernel", "regs", "dyn.sh", "st.sh")
    found: dict[tuple, dict[str, str]] = {}
    for r in rows:
        found.setdefault(tuple(r.get(n) for n in shape), r)
    return list(found.values())


def main() -> int:
    rows = distinct(read(sys.argv[1]))
    if not rows:
        return 1
    titles = [t for t in COLUMNS.values() if any(t in r for r in rows)]
    print(f"D={sys.argv[2]}  {'kernel':<22} " + " ".join(f"{t:>9}" for t in titles))
    for r in rows:
        print(f"{'':<7}{r['kernel'][:22]:<22} " + " ".join(f"{r.get(t, '-'):>9}" for t in titles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
