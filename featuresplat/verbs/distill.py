"""Add a feature field to a finished run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.config_ranges import check_ranges
from featuresplat.errors import FeaturesplatError
from featuresplat.verbs._shared import Flag, given
from featuresplat.verbs._shared import progress as progress_bar

ORDER = 14
SHORT = {"--teacher": "--teacher.name", "--lift": "--field.lift", "--dim": "--field.dim", "--steps": "--field.steps"}
"""Short forms of flags; extract has the first."""


@dataclass
class DistillArgs:
    """Add a feature field to a finished run: a teacher's maps of its photographs, carried onto its Gaussians.

    Short forms: --teacher NAME, --lift METHOD, --dim CHANNELS, --steps STEPS. Several teachers over one code:
    --teacher clip,dino --dim 32 --steps 1000.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = ""
    """Folder that train made."""
    out: Path | None = None
    """Another run folder to write to; default: RUN itself."""
    scene: Path | None = None
    """Where the photographs are; default: where RUN says they were."""
    device: str = "auto"
    """Of teacher and lift: auto, cpu, cuda or cuda:N."""
    report: bool = True
    """Write report.html anew at the end."""
    quiet: Flag = False
    """No progress bar and no summary."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    field: FieldConfig = field(default_factory=FieldConfig)


def main(argv: list[str]) -> None:
    """Add a feature field to a finished run."""
    args = tyro.cli(DistillArgs, args=with_short_flags(argv), prog="featuresplat distill")
    run = given("distill", args.run, "the folder of a run", "runs/NAME --teacher offline")
    from featuresplat.fields import distill
    from featuresplat.io.atomic import check_folder
    from featuresplat.scene import Scene

    check_ranges(args.teacher, "teacher.")
    names = distill.teacher_names(args.teacher)
    distill.check(names, args.field)
    scene = Scene.load(run)
    if args.out is not None and args.out.exists() and (args.out.is_file() or any(args.out.iterdir())):
        what = "is a file" if args.out.is_file() else "is not empty"
        raise FeaturesplatError(f"{args.out}: {what}.", "Give the name of a new folder.")
    check_folder(args.out or run)
    from featuresplat.devices import usable_device
    from featuresplat.evaluate import dataset_of

    device = usable_device(args.device)
    if args.scene is not None:
        scene.info = {**scene.info, "source": str(args.scene.resolve())}
    dataset = dataset_of(scene)
    bar = (lambda numbers, word: numbers) if args.quiet else progress_bar
    scene = distill.distill(scene.to(device), dataset, args.teacher, args.field, device=device, progress=bar)
    if scene.config is not None:
        scene.config.teacher, scene.config.field = args.teacher, args.field
    out = args.out or run
    scene.to("cpu").save(out)
    if args.report:
        from featuresplat.report import write_report

        write_report(out, dataset)
    if not args.quiet:
        for name in distill.field_names(names, args.field):
            value = scene.fields[name]
            decoded = f", decoded to {value.out_dim}" if value.decoder is not None else ""
            print(f"field {name}: {value.dim} channels{decoded}, {value.info['method']}, {value.info['seconds']:.1f} s")
        print(f"run   {out}")


def with_short_flags(argv: list[str], known: Iterable[str] = SHORT) -> list[str]:
    """The arguments with the known short forms of flags written out."""
    out = []
    for arg in argv:
        flag, equals, value = arg.partition("=")
        out.append((SHORT[flag] if flag in known else flag) + equals + value)
    return out
