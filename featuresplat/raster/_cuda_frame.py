"""The front end of the CUDA engine: from Gaussians to a list of entries, near to far, for every tile of every camera.

Queued without waiting for the device: the number of (Gaussian, tile) pairs is read back while later kernels are under
way, into buffers sized by the last calls; should they prove too small, the tail is queued again with the true size.
"""

from __future__ import annotations

from collections.abc import Callable
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

_found_lately: dict[tuple, tuple[int, int]] = {}
"""Pairs and splats, by device and size of the images: the most of the last calls. In a training other cameras look at
almost the same Gaussians in every step."""


@dataclass
class Frame:
    """What the front end leaves for the kernels that blend: splats of C cameras, near to far, and the tiles' lists.

    ``slab`` holds, as addresses: ``offsets`` [tiles of all cameras + 1] int32 into ``list`` [capacity] int32, the
    splats of the tiles; ``masks`` [capacity] uint8, which patches of the tile each reaches; and where it is asked for,
    ``last`` [C, H, W] int32, how many entries of its tile a pixel used. Each piece of memory can be let go by itself,
    once the kernels that need it are queued.
    """

    gpu: _nvrtc.Launcher
    device: torch.device
    cameras: int
    gaussians: int
    width: int
    height: int
    capacity: int = 0
    splat_capacity: int = 0
    splats: Any = None  # [splat_capacity, 16] float32: ``Splat`` of splat.cuh
    slab: Any = None
    left: Tensor | None = None  # [C, H, W, 1]: pack_left of splat.cuh; where it is asked for
    depth: Tensor | None = None  # [C, H, W, 1]: as drawn, for gradients
    firsts: Any = None  # [C + 1] int64: the first splat of each camera; an address
    written: Tensor | None = None  # [capacity] int32: the pair of each place; kept for deterministic gradients
    ends: Any = None  # [splat_capacity] int64: where the pairs of each splat end, as written; kept with ``written``
    pairs: int = 0
    keep: Any = None  # tensors whose addresses are used

    def __post_init__(self) -> None:
        self.tiles_x = -(-self.width // TILE)
        self.tiles = self.tiles_x * -(-self.height // TILE)  # of one camera
        self.all_tiles = self.cameras * self.tiles

    def lists(self) -> dict[str, Any]:
        """``Lists`` of walk.cuh."""
        at = self.slab.addresses
        return {"offsets": at["offsets"], "list": at["list"], "masks": at["masks"], "splats": self.splats}

    @property
    def masks(self) -> int:
        return self.slab.addresses["masks"]

    @property
    def last(self) -> int | None:
        return self.slab.addresses.get("last")

    def left_of_pixels(self) -> Tensor:
        """The transmittance behind the splats of each pixel, [C, H, W, 1]."""
        left = self.left
        assert left is not None
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
    inputs: RasterInputs, meta: RasterMeta | None, exclude: Callable[[], Tensor] | None, masks: bool = False,
    last: bool = False,
) -> FrontEnd:  # fmt: skip
    """Queue the front end. ``inputs`` are contiguous.

    Args:
        meta: filled in; or None.
        exclude: gives [N] uint8, not 0 for Gaussians to leave out; or None.
        masks: fill in the masks, which otherwise the blending of colours does on its way.
        last: whether there shall be room for ``last``.

    Everything queued on ``.frame`` has to be queued again when `FrontEnd.settle` says so.
    """
    front = FrontEnd(inputs, meta, exclude, masks, last)
    front.start()
    return front


class FrontEnd:
    """One run of the front end."""

    def __init__(
        self, inputs: RasterInputs, meta: RasterMeta | None, exclude: Callable[[], Tensor] | None, masks: bool,
        last: bool,
    ):  # fmt: skip
        self.inputs, self.meta, self.exclude, self.masks, self.last = inputs, meta, exclude, masks, last
        device, c, n = inputs.means.device, inputs.viewmats.shape[0], inputs.means.shape[0]
        self.frame = Frame(_nvrtc.launcher(device), device, c, n, inputs.width, inputs.height)
        self.hint = (device, c, self.frame.tiles)
        self.pending: Any = None

    def start(self) -> None:
        """Project, sort by depth, and go on with as much room as the last calls needed."""
        f = self.frame
        count = f.cameras * f.gaussians
        numbers = torch.empty(3 + f.cameras + 1, dtype=torch.int64, device=f.device)
        self.numbers = f.keep = numbers
        f.firsts = numbers.data_ptr() + 24
        if count == 0:
            check_cameras(self.inputs)
            numbers.zero_()
            self._room_for_splats(1)
            self._room_for_lists(1)
            f.splats.zero_()
            f.slab.memory.zero_()
            return
        keys = torch.empty(count, dtype=torch.int32, device=f.device)
        excluded = None if self.exclude is None else self.exclude()
        args = self._arguments(keys, excluded)
        f.gpu.launch("project", (blocks(f.gaussians, 128), f.cameras), 128, 0, args)
        if f.cameras == 1:
            keys, order = torch.sort(keys, stable=True)
        else:
            parts = [torch.sort(part, stable=True) for part in keys.view(f.cameras, f.gaussians)]
            keys, order = torch.cat([k for k, _ in parts]), torch.cat([i for _, i in parts])
        args.change(keys=keys, order=order)
        f.gpu.launch("count_splats", 1, 32, 0, args)
        expected = _found_lately.get(self.hint)
        if expected is None:
            _, splats, _ = f.gpu.fetch(numbers).wait()[:3]
            self._room_for_splats(splats)
            ends = self._make_splats(args)
            pairs = f.gpu.fetch(ends[-1:]).wait()[0]
        else:
            pairs, splats = expected
            self._room_for_splats(min(with_room(splats), count))
            ends = self._make_splats(args)
        del keys, order, excluded  # room for what comes
        self._room_for_lists(with_room(pairs))
        self._make_lists(ends)

    def _arguments(self, keys: Tensor, excluded: Tensor | None) -> Arguments:
        """``ProjectArgs`` of project.cu, for the first of its kernels."""
        inputs, m = self.inputs, self.meta
        s, colors, n = inputs.settings, inputs.colors, self.frame.gaussians
        kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
        return Arguments("project.cu", "ProjectArgs", {
            "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
            "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "excluded": excluded,
            "means2d": m and m.means2d, "radii": m and m.radii, "depths": m and m.depths, "conics": m and m.conics,
            "keys": keys, "order": None, "found": self.numbers, "firsts": self.frame.firsts, "splats": None,
            "spans": None, "n": n,
            "camera_colors": 3 * n if kind == 1 and colors is not None and colors.ndim == 3 else 0, "capacity": 0,
            "near": s.near, "far": s.far, "eps2d": s.eps2d, "extent": s.extent, "alpha_min": s.alpha_min,
            "cameras": self.frame.cameras, "width": inputs.width, "height": inputs.height, "color_kind": kind,
            "sh_degree": inputs.sh_degree or 0, "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
            "antialiased": int(s.antialiased),
        })  # fmt: skip

    def _room_for_splats(self, splats: int) -> None:
        f = self.frame
        f.splat_capacity = rounded(splats)
        f.splats = f.empty("the splats", (f.splat_capacity, SPLAT_FLOATS))

    def _room_for_lists(self, pairs: int) -> None:
        f = self.frame
        if pairs >= 2**31:
            raise _too_many(pairs)
        f.capacity, f.slab = rounded(pairs), None  # that of the round before makes room
        sizes = {"offsets": 4 * (f.all_tiles + 1), "list": 4 * f.capacity, "masks": f.capacity}
        if self.last:
            sizes["last"] = 4 * f.cameras * f.width * f.height
        f.slab = Slab("the tiles' lists", f.device, sizes)

    def _make_splats(self, args: Arguments) -> Tensor:
        """Queue the splats and where their pairs will end."""
        f = self.frame
        spans = f.empty("the splats", f.splat_capacity, torch.int64)
        args.change(splats=f.splats, spans=spans, capacity=f.splat_capacity)
        f.gpu.launch("make_splats", blocks(f.splat_capacity, 128), 128, 0, args)
        return spans.cumsum_(0)

    def _ends_again(self) -> Tensor:
        """Where the pairs of each splat end, which nobody kept."""
        f = self.frame
        spans = f.empty("the splats", f.splat_capacity, torch.int64)
        f.launch("count_spans", "tiles.cu", "SpansArgs", blocks(f.splat_capacity, 128), 128, {
            "splats": f.splats, "firsts": f.firsts, "spans": spans, "splat_capacity": f.splat_capacity,
            "cameras": f.cameras,
        })  # fmt: skip
        return spans.cumsum_(0)

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
            raise _too_many(pairs)
        before = _found_lately.get(self.hint, (0, 0))
        _found_lately[self.hint] = most_lately(before[0], pairs), most_lately(before[1], splats)
        return pairs, splats

    def settle(self) -> bool:
        """Wait until the numbers are known. True when there was too little room and the lists were queued anew."""
        if self.pending is None:
            return False
        f = self.frame
        f.pairs, splats = self._found()
        if splats > f.splat_capacity:
            # The pairs were those of some splats only: perhaps once more.
            self.start()
            return True
        if f.pairs > f.capacity:
            self._room_for_lists(f.pairs)
            self._make_lists(self._ends_again())
            return True
        self.pending = None
        return False

    def _make_lists(self, ends: Tensor) -> None:
        """Queue what turns splats into the tiles' lists, as many as there is room for."""
        f, at, capacity = self.frame, self.frame.slab.addresses, self.frame.capacity
        small = int(f.all_tiles <= 2**16)
        room = Slab("the pairs of splats and tiles", f.device, sorting_room(capacity, small))
        pairs = room.addresses
        shape = {
            "capacity": capacity, "tiles": f.tiles, "tiles_x": f.tiles_x, "small_keys": small, "ranks": pairs["values"],
        }  # fmt: skip
        f.launch("emit_pairs", "tiles.cu", "PairsArgs", blocks(f.splat_capacity, 128), 128, {
            "splats": f.splats, "firsts": f.firsts, "ends": ends, "tile_keys": pairs["keys"],
            "found": self.numbers, "splat_capacity": f.splat_capacity, **shape,
        })  # fmt: skip
        self.pending = f.gpu.fetch(self.numbers)
        f.written, f.ends, values, target = None, None, pairs["values"], at["list"]
        if torch.are_deterministic_algorithms_enabled():
            f.ends, f.written = ends, torch.empty(capacity, dtype=torch.int32, device=f.device)
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


def _too_many(pairs: int) -> FeaturesplatError:
    return FeaturesplatError(
        f"{pairs} pairs of Gaussians and tiles are too many for one call", "Render smaller images or fewer cameras."
    )


def most_lately(before: int, now: int) -> int:
    """How many to expect in the next call, when so many were expected before and so many there are now. What was once
    is forgotten by half in some 180 calls."""
    return max(now, before - before // 256)


def with_room(count: int) -> int:
    """A capacity for about so many: from one call to the next there may be a few more."""
    return count + count // 64


def rounded(count: int) -> int:
    """A capacity that stays the same while counts change a little."""
    return max(1, blocks(count, _STEP)) * _STEP
