"""``cameras.json``: cameras that come back exactly as they were."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_write_text
from featuresplat.types import Cameras

FORMAT = 1
_CONVENTION = "viewmat: world to camera, OpenCV axes (x right, y down, z forward); K: pixels, pixel centres at +0.5"


def write_cameras(path: str | Path, cameras: Cameras) -> None:
    """Write cameras as JSON, one a line, atomically. Numbers have all their digits, so reading is exact.

    Raises:
        FeaturesplatError: the disk is full and the like.
    """
    dtype = str(cameras.viewmats.dtype).removeprefix("torch.")
    times = None if cameras.times is None else cameras.times.double().tolist()
    rows = []
    for i, (viewmat, K) in enumerate(
        zip(cameras.viewmats.double().tolist(), cameras.Ks.double().tolist(), strict=True)
    ):
        row = {"name": cameras.names[i], "width": cameras.widths[i], "height": cameras.heights[i]}  # pyright: ignore
        row |= {"viewmat": viewmat, "K": K} | ({} if times is None else {"time": times[i]})
        rows.append(json.dumps(row, ensure_ascii=False))
    head = json.dumps({"format": FORMAT, "convention": _CONVENTION, "dtype": dtype})
    atomic_write_text(path, head[:-1] + ', "cameras": [\n' + ",\n".join(rows) + "\n]}\n")


def read_cameras(path: str | Path) -> Cameras:
    """Read what :func:`write_cameras` wrote, in the floating dtype it was written from.

    Raises:
        FeaturesplatError: missing, not JSON, of a newer format, incomplete, or with numbers that are not
            finite.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FeaturesplatError(f"{path}: there is no such file.", "Check the path.") from None
    except (OSError, ValueError) as error:
        raise FeaturesplatError(f"{path}: is not readable JSON ({error}).", _AGAIN) from error
    try:
        if int(data["format"]) > FORMAT:
            raise FeaturesplatError(
                f"{path}: was written in camera format {data['format']}; the newest known here is {FORMAT}.",
                "Update featuresplat.",
            )
        dtype = {"float32": torch.float32, "float64": torch.float64}[data["dtype"]]
        rows = data["cameras"]
        times = [row["time"] for row in rows] if rows and "time" in rows[0] else None
        cameras = Cameras(
            torch.tensor([row["viewmat"] for row in rows], dtype=dtype).reshape(-1, 4, 4),
            torch.tensor([row["K"] for row in rows], dtype=dtype).reshape(-1, 3, 3),
            [row["width"] for row in rows],
            [row["height"] for row in rows],
            None if times is None else torch.tensor(times, dtype=dtype),
            [row["name"] for row in rows],
        )
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise FeaturesplatError(f"{path}: is incomplete ({type(error).__name__}: {error}).", _AGAIN) from error
    finite = cameras.viewmats.isfinite().flatten(1).all(1) & cameras.Ks.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0, 0])
        raise FeaturesplatError(f"{path}: camera {bad} ('{cameras.names[bad]}') is not finite.", _AGAIN)
    return cameras


_AGAIN = "Write it again, in the form of a run's cameras.json."
