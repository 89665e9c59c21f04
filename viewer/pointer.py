"""What clicks and drags in the picture mean: points, a box, a brush; and the gizmo that moves the selection.

Points are kept as places in the scene, so that the next click may come from another side.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import spatial
from featuresplat.prompts.edits import Transform
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.types import Cameras

from .cameras import Pose

if TYPE_CHECKING:
    from .session import Session

TOOLS = ("off", "point", "box", "brush")
HOW = ("replace", "add", "subtract", "intersect")
PROMPT_PIXELS = 160_000
"""Pixels of the view that a prompt is worked out on."""
BRUSH_SPHERE, GIZMO = "/brush", "/gizmo"
POSITIVE, NEGATIVE, PAINT = (81, 207, 102), (255, 107, 107), (255, 212, 59)


class Pointer:
    """The tools of one session.

    Attributes:
        tool: of `TOOLS`.
        how: what a new prompt does to the selection, of `HOW`.
        positive: clicks are on the object (else: not on it).
        radius: of the brush, share of the window's height.
    """

    def __init__(self, session: Session):
        self.session = session
        self.tool, self.how, self.positive, self.radius = "off", "replace", True, 0.02
        self.points: list[tuple[Tensor, int]] = []
        self.gizmo = Gizmo(session)
        self._before: Tensor | None = None
        self._stroke: list[tuple[float, float]] = []
        self._sphere: Any = None
        self._bound: list[Callable[[], None]] = []

    @property
    def painting(self) -> bool:
        return bool(self._stroke)

    def use(self, tool: str) -> None:
        """Take a tool; ``off`` leaves the mouse to the camera."""
        if tool not in TOOLS:
            raise FeaturesplatError(f"tool: there is none called '{tool}'.", f"Tools: {', '.join(TOOLS)}.")
        for release in self._bound:
            release()
        self._bound = []
        self.tool = tool
        self.forget_points()
        scene, post = self.session.client.scene, self.session.post
        if tool == "point":

            async def clicked(event: Any) -> None:
                u, v = event.screen_pos
                positive = self.positive == (event.modifier != "shift")
                post(object(), lambda: self.click(u, v, positive))

            scene.on_click()(clicked)
            scene.on_click(modifier="shift")(clicked)
            self._bound.append(lambda: scene.remove_click_callback(clicked))
        elif tool == "box":

            async def dragged(event: Any) -> None:
                corners = (*event.screen_min, *event.screen_max)
                post(object(), lambda: self.box(*corners))

            scene.on_rect_select()(dragged)
            self._bound.append(lambda: scene.remove_rect_select_callback(dragged))
        elif tool == "brush":
            self._bind_brush()

    def bind_commands(self) -> None:
        """The keyboard and the command palette."""
        session = self.session
        commands = [
            ("Undo", "Z", "cmd/ctrl", lambda: session.work("Undo", session.document.undo)),
            ("Redo", "Z", "cmd/ctrl+shift", lambda: session.work("Redo", session.document.redo)),
            ("Home view", "H", None, session.go_home),
            ("Clear the selection", "Escape", None, self.clear),
        ]
        for label, key, modifier, action in commands:
            self._command(label, key, modifier, action)

    def _command(self, label: str, key: str, modifier: Any, action: Callable[[], object]) -> None:
        async def triggered(_: Any) -> None:
            self.session.post(object(), action)

        self.session.client.gui.add_command(label, hotkey=key, modifier=modifier).on_trigger(triggered)

    def clear(self) -> None:
        """Nothing is selected."""
        self.forget_points()
        self.session.document.select(None)

    def forget_points(self) -> None:
        """The next click begins anew."""
        self.points, self._before = [], None

    # Prompts

    def click(self, u: float, v: float, positive: bool) -> None:
        """A point prompt at a place of the window, 0..1 from the top left."""
        pose = self._pose(u, v)

        def work() -> None:
            camera, scene = pose.camera(PROMPT_PIXELS, self.session.look.time), self.session.scene
            w, h = camera.sizes[0]
            place = spatial.pick(scene, camera, u * w, v * h).detach()
            self._begin()
            self.points.append((place, int(positive)))
            xy, labels = visible(self.points, camera)
            try:
                found = spatial.select_points(scene, camera, xy, labels, photograph=self._photographs())
            except FeaturesplatError:
                self.points.pop()
                raise
            self._select(found.selection)

        self.session.work("Selecting", work)

    def box(self, u0: float, v0: float, u1: float, v1: float) -> None:
        """A box prompt in the window, 0..1 from the top left."""
        pose = self._pose(u0, v0, u1, v1)

        def work() -> None:
            camera, scene = pose.camera(PROMPT_PIXELS, self.session.look.time), self.session.scene
            w, h = camera.sizes[0]
            x0, x1 = sorted(min(max(u, 0.0), 1.0) * w for u in (u0, u1))
            y0, y1 = sorted(min(max(v, 0.0), 1.0) * h for v in (v0, v1))
            self.forget_points()
            self._begin()
            found = spatial.select_points(scene, camera, box=(x0, y0, x1, y1), photograph=self._photographs())
            self._select(found.selection)

        self.session.work("Selecting", work)

    def brush(self, stroke: list[tuple[float, float]]) -> None:
        """What a stroke over the window has passed, 0..1 from the top left."""
        pose = self._pose(*(x for point in stroke for x in point))

        def work() -> None:
            camera, scene = pose.camera(PROMPT_PIXELS, self.session.look.time), self.session.scene
            self.forget_points()
            self._begin()
            self._select(spatial.brush(scene, camera, painted(stroke, camera, self.radius)).selection)

        self.session.work("Selecting", work)

    def _pose(self, *numbers: float) -> Pose:
        pose = self.session.pose()
        if pose is None or not np.isfinite(numbers).all():
            raise FeaturesplatError("prompt: it is not known where that is.", "Move the view a little and try again.")
        return pose

    def _begin(self) -> None:
        if not self.points:
            self._before = self.session.state.selected

    def _select(self, found: Selection) -> None:
        document, before = self.session.document, self._before
        mask = found.mask
        if not bool(mask.any()):
            raise FeaturesplatError("prompt: nothing was found there.", "Add a point, or draw the box a little larger.")
        if before is not None and len(before) == len(mask) and self.how != "replace":
            mask = {"add": before | mask, "subtract": before & ~mask, "intersect": before & mask}[self.how]
        document.select(mask)

    def _photographs(self) -> Callable[[str], Tensor | None] | None:
        """The photographs, as long as the scene still looks like them."""
        app, state = self.session.app, self.session.state
        if state.edits or app.live is not None:
            return None

        def photograph(name: str) -> Tensor | None:
            found = app.photograph(name)
            return None if found is None else found[1]

        return photograph

    # The brush

    def _bind_brush(self) -> None:
        """A large invisible sphere around the scene takes the drags that would turn the view."""
        app, scene = self.session.app, self.session.client.scene
        sphere = scene.add_icosphere(
            BRUSH_SPHERE, radius=50 * app.extent, subdivisions=2, opacity=0.0, side="double", cast_shadow=False,
            receive_shadow=False, position=tuple(app.home.look_at),
        )  # fmt: skip

        async def dragged(event: Any) -> None:
            if event.phase == "start":
                self._stroke = [event.start_screen_pos]
            self._stroke.append(event.end_screen_pos)
            if event.phase == "end":
                stroke, self._stroke = self._stroke, []
                self.session.post(object(), lambda: self.brush(stroke))
            else:
                self.session.canvas.changed(moving=True)

        sphere.on_drag("left")(dragged)
        self._bound.append(sphere.remove)

    # Drawing

    def paint(self, image: Tensor, camera: Cameras) -> Tensor:
        """The prompt's points and the stroke, drawn over a picture uint8 [H, W, 3]."""
        if self._stroke:
            mask = painted(list(self._stroke), camera, self.radius)
            color = torch.tensor(PAINT, dtype=torch.float32)
            image = torch.where(mask[..., None], torch.lerp(image.float(), color, 0.6).to(torch.uint8), image)
        if self.points:
            image = image.clone()
            h, w = image.shape[:2]
            ys, xs = torch.arange(h)[:, None] + 0.5, torch.arange(w)[None] + 0.5
            size = max(3.0, h / 110)
            for (x, y), label in zip(*visible(self.points, camera), strict=True):
                far = (xs - x) ** 2 + (ys - y) ** 2
                image[far <= (1.5 * size) ** 2] = torch.tensor((255, 255, 255), dtype=torch.uint8)
                image[far <= size**2] = torch.tensor(POSITIVE if label else NEGATIVE, dtype=torch.uint8)
        return image


def visible(points: list[tuple[Tensor, int]], camera: Cameras) -> tuple[list[list[float]], list[int]]:
    """Pixels and labels of the places that lie inside a camera's image."""
    viewmat, K = camera.viewmats[0].double(), camera.Ks[0].double()
    w, h = camera.sizes[0]
    xy, labels = [], []
    for place, label in points:
        p = viewmat[:3, :3] @ place.double().cpu() + viewmat[:3, 3]
        if float(p[2]) <= 1e-9:
            continue
        x, y = float(K[0, 0] * p[0] / p[2] + K[0, 2]), float(K[1, 1] * p[1] / p[2] + K[1, 2])
        if 0 <= x < w and 0 <= y < h:
            xy.append([x, y])
            labels.append(label)
    return xy, labels


def painted(stroke: list[tuple[float, float]], camera: Cameras, radius: float) -> Tensor:
    """bool [H, W]: pixels within ``radius`` (share of the height) of a line through points in 0..1."""
    w, h = camera.sizes[0]
    y, x = torch.meshgrid(torch.arange(h) + 0.5, torch.arange(w) + 0.5, indexing="ij")
    out = torch.zeros(h, w, dtype=torch.bool)
    reach = max(radius * h, 1.0)
    points = [(u * w, v * h) for u, v in stroke[:1] + stroke]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        dx, dy = x1 - x0, y1 - y0
        t = (((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-12)).clamp(0, 1)
        out |= (x - x0 - t * dx) ** 2 + (y - y0 - t * dy) ** 2 <= reach**2
    return out


class Gizmo:
    """Arrows and rings at the selection: a drag shows the move as it goes, its end makes it an edit."""

    def __init__(self, session: Session):
        self.session = session
        self.shown = False
        self._handle: Any = None
        self._center: np.ndarray | None = None

    def show(self, shown: bool) -> None:
        """Raises FeaturesplatError where nothing is selected."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self.shown = False
        if not shown:
            self.session.preview(None)
            return
        state = self.session.state
        if state.selected is None:
            raise FeaturesplatError("move: nothing is selected.", "Click something, or ask for it, first.")
        self.shown = True
        self._center = center_of(state.scene.gaussians.means, state.scene.gaussians.opacities, state.selected)
        handle = self.session.client.scene.add_transform_controls(
            GIZMO, scale=0.25 * self.session.app.extent, position=self._center, depth_test=False, line_width=3.0
        )
        self._handle = handle

        async def moved(event: Any) -> None:
            pose = tuple(np.asarray(handle.position, float)), tuple(np.asarray(handle.wxyz, float))
            end = event.phase == "end"
            self.session.post(object() if end else "gizmo", lambda: self._moved(*pose, end))

        handle.on_update(moved)

    def _moved(self, position: tuple, wxyz: tuple, end: bool) -> None:
        edit = self.edit(position, wxyz)
        if edit is None:
            return
        if not end:
            self.session.preview(edit.apply(self.session.scene))
            return

        def do() -> None:
            self.session.document.apply(edit)
            self.session.preview(None)
            if self.shown and self.session.state.selected is not None:
                self.session.post(object(), lambda: self.show(True))

        self.session.work("Moving", do)

    def edit(self, position: Sequence[float], wxyz: Sequence[float]) -> Transform | None:
        """The edit that a pose of the gizmo stands for; None when it has not moved."""
        state, center = self.session.state, self._center
        if state.selected is None or center is None or not np.isfinite([*position, *wxyz]).all():
            return None
        move = np.asarray(position) - center
        if np.linalg.norm(move) < 1e-9 and abs(abs(wxyz[0]) - 1) < 1e-9:
            return None
        return Transform(
            Target.of(Selection(state.selected), state.scene),
            translate=(float(move[0]), float(move[1]), float(move[2])),
            rotate=(float(wxyz[0]), float(wxyz[1]), float(wxyz[2]), float(wxyz[3])),
            pivot=(float(center[0]), float(center[1]), float(center[2])),
        )


def center_of(means: Tensor, opacities: Tensor, mask: Tensor) -> np.ndarray:
    """[3] the opacity-weighted mean of some Gaussians."""
    w = opacities[mask].double()
    return ((means[mask].double() * w[:, None]).sum(0) / w.sum().clamp_min(1e-12)).cpu().numpy()
