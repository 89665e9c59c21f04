"""Photographs in, pictures out; resizing by true area averaging."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.sparse import csr_array
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path


def read_image(path: str | Path) -> tuple[Tensor, Tensor | None]:
    """Read an image as it should be seen: the EXIF orientation is applied.

    16-bit images are scaled to 8 bits (grey ones rounded, coloured ones cut by the decoder); grey, palette
    and CMYK images become RGB.

    Returns:
        (uint8 [H, W, 3], uint8 [H, W] alpha or None when the file has none).

    Raises:
        FeaturesplatError: missing, truncated, or not an image that Pillow can read; names the file.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except FileNotFoundError:
        raise FeaturesplatError(f"{path}: there is no such image.", "Check the path.") from None
    except Image.DecompressionBombError as error:
        raise FeaturesplatError(f"{path}: is too large to be opened ({error}).", "Scale it down first.") from None
    except UnidentifiedImageError:
        empty = path.is_file() and path.stat().st_size == 0
        raise FeaturesplatError(
            f"{path}: {'is empty' if empty else 'is not an image of a known format'}.",
            "Convert it to PNG or JPEG, or remove it.",
        ) from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow's words for broken files
        raise FeaturesplatError(
            f"{path}: is truncated or damaged ({error}).", "Copy it again, or remove it."
        ) from error
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide_grey(path, np.asarray(image)), None
    if image.mode in ("LA", "PA", "La", "RGBa") or (image.mode in ("P", "L", "RGB") and "transparency" in image.info):
        image = image.convert("RGBA")
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGB")
    pixels = torch.from_numpy(np.array(image))  # a copy, which torch may write to
    if image.mode == "RGBA":
        return pixels[..., :3].contiguous(), pixels[..., 3].contiguous()
    return pixels, None


def image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) as :func:`read_image` will give it, from the header alone; errors alike."""
    path = Path(path)
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            return (image.height, image.width) if turned else image.size
    except FileNotFoundError:
        raise FeaturesplatError(f"{path}: there is no such image.", "Check the path.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FeaturesplatError(
            f"{path}: is not an image of a known format, damaged or too large.",
            "Convert it to PNG or JPEG, or remove it.",
        ) from error


def resize_area(image: Tensor, width: int, height: int) -> Tensor:
    """Resize so that each new pixel is the mean of the area it covers; exact for any ratio.

    Args:
        image: [H, W] or [H, W, C]; uint8 (rounded to the nearest) or floating.
        width, height: the new size, exactly. Where it is larger, pixels are repeated and blended at their
            borders.

    Returns:
        [height, width(, C)] of the same dtype.

    Raises:
        FeaturesplatError: a size below 1 or an image of another shape.
    """
    if image.ndim not in (2, 3) or width < 1 or height < 1:
        raise FeaturesplatError(
            f"resize: expected [H, W] or [H, W, C] and a size of at least 1x1, got {tuple(image.shape)} and "
            f"{width}x{height}.",
            "Check the size asked for.",
        )
    if (image.shape[1], image.shape[0]) == (width, height):
        return image.clone()
    tail = tuple(image.shape[2:])
    values = image.detach().cpu().numpy()
    work = np.float64 if values.dtype == np.float64 else np.float32
    rows = _area_weights(image.shape[0], height, work) @ values.astype(work).reshape(image.shape[0], -1)
    rows = rows.reshape(height, image.shape[1], -1).swapaxes(0, 1).reshape(image.shape[1], -1)
    out = _area_weights(image.shape[1], width, work) @ rows
    out = out.reshape(width, height, -1).swapaxes(0, 1).reshape(height, width, *tail)
    if image.dtype == torch.uint8:
        out = np.rint(out).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(out)).to(image.dtype).to(image.device)


def write_image(path: str | Path, image: Tensor, quality: int = 95) -> None:
    """Write a picture, atomically; the ending (.png, .jpg, .jpeg, .webp) chooses the format.

    Args:
        path: the file.
        image: [H, W], [H, W, 1], [H, W, 3] or, not for JPEG, [H, W, 4]; uint8, or floating in 0..1 (clamped,
            rounded).
        quality: of JPEG and WebP.

    Raises:
        FeaturesplatError: another shape or ending; the disk is full and the like.
    """
    path = Path(path)
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower())
    if kind is None:
        raise FeaturesplatError(
            f"{path}: expected a picture that ends in .png, .jpg or .webp, got '{path.suffix}'.",
            "The ending chooses the format.",
        )
    pixels = to_bytes(image)
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if pixels.ndim not in (2, 3) or channels not in ((1, 3) if kind == "JPEG" else (1, 3, 4)):
        raise FeaturesplatError(
            f"{path}: expected [H, W], [H, W, 3]{'' if kind == 'JPEG' else ' or [H, W, 4]'}, got {tuple(image.shape)}.",
            "Choose the channels, or another format.",
        )
    array = pixels.reshape(pixels.shape[:2]) if channels == 1 else pixels
    options = {} if kind == "PNG" else {"quality": quality}
    with atomic_path(path) as temporary:
        Image.fromarray(array.numpy()).save(temporary, kind, **options)


def to_bytes(image: Tensor) -> Tensor:
    """uint8 of an image: floats in 0..1 are clamped and rounded, NaN is black; uint8 and bool (0 or 255)
    pass.
    """
    image = image.detach().cpu()
    if image.dtype == torch.uint8:
        return image.contiguous()
    if image.dtype == torch.bool:
        return image.to(torch.uint8) * 255
    return (image.float().nan_to_num(0.0) * 255).round().clamp(0, 255).to(torch.uint8).contiguous()


def _from_wide_grey(path: Path, values: np.ndarray) -> Tensor:
    """Grey levels of more than 8 bits to [H, W, 3]."""
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise FeaturesplatError(
            f"{path}: expected grey levels of 8 or 16 bits, got {values.dtype} up to {values.max()}.",
            "Convert it to PNG or JPEG.",
        )
    if values.max() <= 255:
        warnings.warn(f"{path}: a 16-bit image with no level above 255 will look black.", stacklevel=3)
    grey = np.rint(values / 257.0).astype(np.uint8)
    return torch.from_numpy(np.repeat(grey[:, :, None], 3, axis=2))


def _area_weights(size: int, new: int, dtype) -> csr_array:
    """Sparse [new, size]: the share of each old pixel in each new one; rows sum to 1."""
    edges = np.arange(new + 1, dtype=np.float64) * size / new
    first = np.floor(edges[:-1] + 1e-9).astype(np.int64)
    last = np.minimum(np.ceil(edges[1:] - 1e-9).astype(np.int64), size)
    counts = last - first
    row = np.repeat(np.arange(new), counts)
    col = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    share = np.minimum(col + 1, edges[row + 1]) - np.maximum(col, edges[row])
    return csr_array(((share * new / size).astype(dtype), (row, col)), shape=(new, size))
