"""Which kernels serve a call: by device, number of channels and alignment."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.raster import _nvrtc
from featuresplat.raster._cuda_frame import Frame

FEW = 16
"""Up to so many channels are blended pixel by pixel beside the colours; more go to the matrix units."""
STORED = 128
"""From so many channels on the transpose of blending computes the weights once and keeps them (weigh.cu, lift_rows.cu);
with fewer every block of channels computes its own (lift.cu).

Milliseconds on an H200 at the reference workload (1920x1080, a million Gaussians), with stored weights (counting them,
computing them, their product with the maps) and without:

    channels    stored                 not stored
    128         0.04 + 0.30 + 1.33     1.80
    256         0.04 + 0.30 + 2.66     3.60
    512         0.04 + 0.30 + 5.27     7.14

A row of weights takes 128 bytes for each patch of 8x4 pixels that a splat reaches: 10.9 million rows or 1.3 GiB there,
and a sixteenth more as room for the next call; about as much as the maps of 170 channels. Where there is no memory for
it, the kernel that needs none does the work.
"""

SHARED_LIMITS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 103: 227, 120: 99, 121: 99}
"""Shared memory that a block may have, KiB, by architecture; 48 elsewhere."""

overrides: dict[str, int] = {}
"""For benchmarks: other shapes of the kernels than the ones chosen here."""


def few() -> int:
    """Up to so many channels go pixel by pixel beside the colours."""
    return overrides.get("FEW", FEW)


def matrix_units(frame: Frame) -> bool:
    """Whether the device multiplies 16-bit and tf32 matrices."""
    return frame.gpu.arch >= 80


def aligned(dim: int, *tensors: Tensor | None) -> int:
    """1 when rows of ``dim`` floats can be read 16 bytes at a time."""
    return int(dim % 4 == 0 and all(t is None or t.data_ptr() % 16 == 0 for t in tensors))


def lift_shape(dim: int, shared_limit: int) -> dict[str, int]:
    """Channels of a block (in units of 16) and entries at a time of lift.cu: as many as shared memory holds."""
    wanted = 2 if dim <= 32 else 4
    wanted = overrides.get("lift.TILES", wanted)
    for tiles, batch in ((wanted, overrides.get("lift.BATCH", 32)), (wanted, 16), (min(wanted, 4), 16)):
        if lift_shared_bytes(tiles, batch) <= shared_limit:
            return {"TILES": tiles, "BATCH": batch}
    return {"TILES": 2, "BATCH": 16}


def stores_weights(dim: int) -> bool:
    """Whether blending weights are computed once for all groups of channels, and kept in memory between; `STORED`."""
    return dim >= overrides.get("lift.STORED", STORED)


def rows_shape(lift: dict[str, int]) -> dict[str, int]:
    """The shape of lift_rows.cu beside that of lift.cu: fewer channels a block, for the weights cost nothing there (512
    channels on an H200: 5.20 ms with 2 units of 16 channels, 5.27 with 4)."""
    return lift | {"TILES": overrides.get("lift.TILES", 2)}


def rows_shared_bytes(tiles: int, batch: int) -> int:
    """Size of ``SharedRows`` in lift_rows.cu."""
    patches = 8
    return patches * batch * (64 * tiles + 2 * 72) + 4 * batch + patches * 4 + patches * batch * 4


def lift_shared_bytes(tiles: int, batch: int) -> int:
    """Size of ``Shared`` in lift.cu."""
    patches = 8
    return patches * batch * (64 * tiles + 2 * 80) + batch * (5 * 16 + 12) + patches * 4 + patches * batch * 4


def backward_shape(constants: dict[str, int], shared_limit: int, dim: int) -> dict[str, int]:
    """Splats at a time and warps of a block of backward.cu."""
    wide = constants["WIDE"] and constants["MATRIX"]
    deep = int(dim >= 256)  # so many channels that it pays to share them among more splats, with fewer warps
    group, warps = (
        overrides.get("backward.GROUP", 64 if deep else 32) if wide else 8,
        overrides.get("backward.WARPS", 4),
    )
    constants = constants | {"AHEAD": overrides.get("backward.AHEAD", deep)} if wide else constants
    while backward_shared_bytes(constants | {"GROUP": group, "WARPS": warps}) > shared_limit:
        warps //= 2
    return {**constants, "GROUP": group, "WARPS": warps}


def backward_shared_bytes(c: dict[str, int]) -> int:
    """Size of ``WARPS`` times ``Warp`` in backward.cuh."""
    group, channels, weights = c["GROUP"], c["CHANNELS"], c["COLORS"] or c["CHANNELS"]
    slots = 128 if group > 32 else 64
    matrices = (12 + channels + 15) // 16
    size = slots * (32 + 16 * c["COLORS"] + 8 + 4 + 4) + 3 * 32 * 16 + 32 * channels + 32 * (16 * matrices + 4)
    if c["MATRIX"]:
        size += (2 if weights else 1) * 8 * 36 * 4 + (512 * (4 + 8 * (matrices - 1)) if weights else 0)
        size += 4 * group * 36 if c["WIDE"] else 0
    return c["WARPS"] * (-(-size // 16) * 16)


def checked_late(rows: Tensor, device: torch.device) -> bool:
    """Whether features are checked for NaN and infinity only where they are used: reading them all takes a while."""
    return rows.shape[1] > 64 and _nvrtc.launcher(device).arch >= 80


def features_shape(dim: int, half: int, arch: int) -> dict[str, int]:
    """Channels of a block of features.cu, in units of 32. sm_120 lacks the registers for four units of float16."""
    quads = overrides.get("features.QUADS", 1 if dim <= 32 else 2 if dim <= 64 or (half and arch >= 100) else 4)
    return {"QUADS": quads, "WARPS": overrides.get("features.WARPS", 2)}


def deterministic() -> bool:
    """Whether sums must be the same bits from run to run: ``torch.use_deterministic_algorithms(True)``."""
    return torch.are_deterministic_algorithms_enabled()


def combinations(arch: int) -> list[tuple[str, dict[str, int]]]:
    """(file, constants) of the kernels that an architecture uses: not all of them, but one of each shape."""
    plain = ("check.cu", "project.cu", "sort.cu", "tiles.cu", "gather.cu", "queries.cu")
    found: list[tuple[str, dict[str, int]]] = [(f, {}) for f in plain]
    matrix, limit = int(arch >= 80), 1024 * SHARED_LIMITS.get(arch, 48)
    found += [("blend.cu", {"RGB": 1, "CHANNELS": c}) for c in (0, 3, FEW)]
    if matrix:
        for half in (0, 1):
            shapes = [features_shape(dim, half, arch) | {"HALF": half} for dim in (32, 64, 128)]
            found += [("features.cu", shape | {"ALIGNED": 1}) for shape in shapes]
            found += [("features.cu", shapes[-1] | {"ALIGNED": 0})]
    else:
        found += [("blend.cu", {"RGB": 0, "CHANNELS": FEW})]
    lift = {"STOPS": 1, "POWER": 1, "WEIGHTS": 0, "FIXED": 0, "ALIGNED": 1}
    for dim in (32, 64, 512):
        shape = lift_shape(dim, limit) if matrix else {"TILES": 1}
        file = "lift.cu" if matrix else "lift_pixels.cu"
        for change in ({}, {"STOPS": 0, "POWER": 2, "WEIGHTS": 1}, {"ALIGNED": 0, "FIXED": 1}):
            if (file, lift | change | shape) not in found:
                found.append((file, lift | change | shape))
            if matrix and dim >= STORED:
                found.append(("lift_rows.cu", lift | change | rows_shape(shape)))
                found.append(("weigh.cu", {n: (lift | change)[n] for n in ("STOPS", "POWER")}))
    backward = {
        "COLORS": 1, "CHANNELS": 0, "WIDE": 0, "GEOMETRY": 1, "FEATURES_MOVE": 0, "ABSOLUTE": 0, "MATRIX": matrix,
        "ORDERED": 0, "ALIGNED": 1,
    }  # fmt: skip
    for change in (
        {}, {"ABSOLUTE": 1}, {"ORDERED": 1}, {"WIDE": 1, "FEATURES_MOVE": 1},
        {"WIDE": 1, "FEATURES_MOVE": 1, "COLORS": 0}, {"CHANNELS": 3, "FEATURES_MOVE": 1},
        {"CHANNELS": FEW, "FEATURES_MOVE": 1},
    ):  # fmt: skip
        constants = backward | change
        for dim in (128, 512) if "WIDE" in change else (0,):
            found.append(("backward.cu", constants | backward_shape(constants, limit, dim)))
    return found
