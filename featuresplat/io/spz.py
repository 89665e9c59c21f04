"""Niantic's SPZ: about 20 bytes a Gaussian at degree 3 after gzip. https://github.com/nianticlabs/spz

A header of 16 bytes ("NGSP", version, count, degree, fractional bits, flags), then one block a property:
positions as 24-bit fixed point, opacities in a byte, colours as bytes of 0.5 + 0.15 sh0, log scales as bytes
of 16 (s + 10), rotations as the three smallest components (10 bits each) and the index of the largest in
xyzw, and harmonics as bytes of 128 + 128 c, coefficient by coefficient with its three channels together.
Versions 2 and 3 are one gzip stream (or, rarely, plain); version 4 compresses each block with zstd. Numbers
are kept in the data's own frame, as SuperSplat does; nothing is turned to the y-up axes that Niantic's own
tools assume.
"""

from __future__ import annotations

import importlib
import itertools
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_write_bytes
from featuresplat.io.finite import ready_to_write, without_bad_rows
from featuresplat.io.splat import logit_of_byte
from featuresplat.types import Gaussians

_MAGIC = 0x5053474E
_HEADER = struct.Struct("<IIIBBBB")
_COLOR_SCALE = 0.15
_LARGEST_RATIO = 1040  # deflate cannot expand by more; zstd can, but then not on data like this
_HIDDEN = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])  # components beside the largest


def write_spz(path: str | Path, gaussians: Gaussians) -> None:
    """Write SPZ version 3 (gzip), atomically, in the order given.

    Precision: positions half of 2^-b, b the most fractional bits that hold the farthest one (12 at an extent
    of 2048 units, at most 20); log scales 1/32 within -10..5.9; opacity 1/510; sh0 1/77 within -3.3..3.3;
    quaternion components 2.1e-3; harmonics 1/28 in the first band and 1/15 above, within -1..0.94. Degree 4
    is cut to 3, with a warning.

    Raises:
        FeaturesplatError: nothing to write; positions beyond 8 million units; the disk is full and the like.
    """
    path = Path(path)
    gaussians = ready_to_write(gaussians, path)
    count = len(gaussians)
    degree = gaussians.sh_degree
    if degree > 3:
        warnings.warn(f"{path}: SPZ is written with harmonics up to degree 3; degree 4 was cut.", stacklevel=2)
        degree = 3
    reach = float(gaussians.means.abs().max())
    bits = next((b for b in range(20, -1, -1) if reach * 2**b < 2**23 - 1), None)
    if bits is None:
        raise FeaturesplatError(f"{path}: SPZ holds positions up to 8.3e6, got {reach:.3g}.", "Use .ply, or recentre.")
    fixed = np.rint(gaussians.means.double().numpy() * 2**bits).astype("<i4")
    blocks = [
        _HEADER.pack(_MAGIC, 3, count, degree, bits, 0, 0),
        fixed.view(np.uint8).reshape(count, 3, 4)[:, :, :3].tobytes(),
        _bytes(gaussians.opacities.numpy() * 255),
        _bytes(gaussians.sh0.numpy() * (_COLOR_SCALE * 255) + 127.5),
        _bytes((gaussians.log_scales.numpy() + 10) * 16),
        _pack_quats(torch.nn.functional.normalize(gaussians.quats.double(), dim=1).numpy()).astype("<u4").tobytes(),
        _pack_harmonics(gaussians.shN[:, : (degree + 1) ** 2 - 1].numpy()),
    ]
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)  # 31: gzip framing
    atomic_write_bytes(path, b"".join([packer.compress(b"".join(blocks)), packer.flush()]))


def read_spz(path: str | Path) -> Gaussians:
    """Read SPZ version 2 or 3, and version 4 where zstd is at hand (Python 3.14, or the package
    ``zstandard``).

    Raises:
        FeaturesplatError: missing, not SPZ, truncated, a header that lies, no Gaussians, an unknown version,
            or version 4 without zstd.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FeaturesplatError(f"{path}: could not be read ({error.strerror}).", "Check the path.") from error
    zipped = data[:2] == b"\x1f\x8b"
    start = _gunzip(path, data, _HEADER.size) if zipped else data[: _HEADER.size]
    if len(start) < _HEADER.size or struct.unpack("<I", start[:4])[0] != _MAGIC:
        raise FeaturesplatError(f"{path}: is not an SPZ file.", "Give a .spz file, or rename it to what it is.")
    _, version, count, degree, bits, _, _ = _HEADER.unpack(start)
    if version not in ((2, 3) if zipped else (2, 3, 4)) or degree > 4 or bits > 24:
        raise FeaturesplatError(
            f"{path}: SPZ version {version}, degree {degree} is not known; 2 to 4 up to degree 4 are.",
            "Export it as .ply instead.",
        )
    if count == 0:
        raise FeaturesplatError(f"{path}: it holds 0 Gaussians.", "Export it again; nothing was in it.")
    rows = (degree + 1) ** 2 - 1
    sizes = [9 * count, count, 3 * count, 3 * count, (3 if version == 2 else 4) * count, 3 * rows * count]
    blocks = _zstd_blocks(path, data, sizes) if version == 4 else _plain_blocks(path, data, sizes, zipped)
    return _decode(path, blocks, count, rows, bits, version)


def _decode(path: Path, blocks: list[bytes], count: int, rows: int, bits: int, version: int) -> Gaussians:
    positions, alphas, colors, scales, rotations, harmonics = (np.frombuffer(b, np.uint8) for b in blocks)
    wide = np.zeros((count, 3, 4), np.uint8)
    wide[:, :, 1:] = positions.reshape(count, 3, 3)  # the three bytes high up: the shift below brings the sign along
    fixed = wide.view("<i4")[:, :, 0] >> 8
    if version == 2:
        vector = rotations.reshape(count, 3).astype(np.float64) / 127.5 - 1
        w = np.sqrt(np.maximum(1 - (vector**2).sum(axis=1), 0))
        quats = np.concatenate([w[:, None], vector], axis=1)
    else:
        quats = _unpack_quats(rotations.view("<u4"))
    floats = {
        "means": fixed / 2.0**bits,
        "quats": quats,
        "log_scales": scales.reshape(count, 3) / 16.0 - 10,
        "logit_opacities": logit_of_byte(torch.from_numpy(alphas / 255.0)).numpy(),
        "sh0": (colors.reshape(count, 1, 3) / 255.0 - 0.5) / _COLOR_SCALE,
        "shN": (harmonics.reshape(count, rows, 3) - 128.0) / 128,
    }
    gaussians = Gaussians(**{name: torch.from_numpy(v.astype(np.float32)) for name, v in floats.items()})
    return without_bad_rows(gaussians, str(path))


def _bytes(values: np.ndarray) -> bytes:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8).tobytes()


def _pack_harmonics(rest: np.ndarray) -> bytes:
    """[N, K-1, 3] to bytes; coarser than a byte, as the format's own tools do, because that is what
    compresses.
    """
    step = np.where(np.arange(rest.shape[1]) < 3, 8, 16)[None, :, None]
    return _bytes(np.floor((np.rint(rest * 128) + 128 + step // 2) / step) * step)


def _pack_quats(wxyz: np.ndarray) -> np.ndarray:
    xyzw = np.roll(wxyz, -1, axis=1)
    largest = np.abs(xyzw).argmax(axis=1)
    others = np.take_along_axis(xyzw, _HIDDEN[largest], 1)
    flip = np.take_along_axis(xyzw, largest[:, None], 1) < 0
    size = np.floor(np.abs(others) * (511 * np.sqrt(2)) + 0.5).clip(0, 511).astype(np.uint32)
    parts = size | ((others < 0) ^ flip).astype(np.uint32) << 9
    return largest.astype(np.uint32) << 30 | parts[:, 0] << 20 | parts[:, 1] << 10 | parts[:, 2]


def _unpack_quats(words: np.ndarray) -> np.ndarray:
    largest = (words >> 30).astype(np.int64)
    parts = np.stack([words >> shift & 1023 for shift in (20, 10, 0)], axis=1)
    others = np.where(parts >> 9 & 1, -1.0, 1.0) * (parts & 511) / (511 * np.sqrt(2))
    xyzw = np.empty((len(words), 4))
    np.put_along_axis(xyzw, _HIDDEN[largest], others, 1)
    np.put_along_axis(xyzw, largest[:, None], np.sqrt(np.maximum(1 - (others**2).sum(1), 0))[:, None], 1)
    return np.roll(xyzw, 1, axis=1)


def _gunzip(path: Path, data: bytes, length: int) -> bytes:
    """The first ``length`` bytes of a gzip stream, or fewer when it ends before."""
    try:
        return zlib.decompressobj(31).decompress(data, length)
    except zlib.error as error:
        raise FeaturesplatError(f"{path}: its gzip stream is damaged ({error}).", _AGAIN) from None


def _plain_blocks(path: Path, data: bytes, sizes: list[int], zipped: bool) -> list[bytes]:
    need = _HEADER.size + sum(sizes)
    # A header that lies must not make us ask for more than these bytes could ever hold.
    raw = data
    if zipped:
        raw = b"" if need > len(data) * _LARGEST_RATIO else _gunzip(path, data, need)
    if len(raw) < need:
        raise FeaturesplatError(f"{path}: is truncated, or its header lies: {need} bytes are promised.", _AGAIN)
    ends = np.cumsum([_HEADER.size, *sizes]).tolist()
    return [raw[a:b] for a, b in itertools.pairwise(ends)]


def _zstd_blocks(path: Path, data: bytes, sizes: list[int]) -> list[bytes]:
    decompress = _zstd(path)
    streams = data[15]
    (toc,) = struct.unpack_from("<I", data, 16) if len(data) >= 32 else (0,)
    at = toc + 16 * streams
    expected = sizes if sizes[-1] else sizes[:-1]
    if toc < 32 or streams != len(expected) or at > len(data):
        raise FeaturesplatError(f"{path}: the table of its streams is damaged.", _AGAIN)
    blocks = []
    for i, size in enumerate(expected):
        packed, promised = struct.unpack_from("<QQ", data, toc + 16 * i)
        if promised != size or at + packed > len(data) or size > packed * 100_000:
            raise FeaturesplatError(f"{path}: is truncated, or its header lies about stream {i}.", _AGAIN)
        blocks.append(decompress(data[at : at + packed], size))
        if len(blocks[-1]) != size:
            raise FeaturesplatError(f"{path}: stream {i} is damaged.", _AGAIN)
        at += packed
    return blocks + [b""] * (len(sizes) - len(blocks))


def _zstd(path: Path):
    """A function (bytes, size) -> bytes that expands one zstd stream to at most ``size`` bytes."""
    for name in ("compression.zstd", "zstandard"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        error = getattr(module, "ZstdError", ValueError)

        def expand(data: bytes, size: int, module=module, error=error) -> bytes:
            try:
                if hasattr(module, "ZstdDecompressor") and module.__name__ == "zstandard":
                    with module.ZstdDecompressor().stream_reader(data) as reader:
                        return reader.read(size)
                return module.ZstdDecompressor().decompress(data, size)
            except error as problem:
                raise FeaturesplatError(f"{path}: a zstd stream is damaged ({problem}).", _AGAIN) from None

        return expand
    raise FeaturesplatError(
        f"{path}: SPZ version 4 needs zstd, which this Python lacks.",
        "pip install zstandard, or export the file as SPZ version 3 or .ply.",
    )


_AGAIN = "Copy or export the file again."
