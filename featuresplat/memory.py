"""How much memory a training will take, before it starts."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass

from featuresplat.errors import FeaturesplatError

GIB = 1 << 30
_PROGRAM = 450 << 20  # Python, torch and the engine before any data
_POOL = 768 << 20  # freed blocks that the native engine keeps for reuse, at most


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose; `total` bounds the peak of a training on the CPU engine."""

    program: int
    images: int
    gaussians: int
    raster: int

    @property
    def total(self) -> int:
        return self.program + self.images + self.gaussians + self.raster

    def __str__(self) -> str:
        parts = f"images {_gib(self.images)}, Gaussians {_gib(self.gaussians)}, rasterizer {_gib(self.raster)}"
        return f"{_gib(self.total)} ({parts}, program {_gib(self.program)})"


def plan(budget: int, sh_degree: int, pixels: int, image_bytes: int) -> MemoryPlan:
    """The plan for up to ``budget`` Gaussians and images of at most ``pixels`` pixels.

    A Gaussian has 14 + 3 (degree + 1)^2 - 3 floats; each is held as parameter, gradient, two moments and, while
    densification rebuilds the optimiser, once more all of that, and the coefficients once concatenated with their
    gradient. The rasterizer's records are about 260 bytes per Gaussian (float64 projection and the tile
    intersections of a training view) and 200 per pixel.
    """
    floats = 11 + 3 * (sh_degree + 1) ** 2
    return MemoryPlan(
        program=_PROGRAM,
        images=image_bytes,
        gaussians=budget * 4 * (floats * 8 + 6 * (sh_degree + 1) ** 2),
        raster=budget * 260 + pixels * 200 + _POOL,
    )


def check(plan: MemoryPlan) -> None:
    """Raise when the plan does not fit into what is free now."""
    free = available()
    if free is not None and plan.total > free:
        raise FeaturesplatError(
            f"this training plans {plan} of memory, {_gib(free)} are free",
            "Lower --model.budget, or reduce the images with --downscale.",
        )


def available() -> int | None:
    """Bytes that this process can still take: free memory, and the control group's limit where there is one."""
    found = []
    try:
        with open("/proc/meminfo") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        found.append(int(fields["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            found.append(int(limit.read()) - int(used.read()))
    except (OSError, ValueError):
        pass
    return min(found) if found else None


def peak() -> int:
    """The most memory that this process has held so far, in bytes."""
    try:
        # getrusage would count what the process held before it became this program, too.
        with open("/proc/self/status") as stream:
            fields = dict(line.split(":", 1) for line in stream)
        return int(fields["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"
