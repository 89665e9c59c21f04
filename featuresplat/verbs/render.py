"""Render images or a film of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import tyro

from featuresplat.verbs._shared import Flag, Run, given
from featuresplat.verbs._shared import progress as progress_bar

ORDER = 30

PointLights = tyro.conf.UseAppendAction[tuple[tuple[float, ...], ...]]


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
    light_turn: float = 0.0,
    light_gain: float = 1.0,
    light_up: tuple[float, float, float] | None = None,
    light_samples: int = 0,
    point_light: PointLights = (),
    linear: Flag = False,
    quiet: Flag = False,
) -> None:
    """Render images or a film of a run.

    Args:
        run: Folder that train made.
        path: orbit, spline (through the given views), test, train, or a JSON file as the run's cameras.json.
        what: Kinds, with commas between: rgb,depth,alpha, features (a field's main directions as colours), relevancy
            (of --prompt), and what the run's mode adds: of inverse albedo,normal,roughness,metallic,diffuse,specular,
            progress,physical,radiance.
        out: Folder; default RUN/renders/PATH. Images: KIND/NAME.png, depth also as NAME.npy in scene units.
        frames: Length of orbit and spline.
        fps: Frames a second of a film.
        format: png, mp4 or gif; default png for test and train, mp4 for the others.
        width: Another width; with one of the two the image keeps its shape.
        height: Another height.
        device: auto, cpu, cuda or cuda:N.
        field: Which field features and relevancy look at; default the one added last.
        prompt: What relevancy asks for.
        light: Environment map (.npy, .hdr, .exr) for runs of mode inverse, or one of even, overcast, noon, evening,
            studio, colours; default the run's own light.
        light_turn: Degrees to turn the environment about the vertical, counter-clockwise seen from above.
        light_gain: Factor on the environment; 0 leaves the point lights alone.
        light_up: World direction that is up, where it is not +z: the map's zenith goes there.
        light_samples: Monte-Carlo samples per pixel, for exact shadows and reflections; slow. 0 is the fast way.
        point_light: X Y Z INTENSITY, or X Y Z R G B: a point light in world coordinates; may be given several times.
        linear: Of runs of mode inverse, also write linear values, float32, as NAME.npy.
        quiet: No progress bar.
    """
    folder = given("render", run, "the folder of a run", "runs/NAME")
    from featuresplat.render import render_run
    from featuresplat.shading.asking import light_of

    kinds = [k.strip() for k in what.split(",") if k.strip()]
    size = {"width": width, "height": height}
    options = {"frames": frames, "fps": fps, "format": format, "device": device}
    asked = light_of(light, turn=light_turn, gain=light_gain, up=light_up, points=point_light, samples=light_samples)
    options |= {"field": field, "prompt": prompt, "light": asked, "linear": linear}
    bar = None if quiet else progress_bar
    files = render_run(folder, path, kinds, out, progress=bar, **size, **options)
    pictures = [f for f in files if f.suffix != ".npy"]
    folders = sorted({str(f.parent) for f in pictures})
    if pictures[0].suffix == ".png":
        print(f"{len(pictures)} images in {', '.join(folders)}")
    else:
        print("\n".join(str(f) for f in pictures))
