"""``transforms.json`` of nerfstudio and instant-ngp, or a pair ``transforms_train.json`` and ``_test.json``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featuresplat.config import DataConfig
from featuresplat.datasets import blender
from featuresplat.datasets._frames import read_files
from featuresplat.datasets._recording import Recording
from featuresplat.datasets._truths import Truths, folder_truths
from featuresplat.errors import FeaturesplatError

ORDER = 20
LAYOUT = "nerfstudio and instant-ngp: transforms.json, or transforms_train.json with transforms_test.json"


def detect(path: Path) -> bool:
    """Whether there is a transforms.json, or a pair that is not Blender's."""
    return bool(_files(path)) and not blender.detect(path)


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """All frames of the files in ``path``, or of the file ``path``.

    Where there is a pair, it is the split, and a transforms.json beside it is not needed. ``_val`` counts as test only
    where there is no ``_test``.

    Raises:
        FeaturesplatError: no such file, broken JSON, missing or wrong entries, missing images.
    """
    files = _files(path)
    if not files:
        raise FeaturesplatError(f"{path}: there is no transforms.json.", f"Expected {LAYOUT}.")
    return read_files(files)


def truths(path: Path) -> Truths | None:
    """What lies beside the images: see `featuresplat.datasets._truths.folder_truths`."""
    return folder_truths(path if path.is_dir() else path.parent)


def _files(path: Path) -> dict[str, Path]:
    """The files to read by the part they play: all, or train, test and val."""
    if path.is_file():
        return {"all": path} if path.suffix.lower() == ".json" and path.stem.startswith("transforms") else {}
    pair = {part: path / f"transforms_{part}.json" for part in ("train", "test", "val")}
    pair = {part: file for part, file in pair.items() if file.is_file()}
    single = path / "transforms.json"
    if "train" in pair or (pair and not single.is_file()):
        if "test" in pair:
            pair.pop("val", None)
        return pair
    return {"all": single} if single.is_file() else {}
