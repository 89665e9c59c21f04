"""The viewer itself: one scene, one server, any number of browsers."""

from __future__ import annotations

import contextlib
import io
import logging
import secrets
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of
from featuresplat.io.images import resize_area
from featuresplat.paths import focus_point
from featuresplat.prompts import pieces, surface, text
from featuresplat.scene import Scene
from featuresplat.types import Cameras

from . import heap, icons
from .cameras import home
from .document import Document
from .gate import Gate, addresses, free_port, guarded
from .insight import Insight
from .look import Look
from .session import Session
from .splats import BUDGET

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset

    from .live import Live

log = logging.getLogger("featuresplat.viewer")

PATIENCE = 0.4
"""Seconds after which a browser is told that something runs."""
GRACE = 20.0
"""Seconds that a stop waits at most for what is being drawn or worked out."""
PHOTOGRAPHS, PARKED = 4, 32
LARGEST_MESSAGE = 32 * 2**20
THUMBNAIL = 96
BRAND = (34, 139, 230)


class App:
    """The viewer of one scene.

    Attributes:
        document: the scene with its edits, prompts and selections.
        insight: answers about it.
        folder: where the run lies and exports go, or None.
        live: the training that is watched, or None.
        home: where browsers start.
        extent: size of the scene, world units.
        first: the scene as it was opened.
        base_cameras: its cameras.
        rendering: held by whoever renders, so that one picture at a time has all cores.
        splats_while_moving: browsers draw while the view moves (on a CPU).
        splat_budget: Gaussians that a browser gets at most.
    """

    def __init__(self, scene: Scene, folder: Path | None = None, title: str = "featuresplat"):
        self.document, self.folder, self.title = Document(scene), folder, title
        self.insight = Insight(self.document)
        self.live: Live | None = None
        self.first = scene
        self.base_cameras: Cameras = scene.cameras
        self.home = home(scene)
        self.extent = self._extent(scene)
        self.rendering = threading.Lock()
        self.splats_while_moving = scene.gaussians.means.device.type == "cpu"
        self.splat_budget = BUDGET
        self.gate: Gate | None = None
        self.server: Any = None
        self.port = 0
        self._sessions: dict[int, Session] = {}
        self._parked: OrderedDict[str, tuple[Look, list, list]] = OrderedDict()
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="viewer work")
        self._pending = 0
        self._dataset: Dataset | bool | None = None
        self._photographs: OrderedDict[str, tuple[Cameras, Tensor]] = OrderedDict()
        self._thumbnails: dict[str, np.ndarray | None] = {}
        self._data_lock = threading.RLock()
        self._ending: list[threading.Thread] = []
        self._stopped = False

    # Life

    def start(self, host: str = "127.0.0.1", port: int = 8080, token: str | None = None) -> list[str]:
        """Serve; answers the lines to print.

        Raises:
            FeaturesplatError: no such address, no free port, viser is missing.
        """
        try:
            import viser
        except ImportError:
            raise FeaturesplatError("viewer: the package viser is not installed.", "pip install 'viser>=1.1'") from None
        self._stopped = False
        heap.keep_few()
        icons.quicken()
        # A browser may leave while something is on its way to it; that is no news.
        warnings.filterwarnings("ignore", message="Queued a .* on a closed connection")
        gate = Gate(host, token)
        with guarded(gate, LARGEST_MESSAGE):
            server = viser.ViserServer(host=host, port=free_port(host, port), verbose=False)
        self.gate, self.server, self.port = gate, server, server.get_port()
        server.request_share_url = lambda *_, **__: None  # nobody opens a tunnel to the world from a browser
        self._dress(server)
        server.on_client_connect(self._came)
        server.on_client_disconnect(self._left)
        return addresses(gate, self.port)

    def _dress(self, server: Any) -> None:
        start = self.home
        server.scene.set_up_direction(tuple(start.up))
        server.scene.world_axes.visible = False
        camera = server.initial_camera
        camera.position, camera.look_at, camera.up, camera.fov = start.position, start.look_at, start.up, start.fov
        camera.near, camera.far = 1e-3 * self.extent, 1e3 * self.extent
        server.gui.configure_theme(
            dark_mode=True, show_logo=False, show_share_button=False, control_width="large", brand_color=BRAND
        )
        server.gui.main_panel.dock_right()
        server.gui.set_panel_label(self.title)

    def warm(self) -> threading.Thread:
        """Get ready, in the background, what the first question and the first click would wait for."""

        def run() -> None:
            scene = self.document.scene
            with contextlib.suppress(Exception):  # what cannot be had says so when it is asked for
                text.ask(scene, "object")
            with contextlib.suppress(Exception):
                pieces.pieces_of(scene, surface.snapshot(scene))

        return self.behind("viewer warm-up", run)

    def behind(self, name: str, function: Callable[[], object]) -> threading.Thread:
        """Do something in the background, that nobody waits for but `stop`."""
        thread = threading.Thread(target=function, name=name, daemon=True)
        thread.start()
        self._ending = [*(t for t in self._ending if t.is_alive()), thread]
        return thread

    def stop(self) -> None:
        """Close every browser's session and the server; may be called twice."""
        with self._lock:
            sessions, self._sessions, self._stopped = list(self._sessions.values()), {}, True
        for session in sessions:
            session.close()
        server, self.server = self.server, None
        if server is not None:
            with contextlib.redirect_stdout(io.StringIO()):  # viser says that it stops
                server.stop()
        self._worker.shutdown(wait=False, cancel_futures=True)
        # A thread that is still inside of native code when Python ends brings the process down with it.
        end = time.monotonic() + GRACE
        for thread in [*self._ending, *(t for s in sessions for t in s.threads)]:
            if thread is not threading.current_thread():
                thread.join(max(end - time.monotonic(), 0.0))

    def wait(self) -> None:
        """Serve until Ctrl-C."""
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass
        finally:
            self.stop()

    async def _came(self, client: Any) -> None:
        refuse_uploads(client)
        session = Session(self, client)
        with self._lock:
            late = self._stopped
            if not late:
                self._sessions[client.client_id] = session
        if late:
            session.close()

    async def _left(self, client: Any) -> None:
        with self._lock:
            session = self._sessions.pop(client.client_id, None)
            name = self._names.pop(client.client_id, None)
            if session is not None and name is not None:
                self._parked[name] = (session.look, session.keys, session.history)
                while len(self._parked) > PARKED:
                    self._parked.popitem(last=False)
        if session is not None:
            session.close()
            self._ending = [t for t in (*self._ending, *session.threads) if t.is_alive()]

    @property
    def sessions(self) -> list[Session]:
        with self._lock:
            return list(self._sessions.values())

    def welcome(self, session: Session) -> None:
        """A browser that was here before finds its look again; called in the session's thread."""
        storage, key = session.client.local_storage, "featuresplat.session"
        try:
            name = storage.get_item(key, timeout=10)
        except (RuntimeError, TimeoutError):
            return
        with self._lock:
            known = self._parked.pop(name, None) if name else None
            if known is None:
                name = secrets.token_hex(8)
            self._names[session.client.client_id] = str(name)
        if known is None:
            storage.set_item(key, str(name))
        else:
            session.look, session.keys, session.history = known

    # Work that takes a while

    def work(self, session: Session, title: str, function: Callable[[], object]) -> Future:
        """Run ``function`` after what was asked for before, whoever asked; mistakes are said in the browser."""
        done = threading.Event()

        def run() -> None:
            try:
                function()
            except Exception as error:
                if not session.closed:
                    session.fail(error)
            finally:
                done.set()
                with self._lock:
                    self._pending -= 1
                session.refresh()
                heap.trim()

        with self._lock:
            self._pending += 1
        threading.Thread(target=self._announce, args=(session, title, done), daemon=True).start()
        return self._worker.submit(run)

    def _announce(self, session: Session, title: str, done: threading.Event) -> None:
        if done.wait(PATIENCE) or session.closed:
            return
        note = session.client.add_notification(title, "", loading=True, with_close_button=False)
        while not done.wait(0.5):
            if session.closed:
                return
        if not session.closed:
            note.remove()

    def settled(self) -> bool:
        """No work waits, and every browser shows what it should."""
        with self._lock:
            if self._pending:
                return False
        return all(s.settled() for s in self.sessions)

    # Photographs

    def dataset(self) -> Dataset | None:
        """The photographs of the run, or None where they are gone."""
        with self._data_lock:
            if self._dataset is None:
                try:
                    self._dataset = dataset_of(self.document.scene)
                except FeaturesplatError as error:
                    log.info("no photographs: %s", error.message)
                    self._dataset = False
            return self._dataset or None  # pyright: ignore[reportReturnType]

    def photograph(self, name: str) -> tuple[Cameras, Tensor] | None:
        """The camera of a photograph and [H, W, 3] in 0..1, or None."""
        with self._data_lock:
            if name in self._photographs:
                self._photographs.move_to_end(name)
                return self._photographs[name]
            data = self.dataset()
            if data is None or name not in data.cameras.names:
                return None
            index = list(data.cameras.names).index(name)
            try:
                found = (data.cameras[index], data.image(index).float() / 255)
            except FeaturesplatError as error:
                log.warning("%s", error)
                return None
            self._photographs[name] = found
            while len(self._photographs) > PHOTOGRAPHS:
                self._photographs.popitem(last=False)
            return found

    def thumbnail(self, name: str) -> np.ndarray | None:
        """A small uint8 [h, w, 3] picture of a photograph, or None."""
        with self._data_lock:
            if name not in self._thumbnails:
                self._thumbnails[name] = None
                data = self.dataset()
                if data is not None and name in data.cameras.names:
                    image = data.image(list(data.cameras.names).index(name))
                    h, w = image.shape[:2]
                    scale = THUMBNAIL / max(h, w)
                    small = resize_area(image, max(1, round(w * scale)), max(1, round(h * scale)))
                    self._thumbnails[name] = small.numpy()
            return self._thumbnails[name]

    # Geometry

    def reach(self, camera: Cameras) -> float:
        """How far before a camera lies what all cameras look at; never nothing."""
        target = torch.from_numpy(np.asarray(self.home.look_at))
        if len(self.base_cameras):
            target = focus_point(self.base_cameras)
        along = float((target - camera.positions[0].double().cpu()) @ camera.viewmats[0, 2, :3].double().cpu())
        return along if along > 1e-3 * self.extent else self.extent

    @staticmethod
    def _extent(scene: Scene) -> float:
        """Half the spread of the cameras, or of the Gaussians where there are none."""
        points = scene.cameras.positions if len(scene.cameras) > 1 else scene.gaussians.means
        if len(points) == 0:
            return 1.0
        points = points.double().cpu()
        reach = (points - points.mean(0)).norm(dim=1)
        size = float(reach.max() if len(scene.cameras) > 1 else reach.quantile(0.8))
        return size if np.isfinite(size) and size > 1e-6 else 1.0


def refuse_uploads(client: Any) -> None:
    """Drop what a browser tries to send as files: no control of ours takes any."""
    from viser import _messages

    for connection in {client._websock_connection, client._viser_server._websock_server}:
        for kind in (_messages.FileTransferStartUpload, _messages.FileTransferPart):
            if kind in connection._incoming_handlers:
                connection.unregister_handler(kind)
