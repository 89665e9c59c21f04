"""What was typed, for the figures that it gave."""

from __future__ import annotations

import sys
from pathlib import Path

MACHINE = "two cores of an AMD EPYC, shared"


def command(argv: list[str] | None = None) -> str:
    """The command line as anybody may repeat it: folders by their last name, no place to write to."""
    script, *rest = sys.argv if argv is None else argv
    kept = []
    for k, arg in enumerate(rest):
        if arg in ("--json", "--cache", "--pictures") or (k and rest[k - 1] in ("--json", "--cache", "--pictures")):
            continue
        kept.append(Path(arg).name if "/" in arg else arg)
    return " ".join(["python", f"benchmarks/{Path(script).name}", *(f'"{a}"' if " " in a else a for a in kept)])
