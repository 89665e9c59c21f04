"""What may be taken away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from featuresplat.controls import Button, Check, Choice, Group, Note, Panel, Text

from ..takeaway import ENDINGS, export_gaussians, export_masks, export_page, export_view

NAME, ENDING, PLAIN, DOWNLOAD = "export name", "ending", "plain", "download"


def panel(app: Any) -> Panel:
    folder = (app.folder or Path.cwd()) / "exports"
    return Panel(
        "Export",
        [
            Text("File name", _get(NAME, "scene"), lambda s, v: s.look.extra.update({NAME: v}), pause=0.2),
            Check("Download too", _get(DOWNLOAD, True), lambda s, v: s.look.extra.update({DOWNLOAD: v})),
            Note(f"Files go to {folder}, and to this browser where you tick Download."),
            Group("Gaussians", [
                Choice("Format", ENDINGS, _get(ENDING, ".ply"), lambda s, v: s.look.extra.update({ENDING: v})),
                Check("Plain", _get(PLAIN, False), lambda s, v: s.look.extra.update({PLAIN: v}),
                      hint="Only what every tool knows: no features", when=_holds_features),
                Button("Export everything", lambda s: _gaussians(s, False), icon="download"),
                Button("Export the selection", lambda s: _gaussians(s, True), icon="download",
                       enabled=lambda s: s.state.selected is not None),
            ]),
            Group("Pictures", [
                Button("This view as PNG", lambda s: _save(s, "Drawing", export_view), icon="photo"),
                Button("Masks of all views", _masks, icon="file-zip", enabled=lambda s: s.state.selected is not None,
                       hint="A zip of the selection's masks, one per photograph"),
            ]),
            Group("Share", [
                Note("One HTML file that shows the splats in any browser, without a server."),
                Button("Page that stands by itself", lambda s: _save(s, "Making the page", export_page), icon="world"),
            ]),
        ],
        icon="package-export",
        order=60,
    )  # fmt: skip


def _value(s: Any, key: str, default: Any) -> Any:
    return s.look.extra.get(key, default)


def _get(key: str, default: Any) -> Callable[[Any], Any]:
    return lambda s: s.look.extra.get(key, default)


def _holds_features(s: Any) -> bool:
    return _value(s, ENDING, ".ply") == ".ply"


def _gaussians(s: Any, selection: bool) -> None:
    ending, plain = _value(s, ENDING, ".ply"), _value(s, PLAIN, False)
    _save(s, "Exporting", lambda s, name: export_gaussians(s.app, name, ending, selection, plain))


def _masks(s: Any) -> None:
    _save(s, "Drawing masks", lambda s, name: export_masks(s.app, name))


def _save(s: Any, title: str, write: Callable[[Any, str], Path]) -> None:
    name, download = str(_value(s, NAME, "scene")), _value(s, DOWNLOAD, True)

    def work() -> None:
        path = write(s, name)
        s.say("Saved", str(path))
        if download:
            s.client.send_file_download(path.name, path.read_bytes(), save_immediately=True)

    s.work(title, work)
