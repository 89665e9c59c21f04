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
from featuresplat.raster._cuda_args import Arguments
from featuresplat.raster._cuda_memory import Slab, empty
from featuresplat.raster._cuda_sort import sort_pairs, sorting_room
from featuresplat.raster._inputs import RasterInputs, check_cameras
from featuresplat.types import RasterMeta

TILE = 16
SPLAT_FLOATS = 16
_STEP = 1 << 14  # capacities are multiples of this, so that the allocator finds the same blocks again

_found_by_last_call: dict[tuple, tuple[int, int]] = {}
"""Pairs and splats, by device and size of the images: from one step of a training to the next they change little."""


@dataclass
class Frame:
    """What the front end leaves for the kernels that blend: splats of C cameras, near to far, and the tiles' lists.

    ``slab`` holds, as addresses: ``splats`` [splat_capacity, 64 bytes]; ``offsets`` [tiles of all cameras + 1] int32
    into ``list`` [capacity] int32, the splats of the tiles; ``masks`` [capacity] uint8, which patches of the tile each
    reaches; and where they are asked for, ``last`` [C, H, W] int32, how many entries of its tile a pixel used, and
    ``left``, the transmittance behind them and alpha in one number.
    """

    gpu: _nvrtc.Launcher
    device: torch.device
    cameras: int
    gaussians: int
    width: int
    height: int
    capacity: int = 0
    splat_capacity: int = 0
    slab: Any = None
    firsts: Any = None  # [C + 1] int64: the first splat of each camera; an address
    ends: Any = None  # [splat_capacity] int64: where the pairs of each splat end, as written
    written: Tensor | None = None  # [capacity] int32: the pair of each place; kept for deterministic gradients
    pairs: int = 0
    keep: Any = None  # tensors whose addresses are used

    def __post_init__(self) -> None:
        self.tiles_x = -(-self.width // TILE)
        self.tiles = self.tiles_x * -(-self.height // TILE)  # of one camera
        self.all_tiles = self.cameras * self.tiles

    def lists(self) -> dict[str, int]:
        """``Lists`` of walk.cuh."""
        at = self.slab.addresses
        return {name: at[name] for name in ("offsets", "list", "masks", "splats")}

    @property
    def splats(self) -> int:
        return self.slab.addresses["splats"]

    @property
    def masks(self) -> int:
        return self.slab.addresses["masks"]

    @property
    def last(self) -> int | None:
        return self.slab.addresses.get("last")

    @property
    def left(self) -> int | None:
        return self.slab.addresses.get("left")

    def left_of_pixels(self) -> Tensor:
        """The transmittance behind the splats of each pixel, [C, H, W, 1]."""
        count = self.cameras * self.height * self.width
        left = self.slab.tensor("left", count, torch.float32).view(self.cameras, self.height, self.width, 1)
        return torch.where(left > 0, left, 1 + left)  # pack_left of splat.cuh

    def launch(
        self, kernel: str, file: str, args: str, grid, block: int, values: dict, constants=None, shared=0
    ) -> None:
        """Queue a kernel that takes one structure."""
        self.gpu.launch(kernel, grid, block, shared, Arguments(file, args, values), constants)

    def empty(self, what: str, shape, dtype: torch.dtype = torch.float32) -> Tensor:
        return empty(what, shape, dtype, self.device)


def check_tensors(inputs: RasterInputs) -> None:
    """Raise unless everything is float32 on one device that the kernels can use."""
    means = inputs.means
    if means.dtype != torch.float32:
        raise FeaturesplatError(
            f"backend 'cuda' computes in float32, got {means.dtype}", "Use backend='reference', or cast with .float()."
        )
    if means.device.type != "cuda" and means.device.type not in _nvrtc.stand_ins:
        raise FeaturesplatError(f"backend 'cuda' got tensors on {means.device}", "Move them with .cuda().")
    cameras, gaussians = inputs.viewmats.shape[0], means.shape[0]
    if max(inputs.width, inputs.height) > 65535 * TILE:
        raise FeaturesplatError("images of more than a million pixels a side are not supported", "Render parts of it.")
    tiles = cameras * -(-inputs.width // TILE) * -(-inputs.height // TILE)
    if tiles >= 2**31 or cameras * gaussians >= 2**32:
        raise FeaturesplatError("too many cameras or Gaussians for one call", "Give fewer cameras a call.")


def launch(device: torch.device, kernel: str, file: str, args: str, grid, block: int, values: dict) -> None:
    """Queue a kernel that takes one structure."""
    _nvrtc.launcher(device).launch(kernel, grid, block, 0, Arguments(file, args, values))


def blocks(count: int, size: int) -> int:
    return -(-count // size)


def make_frame(
    inputs: RasterInputs, meta: RasterMeta | None, excluded: Tensor | None, masks: bool = False,
    pixels: tuple[str, ...] = (),
) -> FrontEnd:  # fmt: skip
    """Queue the front end. ``inputs`` are contiguous.

    Args:
        meta: filled in; or None.
        masks: fill in the masks, which otherwise the blending of colours does on its way.
        pixels: which of ``last`` and ``left`` there shall be room for.

    Everything queued on ``.frame`` has to be queued again when `FrontEnd.settle` says so.
    """
    front = FrontEnd(inputs, meta, excluded, masks, pixels)
    front.start()
    return front


class FrontEnd:
    """One run of the front end."""

    def __init__(
        self, inputs: RasterInputs, meta: RasterMeta | None, excluded: Tensor | None, masks: bool,
        pixels: tuple[str, ...],
    ):  # fmt: skip
        self.inputs, self.meta, self.excluded, self.masks, self.pixels = inputs, meta, excluded, masks, pixels
        device, c, n = inputs.means.device, inputs.viewmats.shape[0], inputs.means.shape[0]
        self.frame = Frame(_nvrtc.launcher(device), device, c, n, inputs.width, inputs.height)
        self.hint = (device, c, self.frame.tiles)
        self.pending: Any = None

    def start(self) -> None:
        """Project, sort by depth, and go on with as much room as the last call needed."""
        f = self.frame
        count = f.cameras * f.gaussians
        numbers = torch.empty(3 + f.cameras + 1, dtype=torch.int64, device=f.device)
        self.numbers = f.keep = numbers
        f.firsts = numbers.data_ptr() + 24
        if count == 0:
            check_cameras(self.inputs)
            numbers.zero_()
            self._make_room(1, 1)
            f.slab.memory.zero_()
            return
        keys = torch.empty(count, dtype=torch.int32, device=f.device)
        args = self._arguments(keys)
        f.gpu.launch("project", (blocks(f.gaussians, 128), f.cameras), 128, 0, args)
        if f.cameras == 1:
            keys, order = torch.sort(keys, stable=True)
        else:
            parts = [torch.sort(part, stable=True) for part in keys.view(f.cameras, f.gaussians)]
            keys, order = torch.cat([k for k, _ in parts]), torch.cat([i for _, i in parts])
        args.change(keys=keys, order=order)
        f.gpu.launch("count_splats", 1, 32, 0, args)
        expected = _found_by_last_call.get(self.hint)
        if expected is None:
            splats = f.gpu.fetch(numbers).wait()[1]
            self._make_room(1, splats)
            self._make_splats(args)
            self._make_lists()
            expected = self._found()
            self._make_room(with_room(expected[0]), splats, again=True)
        else:
            self._make_room(with_room(expected[0]), min(with_room(expected[1]), count))
            self._make_splats(args)
        del keys, order  # room for what comes
        self._make_lists()

    def _arguments(self, keys: Tensor) -> Arguments:
        """``ProjectArgs`` of project.cu, for the first of its kernels."""
        inputs, m = self.inputs, self.meta
        s, colors, n = inputs.settings, inputs.colors, self.frame.gaussians
        kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
        return Arguments("project.cu", "ProjectArgs", {
            "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
            "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "excluded": self.excluded,
            "means2d": m and m.means2d, "radii": m and m.radii, "depths": m and m.depths, "conics": m and m.conics,
            "keys": keys, "order": None, "found": self.numbers, "firsts": self.frame.firsts, "splats": None,
            "spans": None, "n": n,
            "camera_colors": 3 * n if kind == 1 and colors is not None and colors.ndim == 3 else 0, "capacity": 0,
            "near": s.near, "far": s.far, "eps2d": s.eps2d, "extent": s.extent, "alpha_min": s.alpha_min,
            "cameras": self.frame.cameras, "width": inputs.width, "height": inputs.height, "color_kind": kind,
            "sh_degree": inputs.sh_degree or 0, "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
            "antialiased": int(s.antialiased),
        })  # fmt: skip

    def _make_room(self, pairs: int, splats: int, again: bool = False) -> None:
        """A new slab. With ``again`` the splats of the last one are kept."""
        f, before = self.frame, self.frame.slab
        f.capacity, f.splat_capacity = rounded(pairs), rounded(splats)
        f.slab = Slab("the splats and the tiles' lists", f.device, {
            "splats": 4 * SPLAT_FLOATS * f.splat_capacity, "offsets": 4 * (f.all_tiles + 1), "list": 4 * f.capacity,
            "masks": f.capacity, **dict.fromkeys(self.pixels, 4 * f.cameras * f.width * f.height),
        })  # fmt: skip
        if again:
            count = 4 * SPLAT_FLOATS * f.splat_capacity
            f.slab.tensor("splats", count, torch.uint8).copy_(before.tensor("splats", count, torch.uint8))

    def _make_splats(self, args: Arguments) -> None:
        """Queue the splats and where their pairs will end."""
        f = self.frame
        spans = f.empty("the splats", f.splat_capacity, torch.int64)
        args.change(splats=f.slab.addresses["splats"], spans=spans, capacity=f.splat_capacity)
        f.gpu.launch("make_splats", blocks(f.splat_capacity, 128), 128, 0, args)
        f.ends = spans.cumsum_(0)

    def _found(self) -> tuple[int, int]:
        """Numbers of pairs and splats; waits for them.

        Raises:
            FeaturesplatError: a camera is not finite, or there are too many pairs.
        """
        pairs, splats, bad_camera = self.pending.wait()[:3]
        if bad_camera:
            raise FeaturesplatError(
                "viewmats, Ks: a camera holds NaN or infinity", "Drop that camera or mend its pose."
            )
        if pairs >= 2**31:
            raise FeaturesplatError(
                f"{pairs} pairs of Gaussians and tiles are too many for one call",
                "Render smaller images or fewer cameras.",
            )
        _found_by_last_call[self.hint] = pairs, splats
        return pairs, splats

    def settle(self) -> bool:
        """Wait until the numbers are known. True when there was too little room and the lists were queued anew."""
        if self.pending is None:
            return False
        f = self.frame
        f.pairs, splats = self._found()
        if splats > f.splat_capacity:
            # The pairs were those of some splats only: perhaps once more.
            _found_by_last_call[self.hint] = max(f.pairs, f.capacity), splats
            self.start()
            return True
        if f.pairs > f.capacity:
            self._make_room(f.pairs, f.splat_capacity, again=True)
            self._make_lists()
            return True
        self.pending = None
        if f.written is None:
            f.ends = None
        return False

    def _make_lists(self) -> None:
        """Queue what turns splats into the tiles' lists, as many as there is room for."""
        f, at, capacity = self.frame, self.frame.slab.addresses, self.frame.capacity
        small = int(f.all_tiles <= 2**16)
        room = Slab("the pairs of splats and tiles", f.device, sorting_room(capacity, small))
        pairs = room.addresses
        shape = {
            "capacity": capacity, "tiles": f.tiles, "tiles_x": f.tiles_x, "small_keys": small, "ranks": pairs["values"],
        }  # fmt: skip
        f.launch("emit_pairs", "tiles.cu", "PairsArgs", blocks(f.splat_capacity, 128), 128, {
            "splats": at["splats"], "firsts": f.firsts, "ends": f.ends, "tile_keys": pairs["keys"],
            "found": self.numbers, "splat_capacity": f.splat_capacity, **shape,
        })  # fmt: skip
        self.pending = f.gpu.fetch(self.numbers)
        f.written, values, target = None, pairs["values"], at["list"]
        if torch.are_deterministic_algorithms_enabled():
            f.written = torch.empty(capacity, dtype=torch.int32, device=f.device)
            values, target = None, f.written.data_ptr()
        keys = sort_pairs(f, pairs | {"values": values}, target, self.numbers, capacity, small, f.all_tiles - 1)
        args = Arguments("tiles.cu", "ListsArgs", {
            "order": f.written, "total": self.numbers, "all_tiles": f.all_tiles, "tile_keys": keys, **f.lists(),
            **shape,
        })  # fmt: skip
        grid = blocks(max(capacity if f.written is not None else 0, f.all_tiles + 1), 256)
        f.gpu.launch("make_lists", grid, 256, 0, args)
        if self.masks:
            f.gpu.launch("make_masks", blocks(capacity, 256), 256, 0, args)


def with_room(count: int) -> int:
    """A capacity for about so many: from one call to the next there may be a few more."""
    return count + count // 16


def rounded(count: int) -> int:
    """A capacity that stays the same while counts change a little."""
    return max(1, blocks(count, _STEP)) * _STEP
