"""Train a scene from photographs, a video or a posed data set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

import tyro

from featuresplat.config import TrainConfig, load_config
from featuresplat.config_fields import FieldConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.verbs._shared import Flag, given, interactive, summary

ORDER = 10


@dataclass
class TrainArgs:
    """Train a scene of Gaussians from photographs, a video or a posed data set."""

    scene: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE", help_behavior_hint="")] = ""
    """Folder of photographs, a video, or a COLMAP, transforms.json or Blender scene; the layout is detected."""
    downscale: int | None = None
    """Short for --data.downscale: divide the image size by this."""
    split: Literal["auto", "every", "all"] | None = None
    """Short for --data.split: which images are held out."""
    teacher: str | None = None
    """Short for --teacher.name: add a feature field distilled from this teacher."""
    lift: str | None = None
    """Short for --field.lift: mean, squared, centre, robust or cg."""
    baseline: str | None = None
    """Short for --mode: train this mode in place of the preset's, e.g. hexplane."""
    view: Flag = False
    """Watch in the browser: pause, step, edit in the pause. The viewer stays until Ctrl-C."""
    port: int = 8080
    """Of --view, or the next one that is free."""
    quiet: Flag = False
    """No progress bar and no summary."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def main(argv: list[str]) -> None:
    """Train a scene from photographs, a video or a posed data set."""
    args = tyro.cli(TrainArgs, args=argv, prog="featuresplat train", default=TrainArgs(settings=preset_of(argv)))
    source = given("train", args.scene, "the folder of a scene or of photographs", "PHOTOS_OR_SCENE")
    config = args.settings
    if args.downscale is not None:
        config.data.downscale = args.downscale
    if args.split is not None:
        config.data.split = args.split
    if args.teacher is not None:
        config.teacher.name = args.teacher
    if args.lift is not None:
        config.field.lift = one_of("lift", args.lift, get_args(get_type_hints(FieldConfig)["lift"]))
    if args.baseline is not None:
        config.mode = args.baseline
    if not source.exists():
        raise FeaturesplatError(f"{source}: there is no such folder or video.", "Check the path.")
    if config.out is None:
        config = replace(config, out=Path("runs") / (source.resolve().stem or "scene"))
    if args.view:
        _watch(source, config, args)
        return
    from featuresplat import trainer

    trainer.train(source, config, progress=not args.quiet)
    if not args.quiet and config.out is not None:
        summary(config.out)


def _watch(source: Path, config: TrainConfig, args: TrainArgs) -> None:
    """Train while browsers look on; afterwards serve until Ctrl-C where somebody sits at a terminal."""
    from featuresplat.viewer.watching import train_and_watch  # pyright: ignore[reportMissingImports]

    app = train_and_watch(source, config, port=args.port, progress=not args.quiet)
    try:
        if not args.quiet and config.out is not None:
            summary(config.out)
        if interactive():
            print("The viewer stays; Ctrl-C ends it.", flush=True)
            app.wait()
    finally:
        app.stop()


def preset_of(argv: list[str]) -> TrainConfig:
    """The configuration that the other flags then change: --config's, or with --resume that of the run itself."""
    name, out = value_of(argv, "--config"), value_of(argv, "--out")
    if name is None and out is not None and "--resume" in argv and (Path(out) / "config.yaml").is_file():
        name = str(Path(out) / "config.yaml")
    config = load_config(name or "fast")
    if name is not None and Path(name).name == "config.yaml":
        # A run's own file says how it was trained; where to, and whether afresh, is for this command to say.
        config = replace(config, out=None, resume=False, overwrite=False)
    return config


def one_of(flag: str, value: str, known: tuple[str, ...]) -> Any:
    """``value`` if it is one of ``known``."""
    if value not in known:
        raise FeaturesplatError(f"{flag}: got '{value}'.", f"Use one of {', '.join(known)}.")
    return value


def value_of(argv: list[str], flag: str) -> str | None:
    """The last value of a flag, as ``--flag VALUE`` or ``--flag=VALUE``."""
    found = None
    for i, arg in enumerate(argv):
        if arg.startswith(flag + "="):
            found = arg[len(flag) + 1 :]
        elif arg == flag and i + 1 < len(argv):
            found = argv[i + 1]
    return found
