"""Which images are held out."""

from __future__ import annotations

import warnings
from pathlib import Path

from featuresplat.config import DataConfig
from featuresplat.datasets._recording import Frame
from featuresplat.errors import FeaturesplatError


def split(frames: list[Frame], own: bool, folders: list[Path], config: DataConfig) -> tuple[list[int], list[int]]:
    """Indices (train, test) of frames that are sorted by name.

    'auto' takes the data's own split, else the first ``test.txt`` in ``folders``, else every ``test_every``-th;
    'every' holds out index 0, n, 2n, ... whatever the data says; 'all' trains on everything.

    Raises:
        FeaturesplatError: ``test_every`` below 1, a test.txt that names none of the images, nothing left to train on.
    """
    everything = list(range(len(frames)))
    lists = [folder / "test.txt" for folder in folders if (folder / "test.txt").is_file()]
    origin = f"every {config.test_every}-th image"
    if config.split == "all":
        return everything, []
    if config.split == "auto" and own:
        test = [i for i in everything if frames[i].split == "test"]
        train = [i for i in everything if frames[i].split == "train"]
        origin = "the data's own split"
    elif config.split == "auto" and lists:
        held, origin = _listed(frames, lists[0]), str(lists[0])
        train, test = [i for i in everything if i not in held], sorted(held)
    else:
        if config.test_every < 1:
            raise FeaturesplatError(
                f"test_every: expected at least 1, got {config.test_every}.", "Use split 'all' to hold nothing out."
            )
        train = [i for i in everything if i % config.test_every]
        test = everything[:: config.test_every]
    if not train:
        raise FeaturesplatError(
            f"no image is left to train on: all {len(test)} are held out by {origin}.",
            "Add training images, or hold nothing out: split 'all'.",
        )
    return train, test


def _listed(frames: list[Frame], path: Path) -> set[int]:
    """Indices of the frames that the file names, in full or by base name, with or without an ending."""
    names: dict[str, set[int]] = {}
    for i, frame in enumerate(frames):
        full = Path(frame.name)
        for key in {frame.name, full.name, full.with_suffix("").as_posix(), full.stem}:
            names.setdefault(key, set()).add(i)
    try:
        wanted = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise FeaturesplatError(f"{path}: is not a list of names ({error}).", "Write one name a line.") from None
    wanted = [line.replace("\\", "/") for line in wanted if line and not line.startswith("#")]
    unknown = [name for name in wanted if name not in names]
    if len(unknown) == len(wanted):
        raise FeaturesplatError(
            f"{path}: names none of the {len(frames)} images" + (f" (first: '{unknown[0]}')." if unknown else "."),
            "Write one image name a line, or remove the file.",
        )
    if unknown:
        warnings.warn(f"{path}: {len(unknown)} names belong to no image (first: '{unknown[0]}').", stacklevel=4)
    return set().union(*(names[name] for name in wanted if name in names))
