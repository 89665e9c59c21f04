"""What may be taken away: Gaussians, masks, pictures, films, edit lists, a page that stands by itself.

Files go to the folder ``exports`` of the run, under a name without folders, and never over one that is there.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_path, atomic_write_text
from featuresplat.io.images import write_image
from featuresplat.io.scene_file import write_scene_file
from featuresplat.io.video import write_video
from featuresplat.paths import spline
from featuresplat.prompts import spatial
from featuresplat.prompts.edit_files import save_edits
from featuresplat.render import file_names
from featuresplat.scene import Scene

from .cameras import Pose, along
from .document import clean_scene
from .gate import Gate, free_port, guarded
from .pictures import Overlay
from .splats import splats

if TYPE_CHECKING:
    from .app import App
    from .session import Session

ENDINGS = (".ply", ".compressed.ply", ".splat", ".spz")
LONGEST = 80
PAGE_SPLATS = 200_000
MOST_FRAMES = 3000


def target(app: App, name: str, ending: str) -> Path:
    """A file of that name in the folder of exports that does not exist yet: ``mug.ply``, else ``mug_2.ply``.

    Raises:
        FeaturesplatError: a name with folders in it, or none.
    """
    name = checked_file_name(name.removesuffix(ending))
    folder = (app.folder or Path.cwd()) / "exports"
    for number in range(1, 10_000):
        path = folder / (f"{name}{ending}" if number == 1 else f"{name}_{number}{ending}")
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            return path
    raise FeaturesplatError(f"{folder}: is full of files called {name}.", "Choose another name.")


def checked_file_name(name: str) -> str:
    """Raises FeaturesplatError unless it is a plain file name."""
    name = name.strip()
    if not name or len(name) > LONGEST or name.startswith(".") or re.search(r'[/\\:*?"<>|\x00-\x1f\x7f]', name):
        shown = "".join(c if c.isprintable() else "?" for c in name[:40])
        raise FeaturesplatError(
            f"file name: expected a plain name of 1 to {LONGEST} characters, got '{shown}'.",
            "Leave out slashes, colons and a leading dot: exports stay in the run's own folder.",
        )
    return name


def export_gaussians(app: App, name: str, ending: str, selection: bool, plain: bool) -> Path:
    """Write the scene, or the selection, with its fields unless ``plain`` (or the format holds none); what a PLY has no
    columns for lies beside it, see docs/formats.md.

    Raises:
        FeaturesplatError: a bad name, an unknown ending, nothing selected, a disk that is full.
    """
    if ending not in ENDINGS:
        raise FeaturesplatError(f"format: '{ending}' is not known.", f"Known: {', '.join(ENDINGS)}.")
    scene = _part(app, selection)
    path = target(app, name, ending)
    write_scene_file(path, scene.gaussians, scene.fields if ending == ".ply" else {}, plain or ending != ".ply")
    return path


def _part(app: App, selection: bool) -> Scene:
    state = app.document.state
    scene = clean_scene(state.scene)
    if not selection:
        return scene
    if state.selected is None:
        raise FeaturesplatError("export: nothing is selected.", "Select something, or export the whole scene.")
    return scene.rows(state.selected)


def export_masks(app: App, name: str) -> Path:
    """A zip of the selection's mask in every view of the scene: ``<photograph's stem>.png``, 255 inside.

    Raises:
        FeaturesplatError: nothing selected, no views.
    """
    state = app.document.state
    if state.selected is None or len(state.scene.cameras) == 0:
        what = "nothing is selected" if state.selected is None else "this scene has no views"
        raise FeaturesplatError(f"masks: {what}.", "Select something in a scene that was made from photographs.")
    path = target(app, name, ".masks.zip")
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for i, stem in enumerate(file_names(list(state.scene.cameras.names))):
            with app.rendering:
                mask = spatial.mask_of(state.scene, state.scene.cameras[i], state.selected)
            archive.writestr(f"{stem}.png", png(mask.to(torch.uint8) * 255))
    return path


def png(image: Tensor) -> bytes:
    """uint8 [H, W] or [H, W, 3] as the bytes of a PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image.cpu().numpy()).save(stream, "PNG")
    return stream.getvalue()


def view_picture(session: Session) -> Tensor:
    """uint8 [H, W, 3]: what the session looks at, drawn by our engine at the window's size.

    Raises:
        FeaturesplatError: the browser has not said where it looks from.
    """
    pose = session.pose()
    if pose is None:
        raise FeaturesplatError("picture: the view is not known yet.", "Move the view a little and try again.")
    return session.canvas.draw(pose.camera(), session.look, session.state)


def export_view(session: Session, name: str) -> Path:
    """The current view as a PNG file."""
    path = target(session.app, name, ".png")
    write_image(path, view_picture(session))
    return path


def export_film(session: Session, name: str, seconds: float, fps: float = 30.0, width: int = 960) -> Path:
    """A film along the session's key frames, drawn as the session's look is.

    Raises:
        FeaturesplatError: fewer than two key frames, or a length that makes no sense.
    """
    frames = round(seconds * fps)
    if len(session.keys) < 2:
        raise FeaturesplatError(
            f"film: expected at least 2 key frames, got {len(session.keys)}.", "Move the view and add key frames."
        )
    if not 2 <= frames <= MOST_FRAMES:
        raise FeaturesplatError(
            f"film: {seconds:g} s make {frames} frames, expected 2 to {MOST_FRAMES}.", "Choose another length."
        )
    cameras = key_path(session.keys, frames)
    height = round(width * cameras.height / cameras.width / 2) * 2
    cameras = cameras.resized(width, max(height, 2))
    path = target(session.app, name, ".mp4")

    def pictures() -> Iterator[Tensor]:
        for i in range(len(cameras)):
            yield session.canvas.draw(cameras[i], session.look, session.state)

    return write_video(path, pictures(), fps)


def key_path(keys: list[Pose], frames: int):
    """The cameras of a smooth way through key frames."""
    return spline(along(keys), frames)


def export_edits(app: App, name: str) -> Path:
    """The edit list as YAML: ``featuresplat edit RUN FILE`` does it again.

    Raises:
        FeaturesplatError: there are no edits.
    """
    edits = app.document.state.edits
    if not edits:
        raise FeaturesplatError("edits: there are none yet.", "Remove, move or recolour something first.")
    path = target(app, name, ".yaml")
    save_edits(path, edits)
    return path


def export_page(session: Session, name: str) -> Path:
    """One HTML file that shows the splats as this browser sees them, without a server.

    A server of its own, which nobody is told of, serves to record it: nothing of the session gets into the page.
    """
    import viser

    app, state, look = session.app, session.state, session.look
    path = target(app, name, ".html")
    pose = session.pose()
    overlay = app.insight.overlay(state, look) if look.outlines else Overlay()
    s = splats(state.scene, pose.camera() if pose else None, look, overlay, PAGE_SPLATS)
    gate = Gate("127.0.0.1")
    gate.token = "nobody"  # the page is recorded from inside; no request is answered
    with guarded(gate):
        server: Any = viser.ViserServer(host="127.0.0.1", port=free_port("127.0.0.1", 0), verbose=False)
    try:
        home, camera = app.home, server.initial_camera
        camera.position, camera.look_at = home.position, home.look_at
        camera.up, camera.fov = home.up, home.fov
        camera.near, camera.far = 1e-3 * app.extent, 1e3 * app.extent
        server.scene.set_up_direction(tuple(home.up))
        server.scene.world_axes.visible = False
        server.scene.add_gaussian_splats("/scene", s.centers, s.covariances, rgbs=s.rgbs, opacities=s.opacities)
        atomic_write_text(path, server.scene.as_html(dark_mode=True))
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()
    return path
