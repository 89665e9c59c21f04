"""The front end of the CUDA engine: from Gaussians to a list of entries, near to far, for every tile of every camera.

Queued without waiting for the device: the number of (Gaussian, tile) pairs is read back while later kernels are under
way, into buffers sized by the last call; should they prove too small, the tail is queued again with the true size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _nvrtc
from featuresplat.raster._cuda_args import arguments
from featuresplat.raster._inputs import RasterInputs, check_cameras
from featuresplat.types import RasterMeta

TILE = 16
SPLAT_FLOATS, ENTRY_FLOATS = 16, 12
_STEP = 1 << 14  # capacities are multiples of this, so that the allocator finds the same blocks again

_pairs_of_last_call: dict[tuple, int] = {}


def empty(what: str, shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory; running out of it names the buffer.

    Raises:
        FeaturesplatError: out of memory.
    """
    try:
        return torch.empty(shape, dtype=dtype, device=device)
    except torch.OutOfMemoryError as error:
        size = torch.Size(shape if isinstance(shape, tuple) else (shape,)).numel() * dtype.itemsize
        raise FeaturesplatError(
            f"out of memory on {device}: {size / 2**20:.0f} MiB for {what}",
            "Use smaller images, fewer cameras a call, fewer channels or fewer Gaussians.",
        ) from error


@dataclass
class Frame:
    """What the front end leaves for the kernels that blend. C cameras of N Gaussians; a slot is camera * N + id."""

    gpu: _nvrtc.Launcher
    device: torch.device
    cameras: int
    gaussians: int
    width: int
    height: int
    splats: Tensor  # [C * N, 16]
    counts: Tensor  # [C * N] int32: tiles of each slot
    starts: Tensor  # [C * N] int64: its first pair
    offsets: Tensor  # [tiles of all cameras + 1] int32
    entries: Tensor  # [capacity, 12]
    slots: Tensor  # [capacity] int32
    written: Tensor  # [capacity] int32: pair of each place
    keys: Tensor  # [C, N] int32: depth keys in their order, those not drawn last
    order: Tensor  # [C, N] int64: ids in that order
    pairs: int

    @property
    def tiles_x(self) -> int:
        return -(-self.width // TILE)

    @property
    def tiles(self) -> int:
        """Tiles of one camera."""
        return self.tiles_x * -(-self.height // TILE)

    @property
    def all_tiles(self) -> int:
        return self.cameras * self.tiles

    def launch(
        self, kernel: str, file: str, args: str, grid, block: int, values: dict, constants=None, shared=0
    ) -> None:
        """Queue a kernel that takes one structure."""
        self.gpu.launch(kernel, grid, block, shared, arguments(file, args, values), constants)

    def empty(self, what: str, shape, dtype: torch.dtype = torch.float32) -> Tensor:
        return empty(what, shape, dtype, self.device)

    def zeros(self, what: str, shape) -> Tensor:
        return empty(what, shape, torch.float32, self.device).zero_()


def check_tensors(inputs: RasterInputs) -> None:
    """Raise unless everything is float32 on one device that the kernels can use."""
    means = inputs.means
    if means.dtype != torch.float32:
        raise FeaturesplatError(
            f"backend 'cuda' computes in float32, got {means.dtype}", "Use backend='reference', or cast with .float()."
        )
    if means.device.type != "cuda" and means.device.type not in _nvrtc.stand_ins:
        raise FeaturesplatError(f"backend 'cuda' got tensors on {means.device}", "Move them with .cuda().")
    if max(inputs.width, inputs.height) > 65535 * TILE:
        raise FeaturesplatError("images of more than a million pixels a side are not supported", "Render parts of it.")
    tiles = len(inputs.viewmats) * -(-inputs.width // TILE) * -(-inputs.height // TILE)
    if tiles >= 2**31 or len(inputs.viewmats) * len(means) >= 2**32:
        raise FeaturesplatError("too many cameras or Gaussians for one call", "Give fewer cameras a call.")


def launch(device: torch.device, kernel: str, file: str, args: str, grid, block: int, values: dict) -> None:
    """Queue a kernel that takes one structure."""
    _nvrtc.launcher(device).launch(kernel, grid, block, 0, arguments(file, args, values))


def blocks(count: int, size: int) -> int:
    return -(-count // size)


def make_frame(inputs: RasterInputs, meta: RasterMeta, excluded: Tensor | None) -> tuple[Frame, Any]:
    """Queue the front end. ``inputs`` are contiguous.

    Returns:
        The frame, and what `settle` needs. Everything queued on the frame before `settle` has to be queued again when
        `settle` says so.
    """
    device = inputs.means.device
    gpu = _nvrtc.launcher(device)
    c, n, s = len(inputs.viewmats), len(inputs.means), inputs.settings
    total = c * n
    ints = {"dtype": torch.int32, "device": device}
    longs = {"dtype": torch.int64, "device": device}
    none = torch.empty(0, **ints)
    frame = Frame(
        gpu, device, c, n, inputs.width, inputs.height, empty("splats", (total, SPLAT_FLOATS), torch.float32, device),
        torch.empty(total, **ints), torch.empty(total, **longs), none, none, none, none, none, none, 0,
    )  # fmt: skip
    if total == 0:
        check_cameras(inputs)
        frame.offsets = torch.zeros(frame.all_tiles + 1, **ints)
        return frame, None
    keys = torch.empty(c, n, **ints)
    sums = torch.empty(total + 1, **longs)  # and the status of the cameras
    sums[total:].zero_()
    colors = inputs.colors
    kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
    frame.launch("project", "project.cu", "ProjectArgs", (blocks(n, 128), c), 128, {
        "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
        "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "excluded": excluded,
        "means2d": meta.means2d, "radii": meta.radii, "depths": meta.depths, "conics": meta.conics,
        "splats": frame.splats, "keys": keys, "counts": frame.counts, "status": sums[total:], "n": n,
        "camera_colors": 3 * n if kind == 1 and colors is not None and colors.ndim == 3 else 0,
        "near": s.near, "far": s.far, "eps2d": s.eps2d, "extent": s.extent, "alpha_min": s.alpha_min,
        "cameras": c, "width": inputs.width, "height": inputs.height, "color_kind": kind,
        "sh_degree": inputs.sh_degree or 0, "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
        "antialiased": int(s.antialiased),
    })  # fmt: skip
    order = torch.empty(c, n, **longs)
    sorted_keys = torch.empty(c, n, **ints)
    for camera in range(c):
        torch.sort(keys[camera], stable=True, out=(sorted_keys[camera], order[camera]))
    frame.keys, frame.order = sorted_keys, order
    spans = torch.empty(total, **longs)
    values = {
        "keys": sorted_keys, "order": order, "splats": frame.splats, "spans": spans, "counts": frame.counts,
        "starts": frame.starts, "tile_keys": None, "slots": None, "n": n, "slots_total": total, "capacity": 0,
        "tiles": frame.tiles, "tiles_x": frame.tiles_x, "small_keys": int(frame.all_tiles < 2**15 - 1),
    }  # fmt: skip
    frame.launch("order_counts", "tiles.cu", "TilesArgs", blocks(total, 256), 256, values)
    torch.cumsum(spans, 0, out=sums[:total])
    pending = gpu.fetch(sums[total - 1 :])
    values["spans"] = sums
    hint = (device, c, frame.tiles)
    state = (pending, hint, values, sums)
    expected = _pairs_of_last_call.get(hint)
    if expected is None:
        expected = _found(state)
    _list_tiles(frame, state, expected + expected // 4)
    return frame, state


def _found(state: Any) -> int:
    """The number of pairs; waits for it.

    Raises:
        FeaturesplatError: a camera is not finite, or there are too many pairs.
    """
    pairs, bad_camera = state[0].wait().tolist()
    if bad_camera:
        raise FeaturesplatError("viewmats, Ks: a camera holds NaN or infinity", "Drop that camera or mend its pose.")
    if pairs >= 2**31:
        raise FeaturesplatError(
            f"{pairs} pairs of Gaussians and tiles are too many for one call", "Render smaller images or fewer cameras."
        )
    _pairs_of_last_call[state[1]] = pairs
    return pairs


def settle(frame: Frame, state: Any) -> bool:
    """Wait until the number of pairs is known. True when the lists were too short and have been queued anew."""
    if state is None:
        return False
    frame.pairs = _found(state)
    if frame.pairs <= len(frame.entries):
        return False
    _list_tiles(frame, state, frame.pairs)
    return True


def _list_tiles(frame: Frame, state: Any, wanted: int) -> None:
    """Queue what turns counted pairs into the tiles' lists, with room for ``wanted`` of them."""
    capacity = max(1, blocks(wanted, _STEP)) * _STEP
    _, _, values, sums = state
    small = values["small_keys"]
    key_type = torch.int16 if small else torch.int32
    tile_keys = frame.empty("the tiles of pairs", capacity, key_type)
    slots = frame.empty("the pairs", capacity, torch.int32)
    values |= {"tile_keys": tile_keys, "slots": slots, "capacity": capacity}
    frame.launch("emit_pairs", "tiles.cu", "TilesArgs", blocks(values["slots_total"], 128), 128, values)
    try:
        sorted_keys, order = torch.sort(tile_keys, stable=True)
    except torch.OutOfMemoryError as error:
        raise FeaturesplatError(
            f"out of memory on {frame.device}: sorting {capacity} pairs of Gaussians and tiles",
            "Use smaller images, fewer cameras a call or fewer Gaussians.",
        ) from error
    frame.offsets = frame.empty("the tiles", frame.all_tiles + 1, torch.int32)
    frame.entries = frame.empty("the entries of tiles", (capacity, ENTRY_FLOATS))
    frame.slots = frame.empty("the entries of tiles", capacity, torch.int32)
    frame.written = frame.empty("the entries of tiles", capacity, torch.int32)
    lists = {
        "tile_keys": sorted_keys, "order": order, "total": sums[values["slots_total"] - 1 :], "slots": slots,
        "splats": frame.splats, "offsets": frame.offsets, "entries": frame.entries, "entry_slots": frame.slots,
        "written": frame.written, "capacity": capacity, "tiles": frame.tiles, "tiles_x": frame.tiles_x,
        "all_tiles": frame.all_tiles, "small_keys": small,
    }  # fmt: skip
    frame.launch("tile_offsets", "tiles.cu", "ListsArgs", blocks(frame.all_tiles + 1, 128), 128, lists)
    frame.launch("make_entries", "tiles.cu", "ListsArgs", blocks(capacity, 256), 256, lists)
