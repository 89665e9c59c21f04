"""One browser: its look, its panels, what it is sent, what it points at."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Edit
from featuresplat.prompts.selection import Selection
from featuresplat.scene import Scene
from featuresplat.types import Cameras

from . import icons
from .build import Built
from .cameras import Home, Pose, fitting_fov, home, wxyz_of
from .canvas import Canvas
from .document import State
from .look import Look
from .panels import panels_of
from .pointer import Pointer

if TYPE_CHECKING:
    from .app import App

log = logging.getLogger("featuresplat.viewer")

MESSAGE_SECONDS = 6.0
PLAY_INTERVAL = 1 / 30
SPOT = 2e-3
"""Share of the scene's size: what lies nearer than this is on the spot."""


class Session:
    """One browser. Everything that it does to its panels happens in its own thread, in the order of the events.

    Attributes:
        app: what all browsers share.
        client: viser's handle.
        look: what is shown here.
        canvas: draws it.
        pointer: what clicks and drags in the picture mean.
        keys: key frames of this browser's camera path.
    """

    def __init__(self, app: App, client: Any, look: Look | None = None):
        self.app, self.client = app, client
        self.look = look or Look()
        self.keys: list[Pose] = []
        self.history: list[str] = []
        self._closed = threading.Event()
        self._inbox: OrderedDict[str | int, tuple[Any, Callable[[], object]]] = OrderedDict()
        self._ready = threading.Condition()
        self._playing: dict[str, threading.Event] = {}
        self._players: list[threading.Thread] = []
        self._panels: list[Built] = []
        self._mode: str | None = None  # that the panels are of
        self._reported = Pose.of(client.camera)
        self._preview: tuple[Scene, Scene] | None = None
        self.canvas = Canvas(self)
        self.pointer = Pointer(self)
        self._stop_listening = app.document.listen(lambda state: self.refresh())
        client.camera.on_update(self._camera_moved)
        self._thread = threading.Thread(target=self._loop, name=f"session {client.client_id}", daemon=True)
        self.post("open", self._open)
        self._thread.start()

    # What panels use

    @property
    def document(self):
        return self.app.document

    @property
    def state(self) -> State:
        return self.app.document.state

    @property
    def scene(self) -> Scene:
        """The scene as it is now, edits included."""
        return self.state.scene

    @property
    def selection(self) -> Selection | None:
        return self.state.selection

    def show(self, **changes: Any) -> None:
        """Change the look and draw again."""
        self.look = replace(self.look, **changes)
        self.refresh()

    def edit(self, edit: Edit, title: str = "") -> None:
        """Do an edit, with undo; while a training runs it waits for the pause, and the browser says so."""

        def do() -> None:
            state = self.document.apply(edit)
            if state.waiting and state.waiting[-1] is edit:
                self.say("Waits for a pause", "The training is running. The edit is done as soon as you press Pause.")

        self.work(title or edit.describe().capitalize(), do)

    def say(self, title: str, body: str = "", color: str | None = None) -> None:
        """A message in this browser that goes away by itself. Plain text."""
        if not self._closed.is_set():
            self.client.add_notification(title, body, auto_close_seconds=MESSAGE_SECONDS, color=color)

    def fail(self, error: Exception) -> None:
        """Say what went wrong."""
        if isinstance(error, FeaturesplatError):
            self.say(error.message, error.hint, color="orange")
        else:
            log.error("unforeseen", exc_info=error)
            self.say("Something went wrong", f"{type(error).__name__}: {error}"[:300], color="red")

    def work(self, title: str, function: Callable[[], object]) -> None:
        """Do something that takes a while, after what was asked for before; the browser shows that it runs."""
        self.app.work(self, title, function)

    def play(self, name: str, function: Callable[[float], Any] | None) -> None:
        """Call ``function(seconds since the last call)`` over and over until it returns False; None stops it."""
        running = self._playing.pop(name, None)
        if running is not None:
            running.set()
        if function is None:
            return
        stop = self._playing[name] = threading.Event()

        def loop() -> None:
            last = time.monotonic()
            while not stop.is_set() and not self._closed.is_set():
                now = time.monotonic()
                try:
                    if function(now - last) is False:
                        break
                except Exception as error:
                    self.fail(error)
                    break
                last = now
                stop.wait(PLAY_INTERVAL)
            if self._playing.get(name) is stop:
                del self._playing[name]
                self.refresh()

        player = threading.Thread(target=loop, name=f"play {name}", daemon=True)
        self._players = [*(p for p in self._players if p.is_alive()), player]
        player.start()

    def playing(self, name: str = "") -> bool:
        """Whether that is being played, or anything."""
        return name in self._playing if name else bool(self._playing)

    # Cameras

    def pose(self) -> Pose | None:
        """Where this browser says it looks from (viser's own record runs ahead of it); None where that is nonsense."""
        return self._reported

    def fly_to(self, camera: Cameras, fit: bool = True) -> None:
        """Look from where a camera stands, at what it looks at."""
        handle, viewmat = self.client.camera, camera.viewmats[0].double().cpu()
        position = camera.positions[0].double().cpu()
        forward = viewmat[2, :3]
        reach = self._turns_at(self.app.reach(camera))
        with self.client.atomic():
            handle.up_direction = self.home.up
            handle.wxyz = wxyz_of(camera)
            handle.position = position.numpy()
            handle.look_at = (position + reach * forward).numpy()
            if fit:
                handle.fov = fitting_fov(camera, handle.image_width, handle.image_height)

    @property
    def home(self) -> Home:
        """Where this browser starts: the app's, with this browser's own idea of what is up."""
        return self.app.home if self.look.up is None else home(self.app.first, self.look.up)

    def turn_up(self, up: tuple[float, float, float] | None) -> None:
        """Say which way is up, and look from home; None is as the cameras were held."""
        self.look = replace(self.look, up=up)
        self.go_home()

    def go_home(self) -> None:
        start, handle = self.home, self.client.camera
        ahead = start.look_at - start.position
        reach = float(np.linalg.norm(ahead))
        look_at = start.position + ahead * (self._turns_at(reach) / max(reach, 1e-12))
        with self.client.atomic():
            handle.up_direction, handle.position, handle.look_at = start.up, start.position, look_at
            handle.fov = start.fov

    def steer(self, fly: bool) -> None:
        """The mouse turns the view on the spot, or about what is looked at."""
        pose, handle = self.pose(), self.client.camera
        self.look = replace(self.look, fly=fly)
        handle.min_orbit_distance = (1e-4 if fly else 1e-3) * self.app.extent
        if pose is not None:
            handle.look_at = np.asarray(pose.position) + self._turns_at(self.app.reach(pose.camera())) * pose.forward

    def _turns_at(self, reach: float) -> float:
        """How far ahead the point lies that the mouse turns the view about: hardly at all when flying."""
        return SPOT * self.app.extent if self.look.fly else reach

    # Previews: what a gizmo shows before it is done

    def preview(self, scene: Scene | None) -> None:
        """Show another scene here until the document changes; None ends that."""
        self._preview = None if scene is None else (self.state.scene, scene)
        self.canvas.changed(moving=True)

    def shown_scene(self, state: State) -> Scene:
        preview = self._preview
        return preview[1] if preview is not None and preview[0] is state.scene else state.scene

    # The thread

    def post(self, key: Any, action: Callable[[], object]) -> None:
        """Run ``action`` in the session's thread; an earlier one with the same key that still waits is dropped."""
        with self._ready:
            place = key if isinstance(key, str) else id(key)
            self._inbox.pop(place, None)
            self._inbox[place] = (key, action)
            self._ready.notify_all()

    def refresh(self) -> None:
        """Bring panels and picture in step with the look and the document, soon."""
        self.post("refresh", self._refresh)

    def settled(self) -> bool:
        """Nothing waits to be handled or drawn."""
        with self._ready:
            idle = not self._inbox and not self._busy
        return idle and self.canvas.stream.idle()

    def close(self) -> None:
        """The browser has left."""
        self._closed.set()
        self._stop_listening()
        for stop in list(self._playing.values()):
            stop.set()
        self.canvas.close()
        with self._ready:
            self._ready.notify_all()

    @property
    def threads(self) -> list[threading.Thread]:
        """What runs for this browser, and ends some time after `close`."""
        return [self._thread, self.canvas.stream.thread, *self._players]

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    _busy = False

    def _loop(self) -> None:
        while True:
            with self._ready:
                self._busy = False
                while not self._inbox and not self._closed.is_set():
                    self._ready.wait()
                if self._closed.is_set():
                    return
                _, (key, action) = self._inbox.popitem(last=False)
                self._busy = True
            try:
                action()
            except Exception as error:
                if not self._closed.is_set():
                    self.fail(error)
            if key != "refresh":
                self.refresh()

    def _open(self) -> None:
        self.app.welcome(self)
        self._add_tabs()
        self.pointer.bind_commands()

    def _add_tabs(self) -> None:
        self._mode, self._tabs = self.scene.mode, self.client.gui.add_tab_group()
        for panel in panels_of(self.app):
            try:
                with self._tabs.add_tab(panel.title, icon=icons.known(panel.icon)):
                    self._panels.append(Built(self, self.client.gui, panel.controls))
                if panel.opened is not None:
                    panel.opened(self)
            except Exception:
                log.exception("the panel %s cannot be shown", panel.title)

    async def _camera_moved(self, camera: Any) -> None:
        self._reported = Pose.of(camera) or self._reported
        self.canvas.changed(moving=True)

    def _refresh(self) -> None:
        if self._mode not in (None, self.scene.mode):  # a training went on to another mode, which has its own panels
            for panel in self._panels:
                panel.remove()
            self._panels.clear()
            self._tabs.remove()
            self._add_tabs()
        for panel in self._panels:
            panel.refresh()
        self.canvas.refresh()
