"""The photographs' cameras, comparison with the photographs, and a camera path of one's own."""

from __future__ import annotations

from typing import Any

from featuresplat.controls import Button, Check, Choice, Group, Note, Number, Panel, Slider, Text

from ..takeaway import export_film, key_path

SECONDS, NAME = "film seconds", "film name"


def panel(app: Any) -> Panel:
    names = list(app.base_cameras.names)
    photographs = [
        Check("Show cameras", lambda s: s.look.frustums, lambda s, v: s.show(frustums=v),
              hint="Blue: trained on, orange: held out. Click one to fly there"),
        Choice("Photograph", [n or f"view {i}" for i, n in enumerate(names)], _view, _set_view),
        Button("Fly there", _fly, icon="plane"),
        Check("Compare", lambda s: bool(s.look.compare), _compare, hint="Photograph on the left, scene on the right"),
        Slider("Split", 0.0, 1.0, 0.01, lambda s: s.look.split, lambda s, v: s.show(split=v),
               when=lambda s: bool(s.look.compare)),
    ]  # fmt: skip
    path = [
        Note(lambda s: f"{len(s.keys)} key frames" if s.keys else "Move the view and add two or more key frames."),
        Button("Add key frame", _add, icon="plus"),
        Button("Take the last away", _drop, icon="minus", enabled=lambda s: bool(s.keys)),
        Number("Seconds", lambda s: s.look.extra.get(SECONDS, 4.0), lambda s, v: s.look.extra.update({SECONDS: v}),
               low=0.2, high=100.0, step=0.5),
        Button("Fly along", _play, icon="player-play", enabled=lambda s: len(s.keys) > 1),
        Text("File name", lambda s: s.look.extra.get(NAME, "film"), lambda s, v: s.look.extra.update({NAME: v})),
        Button("Save as mp4", _film, icon="movie", enabled=lambda s: len(s.keys) > 1),
    ]  # fmt: skip
    groups = [Group("Photographs", photographs)] if names else []
    return Panel("Cameras", [*groups, Group("Camera path", path)], icon="camera", order=10)


def _index(s: Any) -> int:
    return min(int(s.look.extra.get("view", 0)), max(len(s.app.base_cameras) - 1, 0))


def _view(s: Any) -> str:
    name = s.app.base_cameras.names[_index(s)]
    return name or f"view {_index(s)}"


def _set_view(s: Any, label: str) -> None:
    labels = [n or f"view {i}" for i, n in enumerate(s.app.base_cameras.names)]
    s.look.extra["view"] = labels.index(label) if label in labels else 0
    _fly(s)


def _fly(s: Any) -> None:
    camera = s.app.base_cameras[_index(s)]
    s.fly_to(camera)
    if s.look.compare:
        s.show(compare=camera.names[0])


def _compare(s: Any, on: bool) -> None:
    name = s.app.base_cameras.names[_index(s)]
    if on and s.app.photograph(name) is None:
        s.say("The photographs are not here", "They are no longer where this run was trained from.")
        return
    s.show(compare=name if on else "")
    if on:
        _fly(s)


def _add(s: Any) -> None:
    pose = s.pose()
    if pose is not None:
        s.keys.append(pose)


def _drop(s: Any) -> None:
    if s.keys:
        s.keys.pop()


def _play(s: Any) -> None:
    seconds = max(float(s.look.extra.get(SECONDS, 4.0)), 0.2)
    cameras = key_path(s.keys, max(2, round(30 * seconds)))
    gone = 0.0

    def step(dt: float) -> bool:
        nonlocal gone
        gone += dt
        place = min(round(gone / seconds * (len(cameras) - 1)), len(cameras) - 1)
        s.fly_to(cameras[place], fit=False)
        return gone < seconds

    s.play("path", step)


def _film(s: Any) -> None:
    name, seconds = s.look.extra.get(NAME, "film"), float(s.look.extra.get(SECONDS, 4.0))

    def work() -> None:
        path = export_film(s, name, seconds)
        s.say("Film saved", str(path))
        s.client.send_file_download(path.name, path.read_bytes(), save_immediately=True)

    s.work("Rendering the film", work)
