"""What gpu_speed.py measured, as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PASSES = ("forward", "backward", "features", "lift")


def print_profile(rows: list[dict]) -> None:
    """The kernels of each pass, largest first. A pass of backward holds its forward too."""
    for name, dim in dict.fromkeys((r["pass"], r["D"]) for r in rows):
        mine = sorted((r for r in rows if (r["pass"], r["D"]) == (name, dim)), key=lambda r: -r["us"])
        total = sum(r["us"] for r in mine)
        print(f"-- {name} D={dim}: {total / 1e3:.3f} ms on the device")
        for r in mine[:9]:
            if r["us"] > 0.015 * total:
                print(f"   {r['us']:9.1f} us  x{r['calls']:<4.0f} {r['kernel']}")


def print_table(rows: list[dict], labels: list[str]) -> None:
    """Medians, and how many times faster the first contender is than each other."""
    base = labels[0]
    print(f"{'pass':<9} {'D':>4} " + " ".join(f"{label:>24}" for label in labels))
    for name in PASSES:
        for dim in sorted({r["D"] for r in rows}):
            by = {r["contender"]: r for r in rows if r["pass"] == name and r["D"] == dim}
            cells = []
            for label in labels:
                row = by.get(label)
                if row is None or "failed" in row:
                    cells.append(f"{'-' if row is None else 'failed':>24}")
                    continue
                mine = by.get(base, {}).get("ms_median")
                ratio = f"{row['ms_median'] / mine:5.2f}x" if mine and label != base else ""
                cells.append(f"{row['ms_median']:8.3f} {ratio:>6} {row['peak_MiB']:6.0f}M")
            print(f"{name:<9} {dim:>4} " + " ".join(f"{c:>24}" for c in cells))


def show(report: dict[str, Any]) -> None:
    """Everything of a report, as tables."""
    print(json.dumps({k: report.get(k) for k in ("machine", "versions", "commit")}))
    print_profile(report.get("profile", []))
    rows = report.get("rows", [])
    if rows:
        print_table(rows, list(dict.fromkeys(r["contender"] for r in rows)))
    for label in dict.fromkeys(r["contender"] for r in rows if "host_ms" in r):
        cells = [
            f"{name} "
            + " ".join(
                f"{r['host_ms']:.2f}" for r in rows if (r["contender"], r["pass"]) == (label, name) and "host_ms" in r
            )
            for name in PASSES
            if "default" not in label and "fp16" not in label
        ]
        if cells:
            print(f"host ms, {label}: " + "; ".join(cells))
    for who, values in report.get("latency_us", {}).items():
        print(f"latency {who}: " + ", ".join(f"{n} {v:.0f} us" for n, v in values.items()))


def merged(files: list[Path]) -> dict[str, Any]:
    """Several reports as one; what is not a list comes from the first that has it."""
    report: dict[str, Any] = {}
    for path in files:
        for name, value in json.loads(path.read_text()).items():
            if isinstance(value, list):
                report[name] = report.get(name, []) + value
            else:
                report.setdefault(name, value)
    return report
