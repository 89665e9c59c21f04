"""Maps on disk, made once per image: half floats, memory-mapped, one file an image.

::

    FOLDER/TEACHER-KEY/         KEY is a hash of the teacher's settings
        settings.json           format, teacher, dim, settings, channels
        basis.safetensors       [F, K], of a compressed cache
        IMAGE.safetensors       the map [h, w, F], or [h, w, K] on the basis; IMAGE is a hash of the pixels

Every file is written atomically, so an interrupted extraction goes on where it stopped; every map carries a checksum
and is made again when it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.fields.maps import principal_axes
from featuresplat.io.atomic import atomic_write_json
from featuresplat.io.tensors import read_tensors, write_tensors

FORMAT = 1
SETTINGS, BASIS = "settings.json", "basis.safetensors"


def default_folder() -> Path:
    """``featuresplat/maps`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "featuresplat" / "maps"


def image_key(image: Tensor) -> str:
    """A hash of the pixels of an image, uint8 [H, W, 3]."""
    pixels = image.detach().cpu().contiguous()
    digest = hashlib.blake2b(repr((tuple(pixels.shape), str(pixels.dtype))).encode(), digest_size=16)
    digest.update(pixels.numpy().data)
    return digest.hexdigest()


class MapCache:
    """The maps of one teacher with one set of settings."""

    def __init__(self, folder: Path, teacher: str, settings: dict[str, Any], dim: int, channels: int = 0):
        """
        Args:
            folder: what holds the caches of all teachers; made when missing.
            settings: plain JSON values that decide the maps.
            dim: F.
            channels: keep so many principal components; 0, or F and more, keeps the maps.

        Raises:
            FeaturesplatError: the folder of these settings says that other settings wrote it.
        """
        channels = 0 if channels >= dim else channels
        self.said = {"format": FORMAT, "teacher": teacher, "dim": dim, "settings": settings, "channels": channels}
        self.said = json.loads(json.dumps(self.said))  # as it reads back: lists for tuples
        key = hashlib.sha256(json.dumps(self.said, sort_keys=True).encode()).hexdigest()[:12]
        self.folder, self.dim, self.channels = folder / f"{teacher}-{key}", dim, channels
        self._checked: set[str] = set()
        self._basis: Tensor | None = None
        self._check_settings()

    def entry(self, key: str) -> Path:
        """The file of an image's map."""
        return self.folder / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is a map that can be read; one that is damaged is told and does not count."""
        return self._read(key) is not None

    def get(self, key: str) -> Tensor | None:
        """[h, w, F], memory-mapped half floats, or decoded where the cache is compressed; None when there is none."""
        found = self._read(key)
        if found is None or found.shape[2] == self.dim:
            return found
        basis = self.basis()
        return None if basis is None else found.float() @ basis.T

    def put(self, key: str, values: Tensor, name: str = "") -> None:
        """Keep a map [h, w, F], on the basis as soon as there is one.

        Raises:
            FeaturesplatError: not F channels, not finite, or the disk is full.
        """
        if values.ndim != 3 or values.shape[2] != self.dim:
            raise FeaturesplatError(
                f"{name}: expected a map [h, w, {self.dim}], got {list(values.shape)}",
                "The teacher does not give what it promises; report it.",
            )
        if not bool(values.isfinite().all()):
            raise FeaturesplatError(f"{name}: its map holds NaN or infinite values", "Check the image and the teacher.")
        basis = self.basis() if self.channels else None
        self._write(key, values if basis is None else values.float() @ basis, name)

    def basis(self) -> Tensor | None:
        """[F, K] of a compressed cache, as soon as `compress` has made it."""
        path = self.folder / BASIS
        if self._basis is None and self.channels and path.is_file():
            try:
                found = read_tensors(path)[0]["basis"]
            except (FeaturesplatError, KeyError) as error:
                raise FeaturesplatError(
                    f"{path}: is damaged; the maps that lean on it cannot be read.", f"Delete {self.folder}."
                ) from error
            self._basis = found
        return self._basis

    def compress(self, keys: list[str]) -> None:
        """Make the basis of the given maps, kept whole so far, and write them on it."""
        if not self.channels or self.basis() is not None:
            return
        moment, count = torch.zeros(self.dim, self.dim, dtype=torch.float64), 0
        for key in keys:
            found = self._read(key)
            if found is not None and found.shape[2] == self.dim:
                cells = found.reshape(-1, self.dim).float()
                cells = cells[:: max(1, len(cells) // 4096)]
                moment += (cells.T @ cells).double()
                count += len(cells)
        write_tensors(self.folder / BASIS, {"basis": principal_axes(moment / max(count, 1), self.channels)[0]})
        for key in keys:
            found = self._read(key)
            if found is not None and found.shape[2] == self.dim:
                self.put(key, found)

    def others(self) -> list[str]:
        """What differs between these settings and those of other caches of the same teacher beside this one."""
        found = []
        for path in sorted(self.folder.parent.glob(f"{self.said['teacher']}-*/{SETTINGS}")):
            if path.parent != self.folder:
                try:
                    found.append(_difference(self.said, json.loads(path.read_text(encoding="utf-8"))))
                except (OSError, ValueError, AttributeError):
                    continue
        return found

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS
        if not path.is_file():
            atomic_write_json(path, self.said)
            return
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            there = None
        if there != self.said:
            what = _difference(self.said, there) if isinstance(there, dict) else "it cannot be read"
            raise FeaturesplatError(
                f"{self.folder}: this cache was written by other settings ({what}).",
                "Delete that folder, or give another with --field.cache.",
            )

    def _write(self, key: str, values: Tensor, name: str) -> None:
        half = values.detach().cpu().clamp(-65504, 65504).half().contiguous()
        write_tensors(self.entry(key), {"map": half}, {"image": name, "crc32": str(_checksum(half))})
        self._checked.add(key)

    def _read(self, key: str) -> Tensor | None:
        """The stored map, checked once a session; None when it is missing or damaged."""
        path = self.entry(key)
        if not path.is_file():
            return None
        try:
            tensors, header = read_tensors(path)
            found = tensors["map"]
            good = found.ndim == 3 and found.shape[2] in (self.dim, self.channels) and found.dtype == torch.float16
            if good and key not in self._checked:
                good = header.get("crc32") == str(_checksum(found))
        except (FeaturesplatError, KeyError):
            good, found = False, None
        if not good:
            warnings.warn(f"{path}: this cached map is damaged and is made again.", stacklevel=3)
            path.unlink(missing_ok=True)
            return None
        self._checked.add(key)
        return found


def _checksum(values: Tensor) -> int:
    return zlib.crc32(values.numpy().data)


def _difference(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """'model: a here, b there' for each value that differs."""

    def flat(values: dict[str, Any]) -> dict[str, Any]:
        return {**{k: v for k, v in values.items() if k != "settings"}, **dict(values.get("settings") or {})}

    a, b = flat(mine), flat(theirs)
    return "; ".join(
        f"{k}: {a.get(k)!r} here, {b.get(k)!r} there" for k in sorted({*a, *b}) if a.get(k) != b.get(k)
    )  # fmt: skip
