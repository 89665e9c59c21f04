"""Render images or a film of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from featuresplat.verbs._shared import Flag, Run, given
from featuresplat.verbs._shared import progress as progress_bar

ORDER = 30


def run(
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
    field: str | None = None,
    prompt: str = "",
    light: Path | None = None,
    linear: Flag = False,
    quiet: Flag = False,
) -> None:
    """Render images or a film of a run.

    Args:
        run: Folder that train made.
        path: orbit, spline (through the given views), test, train, or a JSON file as the run's cameras.json.
        what: Kinds, with commas between: rgb,depth,alpha, features (a field's main directions as colours), relevancy
            (of --prompt), and what the run's mode adds: albedo,normal,roughness,metallic of inverse.
        out: Folder; default RUN/renders/PATH. Images: KIND/NAME.png, depth also as NAME.npy in scene units.
        frames: Length of orbit and spline.
        fps: Frames a second of a film.
        format: png, mp4 or gif; default png for test and train, mp4 for the others.
        width: Another width; with one of the two the image keeps its shape.
        height: Another height.
        device: auto, cpu, cuda or cuda:N.
        field: Which field features and relevancy look at; default the one added last.
        prompt: What relevancy asks for.
        light: Environment map (.npy, .hdr, .exr) for runs of mode inverse.
        linear: Of runs of mode inverse, also write linear values, float32, as NAME.npy.
        quiet: No progress bar.
    """
    folder = given("render", run, "the folder of a run", "runs/NAME")
    from featuresplat.render import render_run

    kinds = [k.strip() for k in what.split(",") if k.strip()]
    size = {"width": width, "height": height}
    options = {"frames": frames, "fps": fps, "format": format, "device": device}
    options |= {"field": field, "prompt": prompt, "light": light, "linear": linear}
    bar = None if quiet else progress_bar
    files = render_run(folder, path, kinds, out, progress=bar, **size, **options)
    pictures = [f for f in files if f.suffix != ".npy"]
    folders = sorted({str(f.parent) for f in pictures})
    if pictures[0].suffix == ".png":
        print(f"{len(pictures)} images in {', '.join(folders)}")
    else:
        print("\n".join(str(f) for f in pictures))
