"""Plain photographs: a folder of images, or with an ``images`` folder in it, without any poses.

The poses are found by structure from motion (extra ``sfm``). Photographs that share size, camera and focal length
(EXIF) share one camera; the EXIF focal length is where its calibration starts; the EXIF orientation is applied. World
frame: COLMAP's (camera x right, y down, z forward; scale and up direction are arbitrary).
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from featuresplat.datasets import _sfm
from featuresplat.errors import FeaturesplatError

if TYPE_CHECKING:
    from featuresplat.config import DataConfig
    from featuresplat.datasets._recording import Recording

ORDER = 90
"""Asked last: whatever brings poses of its own goes before."""
LAYOUT = "plain photographs: a folder of images (or with images/ in it), whose poses are then found"
ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})
_OTHER_LAYOUTS = ("sparse", "colmap", "distorted", "cameras.bin", "cameras.txt", "scene.json")
_COLMAP_READS = ("JPEG", "MPO", "PNG", "TIFF", "BMP")
_ORIENTATION, _MAKE, _MODEL, _EXIF = 0x0112, 0x010F, 0x0110, 0x8769
_FOCAL, _FOCAL_35MM = 0x920A, 0xA405


def detect(path: Path) -> bool:
    """Whether ``path`` is a folder that holds an image, and nothing that tells of another layout."""
    if (
        not path.is_dir()
        or any((path / name).exists() for name in _OTHER_LAYOUTS)
        or any(path.glob("transforms*.json"))
    ):
        return False
    return any(_is_photo(file) for folder in (path / "images", path) if folder.is_dir() for file in folder.iterdir())


def read(path: Path, config: DataConfig, progress: _sfm.Progress | None = None) -> Recording:
    """Find the poses, or take them from an earlier run over the same files.

    Raises:
        FeaturesplatError: pycolmap is missing; fewer than three photographs can be read or registered.
    """
    files = list_photos(path)
    if len(files) < 3:
        raise FeaturesplatError(f"{path}: poses need at least 3 photographs, found {len(files)}.", _sfm.ADVICE)
    from featuresplat.datasets import colmap

    work = _sfm.work_folder(files, "photos as a film" if config.film else "photos")
    if not (work / "verdict.json").is_file():
        _sfm.require_pycolmap()
    with _sfm.locked(work), _sfm.Bar.unless(progress) as report:
        groups, unreadable = prepare(files, work / "images", report)
        names = sorted(name for group in groups for name in group)
        if config.film:
            from featuresplat.priors.unposed import mask_motion

            mask_motion(work, names, report)
        _sfm.reconstruct(work, groups, unreadable, report, video=config.film)
    recording = colmap.read_model(work / "sparse" / "0", work / "images", masks=path / "masks")
    recording.images = files[0].parent  # where a test.txt of the user's may lie
    return _sfm.timed(recording, names) if config.film else recording


def list_photos(path: Path) -> list[Path]:
    """The photographs of ``path/images``, or else of ``path``, in order of their names."""
    for folder in (path / "images", path):
        found = sorted(file for file in folder.iterdir() if _is_photo(file)) if folder.is_dir() else []
        if found:
            return found
    return []


def _is_photo(file: Path) -> bool:
    return file.suffix.lower() in ENDINGS and not file.name.startswith(".") and file.is_file()


def prepare(files: list[Path], folder: Path, progress: _sfm.Progress) -> tuple[list[list[str]], list[str]]:
    """Put upright photographs of the same names into ``folder``: links where they are upright already, else copies.

    Returns:
        (names grouped by camera, names of the files that cannot be read).
    """
    groups: dict[tuple, list[str]] = {}
    unreadable = []
    for k, file in enumerate(files):
        progress("reading photographs", k, len(files))
        try:
            groups.setdefault(_prepare_one(file, folder / file.name), []).append(file.name)
        except (OSError, SyntaxError, ValueError, EOFError):  # Pillow's words for broken files
            (folder / file.name).unlink(missing_ok=True)
            unreadable.append(file.name)
    progress("reading photographs", len(files), len(files))
    return [groups[key] for key in sorted(groups, key=str)], unreadable


def _prepare_one(file: Path, target: Path) -> tuple:
    """Make ``target``; returns what photographs of one camera have in common: (width, height, make, model, focal)."""
    from PIL import Image, ImageOps

    with Image.open(file) as image:
        exif = image.getexif()
        inner = exif.get_ifd(_EXIF)
        turn = exif.get(_ORIENTATION, 1)
        shared = (
            *(image.size if turn < 5 else image.size[::-1]),
            *(str(v) for v in (exif.get(_MAKE), exif.get(_MODEL), inner.get(_FOCAL), inner.get(_FOCAL_35MM))),
        )
        if target.exists():
            return shared
        if turn in range(2, 9) or image.format not in _COLMAP_READS or image.mode in ("CMYK", "P"):
            upright = ImageOps.exif_transpose(image)  # drops the orientation from the EXIF block, keeps the rest
            if upright.mode in ("CMYK", "P"):
                upright = upright.convert("RGBA" if "transparency" in upright.info else "RGB")
            part = target.with_name(f".{target.name}")
            if image.format == "JPEG":
                upright.save(part, format="JPEG", quality=95, subsampling=0, exif=upright.getexif())
            else:  # the name stays; readers go by what is inside
                upright.save(part, format="PNG", exif=upright.getexif(), compress_level=1)
            os.replace(part, target)
            return shared
        image.draft("L", (image.width // 8, image.height // 8))  # JPEG: eight times faster, finds truncation alike
        image.load()
    _link(file, target)
    return shared


def _link(file: Path, target: Path) -> None:
    """A hard link where the cache is on the same disk, else a copy; written in one step."""
    part = target.with_name(f".{target.name}")
    part.unlink(missing_ok=True)
    linked = False
    with suppress(OSError, NotImplementedError):
        os.link(file.resolve(), part)
        linked = True
    if not linked:
        shutil.copyfile(file, part)
    os.replace(part, target)
