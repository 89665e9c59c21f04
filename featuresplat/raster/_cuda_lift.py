"""The transpose of blending: from maps on the image to sums for each Gaussian."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from featuresplat.raster import _cuda_options as options
from featuresplat.raster._cuda_frame import Frame, blocks, rounded, with_room
from featuresplat.raster._cuda_memory import OutOfMemory
from featuresplat.raster._inputs import RasterInputs


def transpose(
    frame: Frame, inputs: RasterInputs, maps: Tensor, power: int, sums: Tensor, weights: Tensor | None,
    last: int | None,
) -> None:  # fmt: skip
    """Queue ``sums[n] += sum w^power maps[p]`` and ``weights[n] += sum w^power``.

    Args:
        maps: [C, H, W, D] contiguous.
        last: address of where pixels stop, when that is known already.
    """
    dim, matrix = maps.shape[-1], options.matrix_units(frame)
    s = inputs.settings
    fixed = options.deterministic()
    scale = targets = None
    if fixed:
        # Fixed point: sums do not depend on the order. No sum exceeds the number of pixels times the greatest value.
        # The norm reads the maps once; their absolute values would be another copy of them.
        most = torch.linalg.vector_norm(maps, torch.inf).double() if maps.numel() else maps.new_ones(()).double()
        room = 2.0**61 / max(1, frame.cameras * frame.width * frame.height)
        scale = torch.exp2(torch.floor(torch.log2(room / torch.clamp(most, 1e-30, 1e30))))
        scale = torch.stack([scale, torch.full_like(scale, 2.0 ** int(math.log2(room)))])
        targets = [None if t is None else torch.zeros_like(t, dtype=torch.int64) for t in (sums, weights)]
    constants = {
        "STOPS": int(last is not None), "POWER": power, "WEIGHTS": int(weights is not None), "FIXED": int(fixed),
        "ALIGNED": options.aligned(dim, maps, sums),
    }  # fmt: skip
    constants |= options.lift_shape(dim, frame.gpu.shared_limit) if matrix else {"TILES": 1}
    values = {
        **frame.lists(), **_NOTHING_STORED, "maps": maps, "last": last,
        "scale": scale, "sums": targets[0] if targets else sums, "weights": targets[1] if targets else weights,
        "dim": dim, "width": frame.width, "height": frame.height, "tiles": frame.tiles,
        "tiles_x": frame.tiles_x, "alpha_max": s.alpha_max, "transmittance_min": s.transmittance_min,
    }  # fmt: skip
    grid = (frame.all_tiles, max(1, blocks(dim, 16 * constants["TILES"])))
    if not matrix:
        frame.launch("lift_pixels", "lift.cuh", "LiftArgs", grid, 256, values, constants)
    elif not (options.stores_weights(dim) and _by_stored_weights(frame, values, constants)):
        shared = options.lift_shared_bytes(constants["TILES"], constants["BATCH"])
        frame.launch("lift", "lift.cuh", "LiftArgs", grid, 256, values, constants, shared)
    if targets is not None and scale is not None:
        for target, total, unit in zip((sums, weights), targets, scale, strict=True):
            if target is not None and total is not None:
                target.add_((total.double() / unit).to(target.dtype))


_NOTHING_STORED = {"farthest": None, "ends": None, "ids": None, "rows": None, "room": 0, "all_patches": 0}
_ROW_BYTES = 128

_rows_by_last_call: dict[tuple, int] = {}
"""Pairs of patches and splats, by device, size of the images and whether it was known where pixels stop."""


def _by_stored_weights(frame: Frame, values: dict, constants: dict) -> bool:
    """Queue the transpose in two steps: weights of all patches, then their product with every group of channels.

    Returns:
        False when there is no memory for the weights: nothing has been added to the sums then.
    """
    try:
        _weigh_and_multiply(frame, values, constants)
    except OutOfMemory:
        return False
    return True


def _weigh_and_multiply(frame: Frame, values: dict, constants: dict) -> None:
    """As `_by_stored_weights`.

    The number of weights is not known before: as for the tiles' lists, there is room for what the last call had, and a
    call that has more is queued again. Until then its kernels do nothing.

    Raises:
        OutOfMemory: before anything is added to the sums.
    """
    f, patches = frame, 8 * frame.all_tiles
    counts = f.empty("blending weights", (patches,), torch.int64)
    farthest = f.empty("blending weights", (patches,), torch.int32)
    ids = f.empty("blending weights", (f.capacity,), torch.int32)
    weigh = {
        **f.lists(), "last": values["last"], "farthest": farthest, "counts": counts, "ends": None, "ids": ids,
        "rows": None, "room": 0, "patches": patches,
        **{n: values[n] for n in ("width", "height", "tiles", "tiles_x", "alpha_max", "transmittance_min")},
    }  # fmt: skip
    of_weigh = {n: constants[n] for n in ("STOPS", "POWER")}
    f.launch("count_rows", "weigh.cu", "WeighArgs", f.all_tiles, 256, weigh, of_weigh)
    ends = counts.cumsum_(0)
    pending = f.gpu.fetch(ends[-1:])
    hint = (f.device, f.cameras, f.tiles, constants["STOPS"])
    found = None
    room = _rows_by_last_call.get(hint)
    if room is None:
        (found,) = pending.wait()
        room = found
    constants = options.rows_shape(constants)
    groups = blocks(values["dim"], 16 * constants["TILES"])
    shared = options.rows_shared_bytes(constants["TILES"], constants["BATCH"])
    while True:
        room = rounded(with_room(room))
        weigh["rows"] = rows = None  # those of the round before make room
        rows = f.empty("blending weights", (room, _ROW_BYTES), torch.uint8)
        weigh |= {"ends": ends, "rows": rows, "room": room}
        f.launch("weigh", "weigh.cu", "WeighArgs", f.all_tiles, 256, weigh, of_weigh)
        stored = {"farthest": farthest, "ends": ends, "ids": ids, "rows": rows, "room": room, "all_patches": patches}
        grid = f.all_tiles * groups
        f.launch("lift_rows", "lift.cuh", "LiftArgs", grid, 256, values | stored, constants, shared)
        if found is None:
            (found,) = pending.wait()
        _rows_by_last_call[hint] = found
        if found <= room:
            return
        room = found
