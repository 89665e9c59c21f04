"""What a data set knows beside its photographs: base colours, normals, materials, and how it looks under other light.

A reader module may have a function ``truths(path) -> Truths | None``; `truths_of` asks it. Nothing is read before it is
asked for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat import registry
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import read_environment, read_exr
from featuresplat.io.images import read_image
from featuresplat.types import Cameras

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset

Read = Callable[[], Tensor]


@dataclass(frozen=True)
class ViewTruth:
    """One view; each attribute reads a tensor at the photograph's full size, or is None where it is not known.

    Attributes:
        objects: bool [H, W], pixels of objects, none of them at an edge.
        albedo: [H, W, 3] linear base colour. normal: [H, W, 3] unit, world frame.
        roughness, metallic: [H, W, 1].
    """

    objects: Read
    albedo: Read | None = None
    normal: Read | None = None
    roughness: Read | None = None
    metallic: Read | None = None


@dataclass(frozen=True)
class RelitView:
    """One view under another light.

    Attributes:
        camera: one camera in the data's frame, or None: that of the photograph ``name``.
        name: the photograph's, or any.
        image: reads [H, W, 3] linear radiance. objects: reads bool [H, W].
        environment: reads the map, float32 array as `read_environment` gives it, in the data's frame.
        clipped: the image ends at 1, as pictures of 8 bits do.
    """

    name: str
    image: Read
    objects: Read
    environment: Callable[[], np.ndarray]
    camera: Cameras | None = None
    clipped: bool = True


@dataclass(frozen=True)
class Truths:
    """Attributes:
    views: by the photograph's name.
    relit: by the light's name.
    """

    views: Mapping[str, ViewTruth] = field(default_factory=dict)
    relit: Mapping[str, list[RelitView]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.views or self.relit)

    def view(self, name: str) -> ViewTruth | None:
        """The truth of a photograph, by its name or, where that is a stem, its stem."""
        return self.views.get(name) or self.views.get(Path(name).stem)


def truths_of(dataset: Dataset) -> Truths | None:
    """What the reader of a data set knows beside its photographs; None: nothing."""
    reader = registry.load("datasets", dataset.kind)
    found = reader.truths(dataset.root) if hasattr(reader, "truths") else None
    return found if found else None


# Pieces for readers


def linear_of(path: Path) -> Tensor:
    """[H, W, 3] linear radiance or colour of a picture: 8 bits by the inverse sRGB curve, .exr and .npy as they are.

    Raises:
        FeaturesplatError: missing or damaged, or OpenEXR is not installed.
    """
    if path.suffix.lower() == ".exr":
        return torch.from_numpy(read_exr(path))
    if path.suffix.lower() == ".npy":
        return torch.from_numpy(read_npy(path))[..., :3]
    return decoded(read_image(path)[0].float() / 255)


def decoded(encoded: Tensor) -> Tensor:
    """Linear values of sRGB-encoded ones (IEC 61966-2-1)."""
    return torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def read_npy(path: Path) -> np.ndarray:
    """A float32 array.

    Raises:
        FeaturesplatError: missing or damaged.
    """
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesplatError(f"{path}: is missing, damaged or no array ({error}).", "Get it again.") from None


def normals_of(path: Path) -> Tensor:
    """[H, W, 3] unit normals of a picture (n + 1) / 2; those of transparent pixels are whatever is stored."""
    return F.normalize(read_image(path)[0].float() / 127.5 - 1, dim=-1)


def alpha_of(path: Path) -> Tensor:
    """bool [H, W]: the pixels of a transparent picture that are covered wholly, with all of their neighbours."""
    _, alpha = read_image(path)
    if alpha is None:
        raise FeaturesplatError(f"{path}: expected a picture with transparency.", "Get it again.")
    return inner(alpha >= 254)


def inner(mask: Tensor) -> Tensor:
    """bool [H, W]: pixels whose eight neighbours are in the mask as well."""
    return -F.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0] > 0.5


def same_inside(ids: Tensor) -> Tensor:
    """bool [H, W]: pixels of an object, id above 0, whose eight neighbours show the same one."""
    wide = ids[None, None].float()
    return (-F.max_pool2d(-wide, 3, 1, 1) == F.max_pool2d(wide, 3, 1, 1))[0, 0] & (ids > 0)


# The layout of a transforms.json with truth beside it


def folder_truths(root: Path) -> Truths | None:
    """Truth in folders beside ``images/``, each file under the photograph's stem.

    ``instance/*.png`` (object index, 0 = background), ``albedo/*.png`` (sRGB-encoded base colour), ``normal/*.png``
    (world frame, (n + 1) / 2), ``meta.json`` with ``objects`` [{index, roughness, metallic}]; other lights in
    ``relit/NAME/linear/*.exr`` or ``relit/NAME/images/*.png``, or in a folder ``ROOT_relit`` beside, their maps in
    ``env/NAME.npy`` (.exr, .hdr).
    """
    if not (root / "instance").is_dir() or not (root / "normal").is_dir():
        return None
    materials = _materials(root / "meta.json")
    views = {}
    for file in sorted((root / "normal").glob("*.png")):
        ids = _ids_of(root / "instance" / file.name)
        albedo = root / "albedo" / file.name
        views[file.stem] = ViewTruth(
            objects=then(ids, same_inside),
            albedo=then(albedo, linear_of) if albedo.is_file() else None,
            normal=then(file, normals_of),
            roughness=None if materials is None else _looked_up(ids, materials[0]),
            metallic=None if materials is None else _looked_up(ids, materials[1]),
        )
    relit = {}
    for name, images, light in _relit_folders(root):
        found = [f for f in sorted(images.iterdir()) if f.stem in views]
        relit[name] = [
            RelitView(
                f.stem,
                then(f, linear_of),
                views[f.stem].objects,
                then(light, read_environment),
                clipped=f.suffix.lower() not in (".exr", ".npy"),
            )
            for f in found
        ]
    return Truths(views, relit)


def then(argument: Any, function: Callable[[Any], Any]) -> Callable[[], Any]:
    """``function`` of ``argument``, later; an argument that is itself such a reader is read first."""
    return lambda: function(argument() if callable(argument) else argument)


def _ids_of(path: Path) -> Read:
    @lru_cache(maxsize=1)
    def read() -> Tensor:
        return read_image(path)[0][..., 0].long()

    return read


def _looked_up(ids: Read, values: Tensor) -> Read:
    return lambda: values[ids()][..., None]


def _materials(path: Path) -> tuple[Tensor, Tensor] | None:
    """[256] roughness and metallic by object index."""
    try:
        things = json.loads(path.read_text(encoding="utf-8"))["objects"]
        out = torch.zeros(2, 256)
        for thing in things:
            out[:, int(thing["index"])] = torch.tensor([float(thing["roughness"]), float(thing["metallic"])])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return None
    return out[0], out[1]


def _relit_folders(root: Path) -> list[tuple[str, Path, Path]]:
    """(name, folder of images, map) of each other light."""
    found = []
    for where in (root / "relit", root.with_name(f"{root.name}_relit")):
        for folder in sorted(where.glob("*")) if where.is_dir() else ():
            images = next((folder / k for k in ("linear", "images") if _readable(folder / k)), None)
            maps = [p / "env" / f"{folder.name}{e}" for p in (root, where) for e in (".npy", ".hdr", ".exr")]
            light = next((m for m in maps if m.is_file()), None)
            if images is not None and light is not None:
                found.append((folder.name, images, light))
    return found


def _readable(folder: Path) -> bool:
    """There are pictures there, of a kind that can be read here."""
    first = next(iter(sorted(folder.glob("*"))), None) if folder.is_dir() else None
    if first is None or first.suffix.lower() != ".exr":
        return first is not None
    from importlib.util import find_spec

    return find_spec("OpenEXR") is not None
