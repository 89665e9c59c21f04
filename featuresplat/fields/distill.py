"""From a scene and a teacher's name to a scene with a field: extract, lift, refine, make compact."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat import teachers
from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.config_ranges import check_ranges
from featuresplat.decoders import Decoder, LinearDecoder, MLPDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.fields.cache import MapCache, default_folder
from featuresplat.fields.compact import codebook
from featuresplat.fields.extract import extract
from featuresplat.fields.lift import Lifted, lift
from featuresplat.fields.maps import Maps, Progress, principal_axes, second_moment, silent
from featuresplat.fields.train import Head, refine
from featuresplat.scene import Scene
from featuresplat.types import FeatureField, TextTable

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset
    from featuresplat.teachers import Teacher

ON_DISK = "precomputed"
"""The teacher whose maps are files already: nothing is gained by keeping them twice."""


def distill(
    scene: Scene,
    dataset: Dataset,
    teacher: TeacherConfig,
    field: FieldConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: Progress = silent,
) -> Scene:
    """The scene with a field of each teacher that ``teacher.name`` lists (commas between): over one code if several.

    Args:
        scene: finished; its training views are what the teacher looks at.
        dataset: the photographs of the scene.
        teacher: which, and its weights.
        field: how; None takes the defaults.
        device: of the teacher.
        seed: of the refinement.

    Raises:
        FeaturesplatError: an unknown teacher or one without weights, photographs that are not the scene's, a field
            configuration that contradicts itself, too little disk.
    """
    config = field or FieldConfig()
    names = teacher_names(teacher)
    check(names, config)
    began = time.perf_counter()
    with _few_threads(scene.gaussians.means.device):
        made = _made(scene, dataset, teacher, names, config, device, seed, progress)
    seconds = round(time.perf_counter() - began, 3)
    for value in made.values():
        value.info["seconds"] = seconds
    kept = {name: value for name, value in scene.fields.items() if name not in made}
    return replace(scene, fields={**kept, **made})


def _made(scene, dataset, teacher, names, config, device, seed, progress) -> dict[str, FeatureField]:
    loaded: list[Teacher] = [teachers.make_teacher(n, replace(teacher, name=n), device) for n in names]
    maps = [maps_of(scene, dataset, t, config, progress) for t in loaded]
    return make_fields(scene, maps, loaded, config, seed=seed, progress=progress)


@contextmanager
def _few_threads(device: torch.device) -> Iterator[None]:
    """torch's threads spin while they wait, and would take the cores from the native engine."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def teacher_names(teacher: TeacherConfig) -> list[str]:
    """The names that ``teacher.name`` lists.

    Raises:
        FeaturesplatError: none.
    """
    names = [n.strip() for n in teacher.name.split(",") if n.strip()]
    if not names:
        raise FeaturesplatError("teacher: expected the name of one, got none.", "Give --teacher offline, clip, sam ...")
    return list(dict.fromkeys(names))


def field_names(names: Sequence[str], config: FieldConfig) -> list[str]:
    """What the fields of these teachers are called in the scene."""
    return [config.name] if config.name and len(names) == 1 else list(names)


def check(names: Sequence[str], config: FieldConfig) -> None:
    """Raise where a field configuration cannot work."""
    check_ranges(config, "field.")
    if len(names) > 1 and (config.dim == 0 or config.steps == 0):
        raise FeaturesplatError(
            f"teacher: {len(names)} teachers share one code, which has to be trained.",
            "Add --field.dim 32 --field.steps 1000, or distill one teacher after the other.",
        )
    if config.decoder == "mlp" and (config.dim == 0 or config.steps == 0):
        raise FeaturesplatError(
            "field.decoder: an MLP has to be trained.", "Add --field.dim 32 --field.steps 1000."
        )  # fmt: skip
    if config.codebook and len(names) > 1:
        raise FeaturesplatError("field.codebook: is of one teacher.", "Distill one teacher after the other.")


def map_cache(teacher: Teacher, config: FieldConfig) -> MapCache | None:
    """The cache of a teacher's maps; None for maps that are files already."""
    if teacher.name == ON_DISK:
        return None
    folder = Path(config.cache) if config.cache is not None else default_folder()
    return MapCache(folder, teacher.name, dict(teacher.settings), teacher.dim, config.cache_channels)


def maps_of(scene: Scene, dataset: Dataset, teacher: Teacher, config: FieldConfig, progress: Progress = silent) -> Maps:
    """The teacher's maps of the scene's training views, extracted where the cache lacks them."""
    wanted = scene.names("train") or [n for n in scene.cameras.names if n]
    there = {name: i for i, name in enumerate(dataset.cameras.names)}
    missing = [name for name in wanted if name not in there]
    if missing or not wanted:
        what = f"'{missing[0]}' and {len(missing) - 1} more of" if missing else "none of"
        raise FeaturesplatError(f"{dataset.root}: {what} the scene's views are not among the images.", "Give its data.")
    places = {name: i for i, name in enumerate(scene.cameras.names)}
    cameras = scene.cameras[[places[name] for name in wanted]]
    return extract(dataset, teacher, [there[n] for n in wanted], map_cache(teacher, config), cameras, progress)


def make_fields(
    scene: Scene,
    maps: Sequence[Maps],
    loaded: Sequence[Teacher],
    config: FieldConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, FeatureField]:
    """Fields by name from the maps of one or several teachers; see `distill`."""
    dims = _split(config.dim, [m.dim for m in maps])
    lifted: list[Lifted] = []
    axes: list[Tensor | None] = []
    for m, dim in zip(maps, dims, strict=True):
        basis = principal_axes(second_moment(m, progress=progress), dim)[0] if dim < m.dim or len(maps) > 1 else None
        lifted.append(lift(scene, m, config.lift, basis=basis, memory=config.memory, progress=progress))
        axes.append(basis)
    codes = torch.cat([one.codes for one in lifted], dim=1) if len(lifted) > 1 else lifted[0].codes
    decoders = [d if d is None else d.to(codes.device) for d in _decoders(axes, config)]
    if config.steps:
        heads = [Head(m, d, config.loss) for m, d in zip(maps, decoders, strict=True)]
        codes = refine(scene, codes, heads, config.steps, config.lr, seed=seed, progress=progress)
    confidence = torch.stack([one.confidence for one in lifted]).mean(0)
    method = f"lift {config.lift}" + (f", {config.steps} steps of {config.loss}" if config.steps else "")
    made: dict[str, FeatureField] = {}
    names = field_names([t.name for t in loaded], config)
    for name, teacher, decoder in zip(names, loaded, decoders, strict=True):
        info: dict[str, Any] = {"teacher": dict(teacher.settings), "method": method}
        value = FeatureField(codes, teacher.name, decoder, confidence, text_table(teacher), info)
        made[name] = codebook(value, config.codebook, seed=seed) if config.codebook else value
    return made


def text_table(teacher: Any) -> TextTable | None:
    """The phrases that a teacher is a table of, to be kept with the field."""
    table: Mapping[str, Tensor] | TextTable | None = getattr(teacher, "table", None)
    if table is None or isinstance(table, TextTable):
        return table
    return TextTable(tuple(table), torch.stack([v.float() for v in table.values()])) if table else None


def _split(dim: int, available: Sequence[int]) -> list[int]:
    """Channels of each teacher's share in the code."""
    if len(available) == 1:
        return [min(dim, available[0]) or available[0]]
    each = [dim // len(available) + (k < dim % len(available)) for k in range(len(available))]
    return [max(1, min(e, a)) for e, a in zip(each, available, strict=True)]


def _decoders(axes: Sequence[Tensor | None], config: FieldConfig) -> list[Decoder | None]:
    """Decoders that begin as the principal components: each teacher reads its own share of the code."""
    if len(axes) == 1 and axes[0] is None:
        return [None]
    bases = [a for a in axes if a is not None]
    width = sum(a.shape[1] for a in bases)
    out: list[Decoder | None] = []
    at = 0
    for basis in bases:
        features, own = basis.shape
        decoder = MLPDecoder(width, features) if config.decoder == "mlp" else LinearDecoder(width, features)
        decoder.weight.data[:, at : at + own] = basis
        out.append(decoder.requires_grad_(False))
        at += own
    return out
