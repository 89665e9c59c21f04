"""The web viewer. Installed as ``featuresplat.viewer``; no top-level module of this name reaches site-packages.

- `app`: one scene, one server; `session`: one browser; `gate`: who may come in;
- `document`: what all browsers share; `look`: what each shows; `insight`: what is worked out about the scene;
- `pictures`, `splats`, `stream`, `canvas`: drawing; `pointer`: clicks and drags; `live`: a training that is watched;
- `panels`, `build`, `markup`, `icons`: the controls, as data, and how they become viser's;
- `takeaway`: what may be exported; `heap`: memory that is free goes back to the system.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featuresplat.scene import Scene

    from .app import App


def open_scene(source: Scene | str | Path, device: str = "auto") -> tuple[Scene, Path | None]:
    """A scene and the folder that its exports go to: of a run folder, a file of Gaussians, or a scene itself.

    Raises:
        FeaturesplatError: there is no such run or file, or it is damaged.
    """
    from featuresplat.devices import usable_device
    from featuresplat.errors import FeaturesplatError
    from featuresplat.scene import Scene

    if isinstance(source, Scene):
        return source, None
    path, place = Path(source), usable_device(device)
    if not path.exists():
        raise FeaturesplatError(f"{path}: there is no such run folder or file.", "Check the path.")
    return Scene.load(path).to(place), path if path.is_dir() else None


def start(
    source: Scene | str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    device: str = "auto",
) -> tuple[App, list[str]]:
    """Serve a viewer and come back: the app (``app.stop()`` ends it) and the lines to print.

    Args:
        source: a scene, a run folder, or a file of Gaussians.
        host: 127.0.0.1 is this machine only; anything else asks for a token.
        port: or the next one that is free; 0 lets the system choose.
        token: for other hosts; default: a new one.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        FeaturesplatError: nothing to show, no such address, no free port, viser is missing.
    """
    from .app import App

    scene, folder = open_scene(source, device)
    name = Path(source).resolve().name if isinstance(source, (str, Path)) else "featuresplat"
    app = App(scene, folder, title=name)
    lines = app.start(host, port, token)
    app.warm()
    return app, lines


def view(source: Scene | str | Path, *, block: bool = True, **options: Any) -> App:
    """Show a scene in the browser; the options are those of `start`.

    Args:
        source: a scene, a run folder, or a file of Gaussians.
        block: serve until Ctrl-C; else come back at once, and ``app.stop()`` ends it.
    """
    app, lines = start(source, **options)
    print("\n".join(lines))
    if block:
        print("Ctrl-C ends the viewer.")
        app.wait()
    return app
