"""Make a teacher's maps of a scene's photographs, and keep them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from featuresplat.config import DataConfig
from featuresplat.config_fields import TeacherConfig
from featuresplat.config_ranges import check_ranges
from featuresplat.errors import FeaturesplatError
from featuresplat.verbs._shared import Flag, given
from featuresplat.verbs._shared import progress as progress_bar
from featuresplat.verbs.distill import with_short_flags

ORDER = 12


@dataclass
class ExtractArgs:
    """Make a teacher's maps of a scene's photographs, and keep them in the cache that train and distill look into.

    Short form: --teacher NAME.
    """

    scene: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE", help_behavior_hint="")] = ""
    """A run folder, or a scene of any layout that train reads."""
    cache: Path | None = None
    """Folder where maps are kept; default: featuresplat/maps in the user's cache folder."""
    channels: int = 0
    """Keep only so many principal components of the maps; 0 keeps all."""
    device: str = "auto"
    """Of the teacher: auto, cpu, cuda or cuda:N."""
    quiet: Flag = False
    """No progress bar."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)


def main(argv: list[str]) -> None:
    """Make a teacher's maps of a scene's photographs, and keep them."""
    args = tyro.cli(ExtractArgs, args=with_short_flags(argv, ["--teacher"]), prog="featuresplat extract")
    source = given("extract", args.scene, "a run folder or the folder of a scene", "SCENE --teacher sam")
    from featuresplat import teachers
    from featuresplat.config_fields import FieldConfig
    from featuresplat.datasets import load_dataset
    from featuresplat.devices import usable_device
    from featuresplat.fields import distill
    from featuresplat.fields.extract import extract

    if args.channels < 0:
        raise FeaturesplatError(f"channels: expected at least 0, got {args.channels}", "0 keeps all channels.")
    check_ranges(args.teacher, "teacher.")
    check_ranges(args.data, "data.")
    names = distill.teacher_names(args.teacher)
    config = FieldConfig(cache=args.cache, cache_channels=args.channels)
    device = usable_device(args.device)
    loaded = [teachers.make_teacher(name, replace(args.teacher, name=name), device) for name in names]
    if (source / "scene.json").is_file():
        from featuresplat.evaluate import dataset_of
        from featuresplat.scene import Scene

        dataset = dataset_of(Scene.load(source))
    else:
        dataset = load_dataset(source, args.data)
    bar = (lambda numbers, word: numbers) if args.quiet else progress_bar
    for teacher in loaded:
        cache = distill.map_cache(teacher, config)
        if cache is None:
            print(f"{teacher.name}: its maps are files already.")
            continue
        for difference in cache.others():
            print(f"note: maps of {teacher.name} with other settings are kept beside these ({difference})")
        extract(dataset, teacher, range(len(dataset)), cache, progress=bar)
        megabytes = sum(f.stat().st_size for f in cache.folder.iterdir()) / 1e6
        print(f"{teacher.name}: {len(dataset)} images, {teacher.dim} channels, {megabytes:.1f} MB in {cache.folder}")
