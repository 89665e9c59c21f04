"""The ``.splat`` format of antimatter15's viewer: 32 bytes a Gaussian, no header, no view-dependent colour.

Each record is: position 3 x float32, standard deviations 3 x float32, red green blue opacity 4 x uint8,
rotation wxyz 4 x uint8 as 128 + 128 q; all little endian. https://github.com/antimatter15/splat
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path
from featuresplat.io.finite import ready_to_write, without_bad_rows
from featuresplat.types import SH_C0, Gaussians

_RECORD = np.dtype([("xyz", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quat", "u1", 4)])


def write_splat(path: str | Path, gaussians: Gaussians) -> None:
    """Write a ``.splat`` file, atomically.

    The viewer draws while it loads, so the most important Gaussians (opacity times volume) come first.
    Precision: positions and scales are exact float32, colour and opacity within 1/510, rotations within 1/256
    a component (1/128 where a component is +1). Higher spherical harmonics are left out: the format has none.

    Raises:
        FeaturesplatError: nothing to write; the disk is full and the like.
    """
    path = Path(path)
    gaussians = ready_to_write(gaussians, path)
    importance = gaussians.log_scales.sum(dim=1) + torch.nn.functional.logsigmoid(gaussians.logit_opacities)
    gaussians = gaussians[torch.argsort(importance, descending=True, stable=True)]
    rows = np.empty(len(gaussians), _RECORD)
    rows["xyz"] = gaussians.means.numpy()
    rows["scales"] = gaussians.scales.numpy()
    rows["rgba"][:, :3] = _to_bytes(gaussians.colors * 255)
    rows["rgba"][:, 3] = _to_bytes(gaussians.opacities * 255)
    rows["quat"] = _to_bytes(torch.nn.functional.normalize(gaussians.quats, dim=1) * 128 + 128)
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        rows.tofile(stream)


def read_splat(path: str | Path) -> Gaussians:
    """Read a ``.splat`` file: N Gaussians of degree 0, in the order of the file.

    Opacities of 0 and 1 are read a quarter of a step inside, so that their logits are finite. Records with
    NaN are left out, with a warning.

    Raises:
        FeaturesplatError: missing, empty, not a multiple of 32 bytes, or plainly another format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FeaturesplatError(f"{path}: could not be read ({error.strerror}).", "Check the path.") from error
    if not data:
        raise FeaturesplatError(f"{path}: is empty.", "Export it again; nothing was in it.")
    if data[:4] in (b"ply\n", b"ply\r"):
        raise FeaturesplatError(f"{path}: is a PLY file under another name.", "Rename it to end in .ply.")
    if len(data) % _RECORD.itemsize:
        raise FeaturesplatError(
            f"{path}: is truncated, or no .splat file: expected a multiple of 32 bytes, got {len(data)}.",
            "Copy or export the file again.",
        )
    rows = np.frombuffer(data, _RECORD)
    quats = torch.from_numpy(rows["quat"].astype(np.float32) / 128 - 1)
    quats[quats.abs().sum(dim=1) == 0, 0] = 1.0
    rgba = torch.from_numpy(rows["rgba"].astype(np.float32) / 255)
    gaussians = Gaussians(
        means=torch.from_numpy(rows["xyz"].astype(np.float32)),
        quats=torch.nn.functional.normalize(quats, dim=1),
        log_scales=torch.from_numpy(rows["scales"].astype(np.float32)).log(),
        logit_opacities=logit_of_byte(rgba[:, 3]),
        sh0=((rgba[:, None, :3] - 0.5) / SH_C0),
        shN=torch.zeros(len(rows), 0, 3),
    )
    return without_bad_rows(gaussians, str(path))


def logit_of_byte(opacity: Tensor) -> Tensor:
    """Logits of opacities that were stored in a byte; 0 and 255 a quarter of a step inside, to stay
    finite.
    """
    return torch.logit(opacity.clamp(0.25 / 255, 1 - 0.25 / 255))


def _to_bytes(values: Tensor) -> np.ndarray:
    return values.round().clamp(0, 255).to(torch.uint8).numpy()
