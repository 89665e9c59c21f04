"""A real browser for the tests: one process for all of them, and a clear reason where there is none.

Tests wait for the state of the viewer, which runs in the same process, rather than for what the page looks like, and
they press nothing that goes away by itself: messages are hidden.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image
from wire import PATIENCE, until

from featuresplat.viewer.app import App
from featuresplat.viewer.cameras import fitting_fov

FLAGS = (
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-dev-shm-usage",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SIZE = {"width": 860, "height": 480}
HIDE_MESSAGES = """addEventListener('DOMContentLoaded', () => {
  const style = document.createElement('style');
  style.textContent = '.mantine-Notification-root { display: none !important }';
  document.head.append(style);
})"""
# What viser's own page says whatever is shown.
KNOWN_ERRORS = ("preventDefault inside passive", "WebSocket", "ERR_CONNECTION", "computeBoundingSphere", "favicon")
GONE = ("Target crashed", "has been closed", "Page crashed", "Connection closed")


def launched() -> Iterator[Any]:
    """The browser; skips the test where none can be had."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((p for p in map(shutil.which, NAMES) if p), None)
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS), timeout=1000 * PATIENCE)
        except Exception as error:
            pytest.skip(f"no browser can be started here: {str(error).splitlines()[0]}")
        page = browser.new_page()
        draws = page.evaluate("() => document.createElement('canvas').getContext('webgl2') !== null")
        page.close()
        if not draws:
            browser.close()
            pytest.skip("the browser here has no WebGL 2")
        yield browser
        browser.close()


class Tab:
    """One page that looks at a viewer."""

    def __init__(self, browser: Any, app: App):
        self.app = app
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        known = set(app.sessions)
        self.page = browser.new_page(viewport=SIZE, accept_downloads=True)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.page.add_init_script(HIDE_MESSAGES)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.goto(f"http://localhost:{app.port}/")
        self.session: Any = self.wait(lambda: next((s for s in app.sessions if s not in known), None), "the session")
        self.wait(lambda: self.session.canvas.showing and self.session.settled(), "the first picture")

    def _console(self, message: Any) -> None:
        if message.type == "error" and not any(k in message.text for k in KNOWN_ERRORS):
            self.errors.append(message.text)

    def _dialog(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def wait(self, condition: Callable[[], Any], what: str = "") -> Any:
        """As `until`, while the page's events are dealt with."""

        def look() -> Any:
            self.page.wait_for_timeout(10)
            return condition()

        return until(look, what)

    def settle(self) -> None:
        """Everything that was asked for is done, drawn and has arrived."""
        self.wait(self.app.settled, "the viewer to settle")

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def line(self, place: int) -> Any:
        """The n-th line for text of the panel that is open."""
        return self.page.get_by_role("textbox").nth(place)

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).click()

    def fly_to(self, camera: Any) -> None:
        """Look from a camera, and have that drawn."""

        def there() -> bool:
            pose = self.session.pose()
            off = (pose.camera().viewmats[0] - camera.viewmats[0]).abs().max()
            if float(off) < 1e-3 and abs(pose.fov - fitting_fov(camera, pose.width, pose.height)) < 1e-3:
                return True
            if self.app.settled():  # a page that has just been opened may still be on its own way home
                self.session.fly_to(camera)
            return False

        self.wait(there, "the flight")
        self.settle()

    def canvas(self) -> np.ndarray:
        """uint8 [H, W, 3]: the part of the page that shows the scene, in the pixels of the session's pose.

        viser draws with fewer pixels than the page has when the machine is slow, and says so in the pose.
        """
        pose, box = self.session.pose(), self.page.locator("canvas").first.bounding_box()
        image = Image.open(io.BytesIO(self.page.screenshot(timeout=1000 * PATIENCE))).convert("RGB")
        corners = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
        return np.asarray(image.crop(tuple(round(c) for c in corners)).resize((pose.width, pose.height)))

    def on_page(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the session's pose lies on the page."""
        pose, box = self.session.pose(), self.page.locator("canvas").first.bounding_box()
        return box["x"] + (x + 0.5) * box["width"] / pose.width, box["y"] + (y + 0.5) * box["height"] / pose.height

    def see(self, condition: Callable[[np.ndarray], Any], what: str) -> np.ndarray:
        """Look at the page until it shows what it should; the picture."""
        seen: list[np.ndarray] = []

        def look() -> bool:
            seen[:] = [self.canvas()]
            return bool(condition(seen[0]))

        self.wait(look, what)
        return seen[0]

    def close(self) -> None:
        self.page.close()
