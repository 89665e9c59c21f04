"""What one browser sees: splats that it draws itself, or pictures that our engine draws; and the cameras' frustums.

On a CPU the browser draws while the view moves, and when it is still our engine's picture takes the place of the
splats: all Gaussians, colours that depend on the view, exact outlines. On a GPU, and for views that are no colour per
Gaussian, every picture is ours.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.types import Cameras

from .cameras import Pose, vertical_fov, warped, wxyz_of
from .document import State
from .look import ON_SPLATS, Look
from .pictures import Overlay, picture
from .splats import splats
from .stream import LEAST, Stream, Ticket

if TYPE_CHECKING:
    from .session import Session

log = logging.getLogger("featuresplat.viewer")

ARRIVAL = 20.0
"""Seconds that a picture may take to arrive before the next one is sent all the same (a tab in the background)."""
JPEG_MOVING, JPEG_STILL = 70, 92
QUICK = 150_000
"""Gaussians that are rendered at most while the view moves."""
SPLATS, FRUSTUMS = "/splats", "/cameras"
MOST_FRUSTUMS = 300
FRUSTUM_PIXELS = 64


class Canvas:
    """Draws one session's look in a thread of its own; `changed` and `refresh` may be called from any thread."""

    def __init__(self, session: Session):
        self.session = session
        self.stream: Stream[Pose] = Stream(self._make, f"canvas {session.client.client_id}")
        self.picture: Tensor | None = None
        """The last picture of ours that was sent, uint8 [H, W, 3]."""
        self.showing = ""
        """``splats`` or ``render``: what the browser shows."""
        self.problem = ""
        """Why the look cannot be shown, in words."""
        self._splat_node: Any = None
        self._splat_key: tuple | None = None
        self._frustums: Any = None
        self._frustum_nodes: list[tuple[np.ndarray, Any]] = []
        self._frustum_key: Any = None

    def changed(self, moving: bool) -> None:
        """The camera or the look has changed."""
        pose = self.session.pose()
        if pose is not None:
            self.stream.request(pose, moving)

    def refresh(self) -> None:
        """Draw again after a change of the look or of the document."""
        self._show_frustums()
        self.changed(moving=self.session.playing())

    def close(self) -> None:
        self.stream.close()
        self._splat_node = self._frustums = self.picture = None

    def by_browser(self, look: Look, full: bool) -> bool:
        """Whether the browser draws the next picture."""
        session = self.session
        own = look.kind in ON_SPLATS and not look.compare and look.light is None and not session.pointer.painting
        if look.time is not None and session.playing():
            return False  # sending all splats anew for every moment is more than a picture
        if look.draw == "render" or not own:
            return False
        if look.draw == "splats":
            return True
        return self.session.app.splats_while_moving and not full

    def _make(self, ticket: Ticket[Pose]) -> bool:
        session, look, state = self.session, self.session.look, self.session.state
        if session.closed:
            return False
        try:
            self._clear_the_view(ticket.what)
            if self.by_browser(look, ticket.full):
                return self._show_splats(ticket.what, look, state)
            return self._show_picture(ticket, look, state)
        except Exception as error:
            if not session.closed:
                self._complain(error)
        return False

    def _complain(self, error: Exception) -> None:
        """Say once why this look cannot be shown, and go back to colours."""
        words = f"{type(error).__name__}: {error}"
        if words != self.problem:
            self.problem = words
            self.session.fail(error)
            self.session.show(kind="rgb")

    # Our pictures

    def _show_picture(self, ticket: Ticket[Pose], look: Look, state: State) -> bool:
        session = self.session
        began = time.monotonic()
        window = ticket.what.width * ticket.what.height
        pixels = max(int(window * look.detail**2), LEAST)
        camera = ticket.what.camera(min(pixels, ticket.pixels))
        image = self.draw(camera, look, state, quick=not ticket.full)
        width, height = camera.sizes[0]
        session.client.scene.set_background_image(
            image.numpy(), format="jpeg", jpeg_quality=JPEG_STILL if ticket.full else JPEG_MOVING
        )
        if self._splat_node is not None and self.showing != "render":
            self._splat_node.visible = False
        self.stream.pace.learn(width * height, time.monotonic() - began)
        self.picture, self.showing = image, "render"
        session.client.flush()
        self._arrived()
        return True

    def draw(self, camera: Cameras, look: Look, state: State, quick: bool = False) -> Tensor:
        """uint8 [H, W, 3]: what this browser sees from a camera; ``quick``: of the Gaussians that cover most."""
        scene, app = self.session.shown_scene(state), self.session.app
        with app.rendering:
            overlay = self.overlay(state, look, scene)
            sketch = app.insight.sketch(scene, QUICK) if quick and scene is state.scene else None
            if sketch is not None:
                scene, overlay = sketch[0], overlay.rows(sketch[1])
            image, _ = picture(scene, camera, look, overlay)
        self.problem = ""
        image = self.session.pointer.paint(image, camera)
        return self._compared(image, camera, look) if look.compare else image

    def overlay(self, state: State, look: Look, scene: Any) -> Overlay:
        overlay = self.session.app.insight.overlay(state, look)
        if scene is not state.scene and len(scene.gaussians) != len(state.scene.gaussians):
            return Overlay()  # a preview of other Gaussians
        return overlay

    def _compared(self, image: Tensor, camera: Cameras, look: Look) -> Tensor:
        """The photograph on the left of the split."""
        found = self.session.app.photograph(look.compare)
        if found is None:
            return image
        taken, photograph = found
        seen, inside = warped(photograph, taken, camera)
        split = round(look.split * image.shape[1])
        left = torch.arange(image.shape[1])[None] < split
        image = torch.where((left & inside)[..., None], (seen * 255).round().to(torch.uint8), image)
        if 0 < split < image.shape[1]:
            image[:, max(split - 1, 0) : split + 1] = 255
        return image

    def _arrived(self) -> None:
        """Wait until the browser has dealt with what was sent: the answer to a question comes after it."""
        with contextlib.suppress(RuntimeError, TimeoutError):  # it has left, sleeps, or keeps no storage but answered
            self.session.client.local_storage.get_item("featuresplat.arrived", timeout=ARRIVAL)

    # The browser's splats

    def _show_splats(self, pose: Pose, look: Look, state: State) -> bool:
        client, scene = self.session.client, self.session.shown_scene(state)
        key = (scene, state.selected, state.kept, state.prompts, state.threshold, state.field, state.negatives,
               look.kind, look.size, look.crop, look.time, look.field, look.prompt, look.outlines)  # fmt: skip
        new = self._splat_key is None or any(
            a is not b and not _equal(a, b) for a, b in zip(key, self._splat_key, strict=True)
        )
        if new:
            with self.session.app.rendering:
                overlay = self.overlay(state, look, scene)
                s = splats(scene, pose.camera(), look, overlay, self.session.app.splat_budget)
            if self._splat_node is None:
                self._splat_node = client.scene.add_gaussian_splats(
                    SPLATS, s.centers, s.covariances, rgbs=s.rgbs, opacities=s.opacities
                )
            else:
                self._splat_node.set_gaussians(s.centers, s.covariances, s.rgbs, s.opacities)
            self._splat_key = key
            self.problem = ""
        if self.showing != "splats":
            with client.atomic():
                self._splat_node.visible = True
                color = (np.asarray(look.background)[None, None] * 255).round().astype(np.uint8)
                client.scene.set_background_image(color, format="png")
            self.showing = "splats"
        if new:
            client.flush()
            self._arrived()
        return new

    # The cameras

    def _show_frustums(self) -> None:
        session, app = self.session, self.session.app
        wanted = app.base_cameras if session.look.frustums else None
        if wanted is self._frustum_key:
            return
        self._frustum_key = wanted
        if self._frustums is not None:
            self._frustum_nodes = []
            self._frustums.remove()
            self._frustums = None
        if wanted is None:
            return
        scene = session.client.scene
        self._frustums = scene.add_frame(FRUSTUMS, show_axes=False)
        nodes = []
        step = max(1, -(-len(wanted) // MOST_FRUSTUMS))
        test = set(session.scene.names("test"))
        for i in range(0, len(wanted), step):
            camera = wanted[i]
            w, h = camera.sizes[0]
            color = (255, 146, 43) if wanted.names[i] in test else (51, 154, 240)
            node = scene.add_camera_frustum(
                f"{FRUSTUMS}/{i}", vertical_fov(camera), w / h, scale=0.06 * app.extent, color=color,
                wxyz=wxyz_of(camera), position=camera.positions[0].numpy(), image=app.thumbnail(wanted.names[i]),
            )  # fmt: skip
            node.on_click(self._flight(i))
            nodes.append((camera.positions[0].numpy(), node))
        self._frustum_nodes = nodes

    def _clear_the_view(self, pose: Pose) -> None:
        """Hide the frustums that one looks out of: they would stand in front of everything."""
        for position, node in list(self._frustum_nodes):
            far = np.linalg.norm(position - np.asarray(pose.position)) > 0.15 * self.session.app.extent
            if node.visible != far:
                node.visible = bool(far)

    def _flight(self, index: int):
        async def clicked(_: Any) -> None:
            self.session.post(object(), lambda: self.session.fly_to(self.session.app.base_cameras[index]))

        return clicked


def _equal(a: Any, b: Any) -> bool:
    plain = (str, int, float, bool, tuple, type(None))
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(x is y or _equal(x, y) for x, y in zip(a, b, strict=True))
    return isinstance(a, plain) and type(a) is type(b) and a == b
