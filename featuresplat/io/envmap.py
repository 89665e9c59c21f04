"""Environment maps on disk: ``.npy``, ``.exr`` (OpenEXR, extra `inverse`), ``.hdr`` (Radiance), and 8-bit pictures.

A map is latitude-longitude, [H, 2 H, 3], or a cubemap, [6, S, S, 3] in .npy and a strip of six faces, one below the
other, [6 S, S, 3], elsewhere. Values are linear radiance, Rec. 709 primaries. Directions: see
`featuresplat.shading.cubemap`.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ENDINGS = (".npy", ".exr", ".hdr")
LARGEST = 16384


def read_environment(path: str | Path) -> np.ndarray:
    """float32 [H, W, 3] or [6, S, S, 3], finite and at least 0.

    An 8-bit picture is taken as sRGB, with a warning: its lamps are clipped to 1.

    Raises:
        FeaturesplatError: missing, damaged, another shape, negative or infinite values, an ending that is not known,
            or OpenEXR is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FeaturesplatError(f"{path}: there is no such environment map.", "Check the path.")
    ending = path.suffix.lower()
    if ending == ".npy":
        values = _read_npy(path)
    elif ending == ".exr":
        values = read_exr(path)
    elif ending in (".hdr", ".pic"):
        values = read_hdr(path)
    elif ending in PICTURES:
        from featuresplat.io.images import read_image

        values = read_image(path)[0].numpy()
    else:
        raise FeaturesplatError(
            f"{path}: expected an environment map that ends in {', '.join(ENDINGS)}, got '{path.suffix}'.",
            "Convert it to one of them.",
        )
    return checked_environment(values, str(path))


def checked_environment(values: np.ndarray, name: str) -> np.ndarray:
    """A map as `read_environment` gives it, from an array.

    Raises:
        FeaturesplatError: as there.
    """
    values = np.asarray(values)
    if values.ndim == 3 and values.shape[-1] == 4:
        values = values[..., :3]
    if values.ndim == 3 and values.shape[0] == 6 * values.shape[1] and values.shape[-1] == 3:
        values = values.reshape(6, values.shape[1], values.shape[1], 3)
    cube = values.ndim == 4 and values.shape[0] == 6 and values.shape[1] == values.shape[2] and values.shape[3] == 3
    wide = values.ndim == 3 and values.shape[2] == 3 and values.shape[1] == 2 * values.shape[0]
    if not (cube or wide) or values.shape[-2] < 4:
        raise FeaturesplatError(
            f"{name}: expected an environment map of [H, 2 H, 3] or [6, S, S, 3], got {list(values.shape)}.",
            "A latitude-longitude map is twice as wide as high.",
        )
    if values.dtype == np.uint8:
        warnings.warn(f"{name}: has 8 bits only, so its lamps are cut at 1; shadows and highlights will be weak.")
        encoded = values.astype(np.float32) / 255
        return np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4).astype(np.float32)
    if values.dtype.kind not in "fui":
        raise FeaturesplatError(f"{name}: expected numbers, got {values.dtype}.", "Store linear radiance as floats.")
    values = values.astype(np.float32)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        raise FeaturesplatError(
            f"{name}: {bad} values are infinite or not numbers.", "Replace them, e.g. by the largest finite value."
        )
    # Lossy compression leaves tiny negative values in the dark.
    if values.min() < -1e-3 * max(float(np.abs(values).mean()), 1e-12):
        raise FeaturesplatError(
            f"{name}: radiance cannot be negative, the least value is {values.min():.3g}.",
            "Store linear radiance, without colour grading.",
        )
    return np.maximum(values, 0)


def write_environment(path: str | Path, values: np.ndarray) -> None:
    """Write a map, atomically; the ending .npy, .exr or .hdr chooses the format. Cubemaps become strips in those two.

    Raises:
        FeaturesplatError: another shape or ending; the disk is full and the like.
    """
    path, values = Path(path), np.ascontiguousarray(values, dtype=np.float32)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise FeaturesplatError(
            f"{path}: expected an environment map that ends in {', '.join(ENDINGS)}, got '{path.suffix}'.",
            "The ending chooses the format.",
        )
    checked_environment(values, str(path))
    flat = values.reshape(-1, values.shape[-2], 3)
    with atomic_path(path) as temporary:
        if ending == ".npy":
            with open(temporary, "wb") as stream:
                np.save(stream, values, allow_pickle=False)
        elif ending == ".exr":
            header = {"compression": _openexr().ZIP_COMPRESSION, "type": _openexr().scanlineimage}
            _openexr().File(header, {"RGB": flat}).write(str(temporary))
        else:
            temporary.write_bytes(_hdr_bytes(flat))


def read_exr(path: Path) -> np.ndarray:
    """float32 [H, W, 3] of an OpenEXR file with channels R, G, B (or one, Y).

    Raises:
        FeaturesplatError: OpenEXR is not installed, the file is damaged or has no colours.
    """
    try:
        with _openexr().File(str(path), separate_channels=True) as file:
            planes = {name: np.asarray(c.pixels, np.float32) for name, c in file.channels().items()}
    except FeaturesplatError:
        raise
    except Exception as error:  # the library raises bare RuntimeErrors and worse
        raise FeaturesplatError(f"{path}: is damaged or no OpenEXR file ({error}).", "Export it again.") from None
    names = [next((n for n in planes if n.split(".")[-1].lower() == c), None) for c in ("r", "g", "b")]
    if None in names:
        if len(planes) == 1:
            return np.repeat(next(iter(planes.values()))[..., None], 3, axis=2)
        raise FeaturesplatError(f"{path}: has the channels {', '.join(planes)}, not R, G and B.", "Export colours.")
    return np.stack([planes[n] for n in names if n is not None], axis=-1)


def read_hdr(path: Path) -> np.ndarray:
    """float32 [H, W, 3] of a Radiance picture (RGBE, flat or run-length encoded; Ward 1991).

    Raises:
        FeaturesplatError: truncated, damaged, or not such a file.
    """
    data = path.read_bytes()
    wrong = FeaturesplatError(f"{path}: is damaged or no Radiance picture.", "Export it again.")
    head = re.match(rb"#\?.*?\n\n-Y (\d+) \+X (\d+)\n", data, re.DOTALL)
    if head is None:
        raise wrong
    if b"FORMAT=32-bit_rle_xyze" in head.group(0):
        raise FeaturesplatError(f"{path}: has XYZ colours.", "Export it as 32-bit_rle_rgbe.")
    height, width = int(head.group(1)), int(head.group(2))
    if not (0 < height <= LARGEST and 0 < width <= 2 * LARGEST):
        raise wrong
    body = np.frombuffer(data, np.uint8, offset=head.end())
    try:
        rgbe = _flat_rows(body, height, width) if not _is_packed(body, width) else _packed_rows(body, height, width)
    except (IndexError, ValueError):
        raise wrong from None
    scale = np.ldexp(np.float32(1), rgbe[..., 3].astype(np.int32) - 136)
    scale = np.where(rgbe[..., 3] == 0, 0, scale)
    return ((rgbe[..., :3].astype(np.float32) + 0.5) * scale[..., None]).astype(np.float32)


def _is_packed(body: np.ndarray, width: int) -> bool:
    return 8 <= width < 32768 and len(body) >= 4 and body[0] == 2 and body[1] == 2 and body[2] < 128


def _flat_rows(body: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pixels one after the other; a pixel (1, 1, 1, n) repeats the one before it (the old encoding)."""
    quads = body[: len(body) // 4 * 4].reshape(-1, 4)
    repeats = (quads[:, :3] == 1).all(1)
    if not repeats[: height * width].any():
        return quads[: height * width].reshape(height, width, 4)
    out: list[np.ndarray] = []
    count, shift = 0, 0
    for quad, again in zip(quads, repeats, strict=True):
        times = int(quad[3]) << shift if again else 1
        shift = shift + 8 if again else 0
        out.append(np.repeat(out[-1][-1:] if again else quad[None], times, axis=0))
        count += times
        if count >= height * width:
            break
    return np.concatenate(out)[: height * width].reshape(height, width, 4)


def _packed_rows(body: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows whose four planes are run-length encoded by themselves."""
    out = np.empty((height, 4, width), np.uint8)
    data, at = body.tobytes(), 0
    for row in range(height):
        if data[at : at + 2] != b"\2\2" or (data[at + 2] << 8 | data[at + 3]) != width:
            raise ValueError
        at += 4
        for plane in range(4):
            col = 0
            while col < width:
                length = data[at]
                if length > 128:
                    length -= 128
                    out[row, plane, col : col + length] = data[at + 1]
                    at += 2
                else:
                    if length == 0:
                        raise ValueError
                    out[row, plane, col : col + length] = body[at + 1 : at + 1 + length]
                    at += 1 + length
                col += length
            if col != width:
                raise ValueError
    return out.transpose(0, 2, 1)


def _hdr_bytes(rgb: np.ndarray) -> bytes:
    """A flat Radiance picture, 4 bytes a pixel: a shared exponent, so that the largest channel keeps 8 bits."""
    top = rgb.max(-1)
    mantissa, exponent = np.frexp(top)
    scale = np.where(top > 1e-32, mantissa * 256 / np.maximum(top, 1e-38), 0)
    rgbe = np.zeros((*rgb.shape[:2], 4), np.uint8)
    rgbe[..., :3] = np.minimum(rgb * scale[..., None], 255).astype(np.uint8)
    rgbe[..., 3] = np.where(top > 1e-32, exponent + 128, 0)
    # A pixel of (1, 1, 1) would read as a repetition, and a row's first (2, 2, n) as the packed encoding.
    rgbe[(rgbe[..., :3] == 1).all(-1), 0] = 2
    rgbe[(rgbe[..., 0] == 2) & (rgbe[..., 1] == 2), 1] = 3
    size = f"-Y {rgb.shape[0]} +X {rgb.shape[1]}\n"
    return b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n" + size.encode() + rgbe.tobytes()


def _read_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesplatError(f"{path}: is damaged or no array ({error}).", "Write it with numpy.save.") from None


def _openexr():
    try:
        import OpenEXR  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise FeaturesplatError(
            "OpenEXR files need the package OpenEXR", 'pip install "featuresplat[inverse]", or convert the map to .npy.'
        ) from None
    return OpenEXR
