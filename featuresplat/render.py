"""Pictures and films of a run: colour, depth and opacity along a camera path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat import registry
from featuresplat.devices import usable_device
from featuresplat.errors import FeaturesplatError
from featuresplat.fields.pictures import feature_colors
from featuresplat.io.atomic import atomic_path
from featuresplat.io.cameras import read_cameras
from featuresplat.io.colormap import colorize_depth, colormap
from featuresplat.io.images import to_bytes, write_image
from featuresplat.io.video import write_video
from featuresplat.paths import orbit, spline
from featuresplat.scene import RenderRequest, Scene
from featuresplat.shading.light import Light
from featuresplat.types import Cameras, RenderOutput

KINDS = ("rgb", "depth", "alpha", "features", "relevancy")
"""What can be rendered of every scene; a mode may know more."""
PATHS = ("orbit", "spline", "test", "train")
"""Camera paths that need no file."""
_SPLINE_VIEWS = 16  # more given views make a restless way through them

Progress = Callable[[Iterable[int], str], Iterable[int]]


def render_run(
    run: str | Path,
    path: str = "orbit",
    what: Sequence[str] = ("rgb",),
    out: str | Path | None = None,
    *,
    frames: int = 120,
    fps: float = 30.0,
    format: str | None = None,
    width: int | None = None,
    height: int | None = None,
    device: str = "auto",
    field: str | None = None,
    prompt: str = "",
    light: Any = None,
    linear: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Render a run along a camera path to files.

    As images (``png``): ``OUT/KIND/NAME.png``, NAME being the photograph's stem for the paths ``test`` and
    ``train``, else the camera's name or its number; depth also as ``NAME.npy``, float32 [H, W], expected camera
    z in scene units, 0 where there is nothing. As a film (``mp4``, ``gif``): ``OUT/KIND.mp4``; every kind renders
    the path once more, so that no film has to fit in memory.

    Args:
        run: folder that train made.
        path: 'orbit', 'spline' (through the scene's views in the order of their names), 'test', 'train', or a
            JSON file as the run's cameras.json.
        what: kinds, of 'rgb', 'depth', 'alpha', 'features' (the field's main directions as colours), 'relevancy' (of
            ``prompt``) and what the scene's mode knows.
        out: folder; default RUN/renders/PATH.
        frames: length of orbit and spline.
        fps: of films.
        format: 'png', 'mp4' or 'gif'; default png for test and train, mp4 for the others.
        width, height: another size; one of them keeps the shape of the image.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'.
        field: which field 'features' and 'relevancy' look at; default the one added last.
        prompt: what 'relevancy' asks for.
        light: for modes that can be relit: what `featuresplat.shading.light.Light.of` takes.
        linear: also write NAME.npy, float32, of the kinds that have linear values: see the mode.
        progress: wraps the camera numbers, with a word on what they are for.

    Returns:
        The files written (of images: all of them).

    Raises:
        FeaturesplatError: no run, an unknown path, kind or format, no views of that name, no such field, a prompt
            that cannot be answered, a disk that is full.
    """
    if format not in (None, "png", "mp4", "gif"):
        raise FeaturesplatError(f"format: expected png, mp4 or gif, got '{format}'.", "Choose one of them.")
    _check_path(path)
    place = usable_device(device)
    scene = Scene.load(run).to(place)
    kinds = _checked_kinds(what, scene.mode)
    painter = Painter(scene, kinds, field, prompt, light, linear)
    cameras = _sized(cameras_of(scene, path, frames), width, height)
    out = Path(out) if out is not None else Path(run) / "renders" / Path(path).stem
    wrap: Progress = progress or (lambda numbers, word: numbers)
    if (format or ("png" if path in ("test", "train") else "mp4")) == "png":
        return _write_images(painter, cameras, kinds, out, wrap, path in ("test", "train"))
    suffix = "." + (format or "mp4")
    _check_one_size(cameras)
    return [_write_film(painter, cameras, kind, (out / kind).with_suffix(suffix), fps, wrap) for kind in kinds]


def cameras_of(scene: Scene, path: str, frames: int = 120) -> Cameras:
    """The cameras of a path: see `render_run`.

    Raises:
        FeaturesplatError: an unknown path, or the scene has no such views.
    """
    _check_path(path)
    if path == "orbit":
        return orbit(scene.cameras, frames)
    if path == "spline":
        order = sorted(range(len(scene.cameras)), key=lambda i: _natural(scene.cameras.names[i]))
        count = min(len(order), _SPLINE_VIEWS)
        chosen = [order[round(k * (len(order) - 1) / max(count - 1, 1))] for k in range(count)]
        return spline(scene.cameras[chosen], frames)
    if path in ("test", "train"):
        found = scene.part(path)
        if len(found) == 0:
            other = "train" if path == "test" else "test"
            raise FeaturesplatError(f"path: this run holds no {path} views.", f"Use --path {other}, orbit or spline.")
        return found
    cameras = read_cameras(path)
    if len(cameras) == 0:
        raise FeaturesplatError(f"{path}: holds no cameras.", "Write it as the run's cameras.json is written.")
    return cameras


def file_names(names: Sequence[str]) -> list[str]:
    """A name without ending for each image: the photograph's stem where that is unique, else its folders and
    ending go in too; a number for cameras without a name.
    """
    stems = [re.split(r"[/\\]", n)[-1].rsplit(".", 1)[0] if n else f"{i:05d}" for i, n in enumerate(names)]
    if len(set(stems)) == len(stems):
        return stems
    longer = [re.sub(r"[/\\]+", "_", n.rsplit(".", 1)[0]) if n else stems[i] for i, n in enumerate(names)]
    if len(set(longer)) < len(longer):
        longer = [re.sub(r"[/\\]+", "_", n) if n else stems[i] for i, n in enumerate(names)]
    if len(set(longer)) < len(longer):
        longer = [f"{name}_{i:05d}" for i, name in enumerate(longer)]
    return longer


def _checked_kinds(what: Sequence[str], mode: str) -> list[str]:
    kinds = list(dict.fromkeys(what))
    known = (*KINDS, *getattr(registry.load("modes", mode), "KINDS", ()))
    unknown = [k for k in kinds if k not in known]
    if unknown or not kinds:
        got = f"'{unknown[0]}'" if unknown else "nothing"
        raise FeaturesplatError(f"what: cannot render {got}.", f"Known kinds: {', '.join(known)}.")
    return kinds


def _check_path(path: str) -> None:
    if path not in PATHS and not path.lower().endswith(".json"):
        raise FeaturesplatError(
            f"path: there is none called '{path}'.", f"Use {', '.join(PATHS)} or a JSON file of cameras."
        )


def _check_one_size(cameras: Cameras) -> None:
    sizes = set(zip(cameras.widths, cameras.heights, strict=True))  # pyright: ignore[reportArgumentType]
    if len(sizes) > 1:
        raise FeaturesplatError(
            f"film: the cameras of this path have {len(sizes)} image sizes.",
            "Use --format png, or --width and --height.",
        )


def _sized(cameras: Cameras, width: int | None, height: int | None) -> Cameras:
    for name, value in (("width", width), ("height", height)):
        if value is not None and not 1 <= value <= 16384:
            raise FeaturesplatError(f"{name}: expected 1 to 16384 pixels, got {value}.", "Choose a size in between.")
    if width is None and height is None:
        return cameras
    sizes: list[tuple[int, int]] = list(zip(cameras.widths, cameras.heights, strict=True))  # pyright: ignore
    widths = [width or max(1, round((height or h) * w / h)) for w, h in sizes]
    heights = [height or max(1, round((width or w) * h / w)) for w, h in sizes]
    return cameras.resized(widths, heights)


class Painter:
    """Pictures of a scene by kind, one camera at a time; what kinds share is rendered once."""

    def __init__(self, scene: Scene, kinds: Sequence[str], field: str | None, prompt: str, light: Any, linear: bool):
        self.mode = registry.load("modes", scene.mode)
        if light is not None and hasattr(self.mode, "KINDS") and "light" in scene.mode_state:
            light = Light.of(light, scene.mode_state["light"].shape[1])  # read once, not for every camera
        self.scene, self.light, self.linear = scene, light, linear
        self.request = RenderRequest(light=light, linear=linear)
        self.values: Tensor | None = None
        self.query = None
        if "features" in kinds:
            codes = scene.field(field)[1]
            self.values = feature_colors(codes)(codes.codes)
        if "relevancy" in kinds:
            from featuresplat.prompts import text

            self.query = text.ask(scene, prompt, field)

    def render(self, camera: Cameras, kinds: Sequence[str], exposure: bool) -> RenderOutput | None:
        """The render that rgb, depth, alpha and features are taken from."""
        if not {"rgb", "depth", "alpha", "features"} & set(kinds):
            return None
        features = self.values if "features" in kinds else None
        return self.scene.render(
            camera, features=features, exposure=exposure, light=self.light, linear=self.linear
        )  # fmt: skip

    def paint(self, camera: Cameras, out: RenderOutput | None, kind: str, near=None, far=None) -> tuple[Tensor, Any]:
        """uint8 [H, W, 3], or [H, W] of alpha, and the values [H, W] or [H, W, C] behind it that are worth keeping."""
        if kind == "relevancy":
            assert self.query is not None
            return colormap(self.query.view(self.scene, camera)[0]), None
        if kind not in KINDS:
            values = self.mode.picture(self.scene, camera, kind, replace(self.request, linear=False))[0]
            kept = self.mode.picture(self.scene, camera, kind, self.request)[0] if self.linear else None
            return to_bytes(values.clamp(0, 1).expand(-1, -1, 3)), kept
        assert out is not None
        if kind == "depth":
            depth = out.depth[0, ..., 0]
            return colorize_depth(depth, near, far, out.alpha[0, ..., 0]), depth
        if kind == "alpha":
            return to_bytes(out.alpha[0, ..., 0]), None
        values = out.features if kind == "features" else out.rgb
        assert values is not None  # a scene has colours, and features were asked for
        if kind == "rgb" and self.linear:
            shown = self.scene.render(camera, light=self.light).rgb
            assert shown is not None
            return to_bytes(shown[0]), values[0]
        return to_bytes(values[0].clamp(0, 1)), None


def _write_images(
    painter: Painter, cameras: Cameras, kinds: list[str], out: Path, wrap: Progress, as_photographed: bool
) -> list[Path]:
    written = []
    names = file_names(list(cameras.names))
    for i in wrap(range(len(cameras)), "images"):
        image = painter.render(cameras[i], kinds, as_photographed)
        for kind in kinds:
            picture, values = painter.paint(cameras[i], image, kind)
            file = out / kind / f"{names[i]}.png"
            write_image(file, picture)
            written.append(file)
            if values is not None:
                write_array(file.with_name(f"{names[i]}.npy"), values)
                written.append(file.with_name(f"{names[i]}.npy"))
    return written


def write_array(path: Path, values: Tensor) -> None:
    """Write a tensor as a float32 .npy file, atomically.

    Raises:
        FeaturesplatError: the disk is full and the like.
    """
    import numpy as np

    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, values.detach().cpu().float().numpy(), allow_pickle=False)


def _write_film(painter: Painter, cameras: Cameras, kind: str, file: Path, fps: float, wrap: Progress) -> Path:
    near = far = None
    if kind == "depth":
        near, far = _depth_range(painter.scene, cameras)

    def pictures() -> Iterator[Tensor]:
        for i in wrap(range(len(cameras)), kind):
            image = painter.render(cameras[i], [kind], False)
            picture, _ = painter.paint(cameras[i], image, kind, near, far)
            yield picture if picture.ndim == 3 else picture[..., None].expand(-1, -1, 3)

    return write_video(file, pictures(), fps)


def _depth_range(scene: Scene, cameras: Cameras) -> tuple[float | None, float | None]:
    """The 2nd and 98th percentile of the depth over eight frames: one scale for the whole film."""
    depths: list[Tensor] = []
    for i in torch.linspace(0, len(cameras) - 1, min(8, len(cameras))).round().int().unique().tolist():
        image = scene.render(cameras[i])
        seen = image.depth[image.alpha >= 0.5]
        depths.append(seen[seen > 0].cpu())
    ordered = torch.cat(depths).sort().values
    if len(ordered) == 0:
        return None, None
    return float(ordered[round(0.02 * (len(ordered) - 1))]), float(ordered[round(0.98 * (len(ordered) - 1))])


def _natural(name: str) -> list[Any]:
    """Sorts view_10 after view_9."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name)]
