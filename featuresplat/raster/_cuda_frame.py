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
from featuresplat.raster._cuda_memory import Slab, empty
from featuresplat.raster._cuda_sort import sort_pairs
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
    ``left``, the transmittance behind them.
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


def make_frame(
    inputs: RasterInputs, meta: RasterMeta, excluded: Tensor | None, masks: bool = False, pixels: tuple[str, ...] = ()
) -> FrontEnd:
    """Queue the front end. ``inputs`` are contiguous.

    Args:
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
        self, inputs: RasterInputs, meta: RasterMeta, excluded: Tensor | None, masks: bool, pixels: tuple[str, ...]
    ):
        self.inputs, self.masks, self.pixels = inputs, masks, pixels
        device, c, n = inputs.means.device, len(inputs.viewmats), len(inputs.means)
        self.frame = Frame(_nvrtc.launcher(device), device, c, n, inputs.width, inputs.height)
        self.hint = (device, c, self.frame.tiles)
        s, colors = inputs.settings, inputs.colors
        kind = 0 if colors is None else 1 if inputs.sh_degree is None else 2
        self.project: dict[str, Any] = {
            "means": inputs.means, "quats": inputs.quats, "scales": inputs.scales, "opacities": inputs.opacities,
            "colors": colors, "viewmats": inputs.viewmats, "Ks": inputs.Ks, "excluded": excluded,
            "means2d": meta.means2d, "radii": meta.radii, "depths": meta.depths, "conics": meta.conics,
            "keys": None, "order": None, "found": None, "firsts": None, "splats": None, "spans": None, "n": n,
            "camera_colors": 3 * n if kind == 1 and colors is not None and colors.ndim == 3 else 0, "capacity": 0,
            "near": s.near, "far": s.far, "eps2d": s.eps2d, "extent": s.extent, "alpha_min": s.alpha_min,
            "cameras": c, "width": inputs.width, "height": inputs.height, "color_kind": kind,
            "sh_degree": inputs.sh_degree or 0, "sh_rows": colors.shape[1] if kind == 2 and colors is not None else 0,
            "antialiased": int(s.antialiased),
        }  # fmt: skip
        self.pending: Any = None

    def start(self) -> None:
        """Project, sort by depth, and go on with as much room as the last call needed."""
        f, p = self.frame, self.project
        numbers = torch.zeros(3 + f.cameras + 1, dtype=torch.int64, device=f.device)
        self.numbers = f.keep = numbers
        f.firsts = numbers.data_ptr() + 24
        if f.cameras * f.gaussians == 0:
            check_cameras(self.inputs)
            self._make_room(1, 1)
            f.slab.memory.zero_()
            return
        keys = torch.empty(f.cameras * f.gaussians, dtype=torch.int32, device=f.device)
        p |= {"keys": keys, "found": numbers, "firsts": f.firsts}
        f.launch("project", "project.cu", "ProjectArgs", (blocks(f.gaussians, 128), f.cameras), 128, p)
        if f.cameras == 1:
            keys, order = torch.sort(keys, stable=True)
        else:
            parts = [torch.sort(part, stable=True) for part in keys.view(f.cameras, f.gaussians)]
            keys, order = torch.cat([k for k, _ in parts]), torch.cat([i for _, i in parts])
        p |= {"keys": keys, "order": order}
        f.launch("count_splats", "project.cu", "ProjectArgs", 1, 32, p)
        expected = _found_by_last_call.get(self.hint)
        if expected is None:
            splats = int(f.gpu.fetch(numbers).wait()[1])
            self._make_room(1, splats)
            self._make_splats()
            self._make_lists()
            expected = self._found()
            self._make_room(with_room(expected[0]), splats, again=True)
        else:
            self._make_room(with_room(expected[0]), min(with_room(expected[1]), f.cameras * f.gaussians))
            self._make_splats()
        # What only the splats were made from makes room for what comes.
        p |= {"keys": None, "order": None, "spans": None}
        del keys, order
        self._make_lists()

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

    def _make_splats(self) -> None:
        """Queue the splats and where their pairs will end."""
        f, p = self.frame, self.project
        spans = f.empty("the splats", f.splat_capacity, torch.int64)
        p |= {"splats": f.slab.addresses["splats"], "spans": spans, "capacity": f.splat_capacity}
        f.launch("make_splats", "project.cu", "ProjectArgs", blocks(f.splat_capacity, 128), 128, p)
        f.ends = torch.cumsum(spans, 0)

    def _found(self) -> tuple[int, int]:
        """Numbers of pairs and splats; waits for them.

        Raises:
            FeaturesplatError: a camera is not finite, or there are too many pairs.
        """
        pairs, splats, bad_camera = self.pending.wait()[:3].tolist()
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
        self.project = {}
        if f.written is None:
            f.ends = None
        return False

    def _make_lists(self) -> None:
        """Queue what turns splats into the tiles' lists, as many as there is room for."""
        f, at = self.frame, self.frame.slab.addresses
        small = int(f.all_tiles <= 2**16)
        keys = f.empty("the tiles of pairs", f.capacity, torch.int16 if small else torch.int32)
        ranks = f.empty("the pairs of splats and tiles", f.capacity, torch.int32)
        shape = {"capacity": f.capacity, "tiles": f.tiles, "tiles_x": f.tiles_x, "small_keys": small, "ranks": ranks}
        f.launch("emit_pairs", "tiles.cu", "PairsArgs", blocks(f.splat_capacity, 128), 128, {
            "splats": at["splats"], "firsts": f.firsts, "ends": f.ends, "tile_keys": keys, "found": self.numbers,
            "splat_capacity": f.splat_capacity, **shape,
        })  # fmt: skip
        self.pending = f.gpu.fetch(self.numbers)
        values = {"order": None, "total": self.numbers, "all_tiles": f.all_tiles, **f.lists(), **shape}
        if torch.are_deterministic_algorithms_enabled():
            f.written = torch.empty_like(ranks)
            keys = sort_pairs(f, keys, None, self.numbers, f.written, f.all_tiles - 1)
            values["order"] = f.written
        else:
            keys = sort_pairs(
                f, keys, ranks, self.numbers, f.slab.tensor("list", f.capacity, torch.int32), f.all_tiles - 1
            )
        values["tile_keys"] = keys
        grid = blocks(max(f.capacity if f.written is not None else 0, f.all_tiles + 1), 256)
        f.launch("make_lists", "tiles.cu", "ListsArgs", grid, 256, values)
        if self.masks:
            f.launch("make_masks", "tiles.cu", "ListsArgs", blocks(f.capacity, 256), 256, values)


def with_room(count: int) -> int:
    """A capacity for about so many: from one call to the next there may be a few more."""
    return count + count // 16


def rounded(count: int) -> int:
    """A capacity that stays the same while counts change a little."""
    return max(1, blocks(count, _STEP)) * _STEP
