"""Fixtures of the viewer's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from featuresplat.scene import Scene

try:
    from browsing import GONE
    from toy import toy_scene
    from wire import WireBrowser, until

    from featuresplat.viewer.app import App
except ModuleNotFoundError as error:
    if error.name not in ("featuresplat.viewer", "viser", "msgspec"):
        raise
    missing = error.name

    class _WithoutViewer(pytest.Module):
        def collect(self):
            pytest.skip(f"{missing} is not installed (a bare checkout has no viewer)", allow_module_level=True)

    def pytest_pycollect_makemodule(module_path, parent):
        return _WithoutViewer.from_parent(parent, path=module_path)


@pytest.fixture
def scene() -> Scene:
    return toy_scene()


@pytest.fixture
def make_app(tmp_path) -> Iterator[Callable[..., App]]:
    """Serves a scene on a free port; stopped after the test."""
    apps: list[App] = []

    def make(scene: Scene | None = None, draw: str = "render", **options) -> App:
        app = App(scene or toy_scene(), tmp_path / "run")
        app.splats_while_moving = draw == "splats"
        app.start(port=0, **options)
        apps.append(app)
        return app

    yield make
    for app in apps:
        app.stop()


@pytest.fixture
def app(make_app) -> App:
    return make_app()


@pytest.fixture
def browse(app) -> Iterator[Callable[..., WireBrowser]]:
    """Opens connections to ``app``; each is ready when it is handed out."""
    open_: list[WireBrowser] = []

    def connect(to: App | None = None, **options) -> WireBrowser:
        served = to or app
        before = {id(s) for s in served.sessions}
        browser = WireBrowser(served.port, **options)
        open_.append(browser)
        browser.session = until(  # pyright: ignore[reportAttributeAccessIssue]
            lambda: next((s for s in served.sessions if id(s) not in before), None), "the session"
        )
        if options.get("acknowledge", True):
            until(lambda: browser.tabs() and browser.images and browser.session.settled(), "the first picture")
        return browser

    yield connect
    for browser in open_:
        browser.close()


@pytest.fixture
def browser(browse) -> WireBrowser:
    return browse()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A browser that dies says nothing about the viewer: such a test counts as skipped, with the reason."""
    report = yield
    if item.path.name == "test_browser.py" and report.failed and call.excinfo is not None:
        words = str(call.excinfo.value)
        if type(call.excinfo.value).__module__.startswith("playwright") and any(g in words for g in GONE):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, f"the browser died: {words.splitlines()[0]}")
    return report
