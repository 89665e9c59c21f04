"""The viewer in a real browser, on the demo scene with its true objects."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from browsing import Tab, launched
from demo_truth import dataset, names, true_mask, truth_scene
from PIL import Image
from wire import PATIENCE, until

from featuresplat.io.ply import read_ply
from featuresplat.scene import Scene
from featuresplat.viewer.app import App
from featuresplat.viewer.cameras import warped
from featuresplat.viewer.look import Look
from featuresplat.viewer.markup import shortened
from featuresplat.viewer.panels.select import LABEL

pytestmark = pytest.mark.xdist_group("browser")
VIEW = 0
CONE = "traffic cone"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    yield from launched()


@pytest.fixture(scope="module")
def demo() -> Scene:
    return truth_scene()


@pytest.fixture(scope="module")
def site(chromium, demo, tmp_path_factory) -> Iterator[App]:
    app = App(demo, tmp_path_factory.mktemp("viewer") / "run")
    app.splats_while_moving = False  # a browser without a GPU would take seconds for a picture of splats
    app.start(port=0)
    yield app
    app.stop()


@pytest.fixture(scope="module")
def page(chromium, site) -> Iterator[Tab]:
    """One page for all tests: loading it is what takes long."""
    tab = Tab(chromium, site)
    yield tab
    tab.close()


@pytest.fixture
def tab(page, site, demo) -> Tab:
    """The page, as if it had just been opened."""
    site.document.ask([], negatives=[])
    site.document.replace_base(demo)
    page.session.post("tool", lambda: page.session.pointer.use("off"))
    page.session.post("steer", lambda: page.session.steer(fly=False))
    page.session.show(**{f.name: getattr(Look(), f.name) for f in fields(Look)})
    page.settle()
    page.fly_to(site.base_cameras[VIEW])
    page.errors.clear()
    return page


def truth(tab: Tab, name: str) -> np.ndarray:
    """bool [H, W]: where the object truly is in what the page shows."""
    mask = true_mask(VIEW, name).float()[..., None].expand(-1, -1, 3)
    seen, inside = warped(mask, dataset().cameras[VIEW], tab.session.pose().camera())
    return ((seen[..., 0] > 0.5) & inside).numpy()


def fitted(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """An earlier look at the page at the size of a later one: viser changes its pixels with the machine's load."""
    h, w = like.shape[:2]
    return image if image.shape == like.shape else np.asarray(Image.fromarray(image).resize((w, h)))


def middle(mask: np.ndarray) -> tuple[int, int]:
    """x, y well inside of a mask."""
    from scipy.ndimage import distance_transform_edt

    y, x = np.unravel_index(np.asarray(distance_transform_edt(mask)).argmax(), mask.shape)
    return int(x), int(y)


def gaussians_of(tab: Tab, name: str) -> torch.Tensor:
    return tab.session.scene.fields["objects"].codes[:, names().index(name)] > 0.5


def iou(a, b) -> float:
    return float((a & b).sum()) / max(float((a | b).sum()), 1.0)


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - fitted(b, a)).max(-1)


def ask(tab: Tab, text: str) -> None:
    tab.tab("Ask")
    tab.line(0).fill(text)
    tab.wait(lambda: [p.text for p in tab.session.state.prompts] == [text], "the prompt")
    tab.wait(lambda: tab.session.look.kind == "relevancy", "the heat map")
    tab.settle()


def select(tab: Tab, name: str) -> None:
    tab.session.document.select(gaussians_of(tab, name))
    tab.settle()


def test_the_demo_is_shown(tab):
    def alike(image):
        seen = tab.session.pose().camera()
        photograph, inside = warped(dataset().image(VIEW).float() / 255, dataset().cameras[VIEW], seen)
        if inside.shape != image.shape[:2]:
            return False
        # The scene is made of points of the photographs: coarse, but of the same colours in the same places.
        return np.corrcoef(image[inside.numpy()].ravel(), photograph.numpy()[inside.numpy()].ravel())[0, 1] > 0.6

    tab.see(alike, "the scene")
    assert tab.errors == []


def test_a_prompt_lights_up_the_right_object(tab):
    plain = tab.canvas()
    ask(tab, CONE)

    def lit(image):
        where = fitted(truth(tab, CONE), image[..., 0])
        bright = image.astype(float).sum(-1)
        return bright[where].mean() > 1.6 * bright[~where].mean() and iou(bright > 400, where) > 0.5

    image = tab.see(lit, "the heat map")
    assert difference(image, plain).mean() > 20
    assert tab.errors == []


def test_a_click_selects_the_object(tab):
    tab.tab("Select")
    tab.session.post("tool", lambda: tab.session.pointer.use("point"))
    tab.wait(lambda: tab.session.pointer.tool == "point")
    tab.settle()

    def clicked() -> bool:
        # A click right after the tool was taken may come before the page knows of the tool.
        if tab.session.state.selected is None and tab.app.settled():
            tab.page.mouse.click(*tab.on_page(*middle(truth(tab, CONE))))
        return tab.session.state.selected is not None

    tab.wait(clicked, "a selection")
    tab.settle()
    assert iou(tab.session.state.selected, gaussians_of(tab, CONE)) > 0.6


def test_the_brush_follows_the_mouse(tab):
    tab.session.post("tool", lambda: tab.session.pointer.use("brush"))
    tab.wait(lambda: tab.session.pointer.tool == "brush")
    tab.settle()

    def stroke() -> bool:
        if tab.session.state.selected is None and tab.app.settled():
            x, y = tab.on_page(*middle(truth(tab, "teapot")))
            tab.page.mouse.move(x - 12, y)
            tab.page.mouse.down()
            tab.page.mouse.move(x + 12, y, steps=4)
            tab.page.mouse.up()
        return tab.session.state.selected is not None

    tab.wait(stroke, "a selection")
    tab.settle()
    chosen = tab.session.state.selected
    assert float((chosen & gaussians_of(tab, "teapot")).sum() / chosen.sum()) > 0.4


def test_a_drag_turns_on_the_spot_in_fly(tab):
    def turned() -> bool:
        x, y = tab.on_page(100, 100)
        tab.page.mouse.move(x, y)
        tab.page.mouse.down()
        tab.page.mouse.move(x + 60, y, steps=4)
        tab.page.mouse.up()
        return bool(np.dot(tab.session.pose().forward, before.forward) < 0.98)

    tab.session.post("steer", lambda: tab.session.steer(fly=True))
    before = tab.session.pose()
    tab.wait(lambda: tab.session.look.fly)
    tab.settle()
    tab.wait(turned, "the view to turn")
    tab.settle()
    moved = np.linalg.norm(np.subtract(tab.session.pose().position, before.position))
    assert moved < 0.01 * tab.app.extent


def test_remove_and_undo(tab):
    def drawn() -> torch.Tensor:
        return tab.session.canvas.draw(tab.app.base_cameras[VIEW], tab.session.look, tab.session.state)

    select(tab, "soccer ball")
    tab.tab("Edit")
    tab.session.show(outlines=False)
    tab.settle()
    before, picture = tab.canvas(), drawn()
    original = tab.session.scene
    tab.press("Remove")
    tab.wait(lambda: len(tab.session.state.edits) == 1)
    tab.settle()

    def gone(image):
        ball = fitted(truth(tab, "soccer ball"), image[..., 0])
        return difference(image, before)[ball].mean() > 40 and difference(image, before)[~ball].mean() < 6

    tab.see(gone, "the ball to go")
    assert not bool(gaussians_of(tab, "soccer ball").any())
    assert not torch.equal(drawn(), picture)
    tab.press("Undo")
    tab.wait(lambda: tab.session.scene is original)
    tab.settle()
    assert torch.equal(drawn(), picture)
    tab.see(lambda image: difference(image, before).mean() < 4, "the same picture")
    assert tab.errors == []


def test_an_export_is_downloaded_and_holds_the_selection(tab, tmp_path):
    select(tab, "banana")
    tab.tab("Export")
    tab.settle()
    with tab.page.expect_download(timeout=1000 * PATIENCE) as download:
        tab.press("Export the selection")
    path = tmp_path / "got.ply"
    download.value.save_as(path)
    read = read_ply(path)
    assert torch.allclose(read.gaussians.means, tab.session.scene.gaussians.means[gaussians_of(tab, "banana")])
    assert download.value.suggested_filename == "scene.ply"


def test_two_clients(tab, chromium, site):
    one, two = tab, Tab(chromium, site)
    assert len(site.sessions) == 2
    two.fly_to(one.app.base_cameras[5])
    seen = two.canvas()
    select(one, "teapot")
    one.tab("Edit")
    one.press("Remove")
    one.wait(lambda: len(one.session.state.edits) == 1)
    one.settle()
    two.see(lambda image: difference(image, seen).max() > 60, "the other to see it")
    assert one.session.pose().position != two.session.pose().position
    two.close()
    one.wait(lambda: len(site.sessions) == 1, "the other to leave")


def test_a_dropped_connection_comes_back(tab, site):
    tab.session.show(kind="depth")
    tab.settle()
    old = tab.session
    site.server._websock_server.disconnect_all_clients()
    tab.wait(lambda: old.closed, "the line to break")
    tab.wait(lambda: site.sessions, "the browser to come back")
    tab.session = site.sessions[0]
    tab.wait(lambda: tab.session.canvas.showing == "render", "a picture")
    tab.settle()
    assert tab.session is not old
    assert tab.session.look.kind == "depth"


def test_markup_stays_text(tab):
    nasty = "<img src=x onerror=alert(1)><b>bold</b>"
    tab.session.document.select(gaussians_of(tab, CONE))
    tab.session.document.keep(nasty)
    tab.tab("Select")
    tab.settle()
    tab.page.get_by_text(shortened(nasty, LABEL), exact=True).first.wait_for()
    tab.tab("Ask")
    tab.line(0).fill(nasty)
    tab.wait(lambda: tab.app.settled() and "<img" in tab.line(0).input_value())
    assert tab.page.locator("img[src=x]").count() == 0
    assert tab.dialogs == []


def test_the_browser_draws_splats_itself(tab):
    tab.session.show(draw="splats")
    tab.wait(lambda: tab.session.canvas.showing == "splats", "splats")
    tab.settle()
    tab.see(lambda image: image.std() > 25, "splats drawn by the browser")
    assert tab.errors == []


def test_the_page_that_stands_by_itself(tab, chromium, tmp_path):
    tab.tab("Export")
    tab.settle()
    with tab.page.expect_download(timeout=1000 * PATIENCE) as download:
        tab.press("Page that stands by itself")
    path = tmp_path / "scene.html"
    download.value.save_as(path)
    page = chromium.new_page(viewport={"width": 320, "height": 240})
    page.goto(path.as_uri())
    page.locator("canvas").first.wait_for(timeout=1000 * PATIENCE)
    page.close()
    assert path.stat().st_size > 500_000


def test_the_server_stops_cleanly(tab, site):
    """The last one: the page has nobody to talk to afterwards."""
    session = tab.session
    site.stop()
    until(lambda: not session._thread.is_alive() and not session.canvas.stream.thread.is_alive(), "the threads to end")
    assert session.closed
    assert site.sessions == []
