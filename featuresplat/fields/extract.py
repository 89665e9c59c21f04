"""A teacher's maps of a data set's images, through the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from featuresplat.fields.cache import MapCache, image_key
from featuresplat.fields.maps import Maps, Progress, silent
from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset
    from featuresplat.teachers import Teacher

SAMPLE = 16
"""Images whose maps decide the basis of a compressed cache."""


def extract(
    dataset: Dataset,
    teacher: Teacher,
    indices: Sequence[int],
    cache: MapCache | None,
    cameras: Cameras | None = None,
    progress: Progress = silent,
) -> Maps:
    """Make the maps that the cache lacks; one image and one map are in memory at a time.

    Args:
        dataset: the photographs.
        teacher: loaded, as maps may be missing.
        indices: which images.
        cache: where maps are kept; None asks the teacher each time, for teachers whose maps are files already.
        cameras: of these images, where they are not the data's (refined poses).
        progress: wraps the loop over the images.

    Raises:
        FeaturesplatError: a damaged image, a teacher that cannot answer, a full disk.
    """
    indices = list(indices)
    cameras = dataset.cameras[indices] if cameras is None else cameras
    names = [str(dataset.cameras.names[i]) for i in indices]

    def encode(k: int) -> Tensor:
        return teacher.encode_image(dataset.image(indices[k]).float() / 255.0, name=names[k])

    def mask(k: int) -> Tensor | None:
        return dataset.mask(indices[k])

    if cache is None:
        return Maps(cameras, teacher.dim, encode, mask)
    keys: dict[int, str] = {}

    def make(k: int) -> None:
        keys[k] = keys.get(k) or image_key(dataset.image(indices[k]))
        if not cache.has(keys[k]):
            cache.put(keys[k], encode(k), names[k])

    def fetch(k: int) -> Tensor:
        found = cache.get(keys[k])
        if found is None:  # damaged or deleted since
            cache.put(keys[k], encode(k), names[k])
            found = cache.get(keys[k])
        assert found is not None
        return found

    first = _spread(len(indices)) if cache.channels and cache.basis() is None else []
    for k in progress(first, f"{teacher.name} maps, the first {len(first)}") if first else ():
        make(k)
    cache.compress([keys[k] for k in first])
    for k in progress(range(len(indices)), f"{teacher.name} maps"):
        make(k)
    return Maps(cameras, teacher.dim, fetch, mask)


def _spread(count: int) -> list[int]:
    some = min(SAMPLE, count)
    return [round(k * (count - 1) / max(some - 1, 1)) for k in range(some)]
