"""The command line: flat verbs, options in any order. Nothing heavy is imported before a verb runs."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from featuresplat import __version__
from featuresplat.config import TrainConfig, load_config
from featuresplat.errors import FeaturesplatError

Run = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]
Flag = tyro.conf.FlagCreatePairsOff[bool]


@dataclass
class TrainArgs:
    """Train a scene of Gaussians from photographs, a video or a posed data set."""

    scene: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SCENE", help_behavior_hint="")] = ""
    """Folder of photographs, a video, or a COLMAP, transforms.json or Blender scene; the layout is detected."""
    downscale: int | None = None
    """Short for --data.downscale: divide the image size by this."""
    split: Literal["auto", "every", "all"] | None = None
    """Short for --data.split: which images are held out."""
    quiet: Flag = False
    """No progress bar and no summary."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")] = field(default_factory=TrainConfig)


def train(argv: list[str]) -> None:
    """Train a scene from photographs, a video or a posed data set."""
    args = tyro.cli(TrainArgs, args=argv, prog="featuresplat train", default=TrainArgs(settings=_preset(argv)))
    source = _given("train", args.scene, "the folder of a scene or of photographs", "PHOTOS_OR_SCENE")
    config = args.settings
    if args.downscale is not None:
        config.data.downscale = args.downscale
    if args.split is not None:
        config.data.split = args.split
    if not source.exists():
        raise FeaturesplatError(f"{source}: there is no such folder or video.", "Check the path.")
    if config.out is None:
        config = replace(config, out=Path("runs") / (source.resolve().stem or "scene"))
    from featuresplat import trainer

    trainer.train(source, config, progress=not args.quiet)
    if not args.quiet and config.out is not None:
        _summary(config.out)


def render(
    run: Run = "",
    path: str = "orbit",
    what: str = "rgb",
    out: Path | None = None,
    frames: int = 120,
    fps: float = 30.0,
    format: Literal["png", "mp4", "gif"] | None = None,
    width: int | None = None,
    height: int | None = None,
    device: str = "auto",
    quiet: Flag = False,
) -> None:
    """Render images or a film of a run.

    Args:
        run: Folder that train made.
        path: orbit, spline (through the given views), test, train, or a JSON file as the run's cameras.json.
        what: Kinds, with commas between: rgb,depth,alpha.
        out: Folder; default RUN/renders/PATH. Images: KIND/NAME.png, depth also as NAME.npy in scene units.
        frames: Length of orbit and spline.
        fps: Frames a second of a film.
        format: png, mp4 or gif; default png for test and train, mp4 for the others.
        width: Another width; with one of the two the image keeps its shape.
        height: Another height.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress bar.
    """
    folder = _given("render", run, "the folder of a run", "runs/NAME")
    from featuresplat.render import render_run

    kinds = [k.strip() for k in what.split(",") if k.strip()]
    size = {"width": width, "height": height}
    options = {"frames": frames, "fps": fps, "format": format, "device": device}
    bar = None if quiet else _progress
    files = render_run(folder, path, kinds, out, progress=bar, **size, **options)
    pictures = [f for f in files if f.suffix != ".npy"]
    folders = sorted({str(f.parent) for f in pictures})
    if pictures[0].suffix == ".png":
        print(f"{len(pictures)} images in {', '.join(folders)}")
    else:
        print("\n".join(str(f) for f in pictures))


def evaluate(run: Run = "", device: str = "auto") -> None:
    """Measure a run on its test views: PSNR, SSIM and, where it is installed, LPIPS.

    Args:
        run: Folder that train made; its metrics.json is written anew.
        device: auto, cpu, cuda or cuda:N.
    """
    folder = _given("eval", run, "the folder of a run", "runs/NAME")
    from featuresplat.evaluate import evaluate as measure
    from featuresplat.render import usable_device

    metrics = measure(folder, device=str(usable_device(device)))
    _table(metrics)
    print(f"written to {folder / 'metrics.json'}")


def export(
    run: Run = "",
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = "",
    plain: Flag = False,
) -> None:
    """Write the Gaussians of a run, or of a file, in the format that the ending of OUT chooses.

    Args:
        run: Folder that train made, or a .ply, .compressed.ply, .splat or .spz file.
        out: File to write: .ply (everything), .compressed.ply, .splat or .spz.
        plain: Only the properties that every tool knows: no features.
    """
    source = _given("export", run, "the folder of a run, or a file of Gaussians", "runs/NAME OUT.ply")
    target = _given("export", out, "the file to write", f"{run} OUT.ply")
    from featuresplat.export import export_run

    count = export_run(source, target, plain=plain)
    print(f"{target}: {count} Gaussians, {target.stat().st_size / 1e6:.1f} MB")


def report(run: Run = "") -> None:
    """Write report.html of a run: one self-contained file of pictures, curves and numbers.

    Args:
        run: Folder that train made.
    """
    folder = _given("report", run, "the folder of a run", "runs/NAME")
    from featuresplat.report import write_report

    print(f"open {write_report(folder).resolve().as_uri()}")


def doctor() -> int:
    """Say what works on this machine, and the one line that mends what does not."""
    from featuresplat.doctor import main as examine

    return examine()


def demo(out: Path = Path("runs/demo"), config: str | None = None, data: Path | None = None) -> None:
    """Train the small demo scene, measure it and write its report. An earlier demo run is replaced.

    Args:
        out: Run folder.
        config: Preset or YAML file; default the preset 'demo' where there is one, else 'draft'.
        data: The demo scene's folder, where it is not beside the package.
    """
    from featuresplat.demo import run_demo

    finished = run_demo(out, config, data)
    _summary(finished)


_VERBS: dict[str, Callable] = {
    "train": train,
    "render": render,
    "eval": evaluate,
    "export": export,
    "report": report,
    "doctor": doctor,
    "demo": demo,
}


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for what a user can mend, 130 for Ctrl-C, 1 otherwise."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [a for a in argv if a != "--debug"]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            code = _dispatch(argv)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Whoever read our output has gone; keep the interpreter from complaining when it closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except KeyboardInterrupt as stop:
            if debug:
                raise
            return _fail(str(stop) or "interrupted.", "", 130)
        except FeaturesplatError as error:
            if debug:
                raise
            return _fail(error.message, error.hint, 2)
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        except Exception as error:
            if debug:
                raise
            said = str(error).strip().splitlines()
            what = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
            return _fail(f"unexpected {what}", "This is a bug: run again with --debug and report what it prints.", 1)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"featuresplat {__version__}")
        return 0
    verb, rest = argv[0], argv[1:]
    if verb not in _VERBS:
        close = difflib.get_close_matches(verb, _VERBS, n=1)
        hint = f"Perhaps you meant '{close[0]}'." if close else f"Verbs: {', '.join(_VERBS)}."
        raise FeaturesplatError(f"there is no verb '{verb}'.", hint)
    function = _VERBS[verb]
    done = train(rest) if verb == "train" else tyro.cli(function, args=rest, prog=f"featuresplat {verb}")
    return done or 0


def _help() -> str:
    width = max(map(len, _VERBS))
    lines = [f"  {name:<{width}}  {(function.__doc__ or '').splitlines()[0]}" for name, function in _VERBS.items()]
    return "\n".join(
        [
            "usage: featuresplat VERB [--help] ...",
            "",
            "Photographs in; a scene of Gaussians out, to look at, to measure and to export.",
            "",
            *lines,
            "",
            "  --version   the version",
            "  --debug     with any verb: the whole traceback of an error",
            "",
            "Begin with: featuresplat demo, or featuresplat train PHOTOS --config draft",
        ]
    )


def _preset(argv: list[str]) -> TrainConfig:
    """The configuration that the other flags then change: --config's, or with --resume that of the run itself."""
    name, out = _value(argv, "--config"), _value(argv, "--out")
    if name is None and out is not None and "--resume" in argv and (Path(out) / "config.yaml").is_file():
        name = str(Path(out) / "config.yaml")
    config = load_config(name or "fast")
    if name is not None and Path(name).name == "config.yaml":
        # A run's own file says how it was trained; where to, and whether afresh, is for this command to say.
        config = replace(config, out=None, resume=False, overwrite=False)
    return config


def _value(argv: list[str], flag: str) -> str | None:
    """The last value of a flag, as ``--flag VALUE`` or ``--flag=VALUE``."""
    found = None
    for i, arg in enumerate(argv):
        if arg.startswith(flag + "="):
            found = arg[len(flag) + 1 :]
        elif arg == flag and i + 1 < len(argv):
            found = argv[i + 1]
    return found


def _given(verb: str, value: str, what: str, example: str) -> Path:
    if not value:
        raise FeaturesplatError(f"{verb}: expected {what}, got none.", f"Give it: featuresplat {verb} {example}")
    return Path(value)


def _progress(numbers: Iterable[int], word: str) -> Iterable[int]:
    from rich.console import Console
    from rich.progress import track

    return track(numbers, description=word, console=Console(stderr=True), transient=True)


def _summary(run: Path) -> None:
    """Where a run's results lie."""
    import json

    metrics = run / "metrics.json"
    if metrics.is_file():
        values = json.loads(metrics.read_text(encoding="utf-8"))
        test = values.get("test") or {}
        if test.get("psnr") is not None:
            views = f"{len(test['images'])} test views"
            print(f"PSNR {test['psnr']:.2f} dB, SSIM {test['ssim']:.3f} on {views}, {values['gaussians']} Gaussians")
    print(f"run     {run}")
    print(f"splats  {run / 'gaussians.ply'}")
    if (run / "report.html").is_file():
        print(f"open    {(run / 'report.html').resolve().as_uri()}")


def _table(metrics: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    def number(value: float | None, digits: int) -> str:
        return "n/a" if value is None else f"{value:.{digits}f}"

    test = metrics["test"]
    table = Table("image", box=None, header_style="bold")
    for name in ("PSNR dB", "SSIM", "LPIPS"):
        table.add_column(name, justify="right")
    rows = [*test["images"], {**test, "name": "mean"}]
    for i, row in enumerate(rows):
        table.add_row(
            row["name"],
            number(row["psnr"], 2),
            number(row["ssim"], 4),
            number(row.get("lpips"), 4),
            style="bold" if i == len(rows) - 1 else None,
        )
    Console().print(table)


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"note: {message}", file=sys.stderr)


def _fail(message: str, hint: str, code: int) -> int:
    print(f"featuresplat: {message}" + (f"\n{hint}" if hint else ""), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
