"""The transpose and the queries: lift, contributions, topk, the sparse matrix of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from featuresplat.raster import Contributions, WeightMatrix
from featuresplat.raster._cuda_frame import Frame, make_frame
from featuresplat.raster._cuda_lift import transpose
from featuresplat.raster._cuda_memory import Cleared
from featuresplat.raster._inputs import RasterInputs

_UNIT = 2.0**40  # see queries.cu


def _frame(inputs: RasterInputs) -> Frame:
    """The tiles' lists, complete."""
    front = make_frame(inputs, None, None, masks=True)
    while front.settle():
        pass
    return front.frame


def _launch(frame: Frame, inputs: RasterInputs, kernel: str, grid: int, **values) -> None:
    fields = dict.fromkeys(("sums", "maxima", "pixels", "ids", "weights", "counts", "ends"))
    s = inputs.settings
    fields |= {
        **frame.lists(), "n": frame.gaussians, "k": 0,
        "width": frame.width, "height": frame.height, "tiles": frame.tiles, "tiles_x": frame.tiles_x, "camera": 0,
        "alpha_max": s.alpha_max, "transmittance_min": s.transmittance_min,
    }  # fmt: skip
    frame.launch(kernel, "queries.cu", "QueryArgs", grid, 256, fields | values)


def lift(inputs: RasterInputs, maps: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Sums [N, D] and weights [N]."""
    shape = (inputs.means.shape[0], maps.shape[-1])
    cleared = Cleared("the lifted features", shape, inputs.means.device)
    try:
        frame = _frame(inputs)
    finally:
        sums = cleared.wait()
    weights = torch.zeros(frame.gaussians, device=frame.device)
    transpose(frame, inputs, maps, power, sums, weights, None)
    return sums, weights


def contributions(inputs: RasterInputs) -> Contributions:
    """Sums, maxima and pixel counts [C, N]."""
    frame = _frame(inputs)
    shape = (frame.cameras, frame.gaussians)
    sums = torch.zeros(shape, dtype=torch.int64, device=frame.device)
    maxima, pixels = torch.zeros(shape, device=frame.device), torch.zeros_like(sums)
    _launch(frame, inputs, "sum_contributions", frame.all_tiles, sums=sums, maxima=maxima, pixels=pixels)
    return Contributions((sums.double() / _UNIT).float(), maxima, pixels)


def topk(inputs: RasterInputs, k: int) -> tuple[Tensor, Tensor]:
    """Ids and weights [C, H, W, k]."""
    frame = _frame(inputs)
    shape = (frame.cameras, frame.height, frame.width, k)
    ids, weights = frame.empty("the ids", shape, torch.int64), frame.empty("the weights", shape)
    _launch(frame, inputs, "find_greatest", frame.all_tiles, ids=ids, weights=weights, k=k)
    return ids, weights


def weight_matrix(inputs: RasterInputs) -> list[WeightMatrix]:
    """CSR blending weights of each camera."""
    frame, found = _frame(inputs), []
    for camera in range(frame.cameras):
        counts = torch.zeros(frame.height * frame.width, dtype=torch.int64, device=frame.device)
        _launch(frame, inputs, "count_weights", frame.tiles, counts=counts, camera=camera)
        ends = counts.cumsum(0)
        total = int(ends[-1])
        ids, weights = frame.empty("the columns", total, torch.int64), frame.empty("the weights", total)
        _launch(frame, inputs, "list_weights", frame.tiles, ids=ids, weights=weights, ends=ends, camera=camera)
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64, device=frame.device), ends])
        found.append(WeightMatrix(indptr, ids, weights))
    return found
