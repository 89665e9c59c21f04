"""Watching a training: it is the same training, it can be held, and edits wait for that."""

from __future__ import annotations

import threading

import pytest
import torch
from tiny_training import everything, same, tiny_config, trained, write_scene
from wire import PATIENCE, WireBrowser, until

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Duplicate, Recolor, Remove
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.scene import Scene
from featuresplat.trainer import Trainer
from featuresplat.viewer.app import App
from featuresplat.viewer.document import ROWS, Document
from featuresplat.viewer.live import Live, copied, take
from featuresplat.viewer.watching import train_and_watch


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("photos") / "scene")


class Watched:
    """A training in a thread of its own, with a viewer."""

    def __init__(self, source, out, steps=40):
        self.trainer = Trainer(source, tiny_config(out, steps), progress=False)
        self.live = Live(steps)
        self.app = App(copied(self.trainer.scene()), out)
        self.live.attach(self.app)
        self.app.start(port=0)
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            self.trainer.run(self.live.watch)
        except BaseException as error:
            self.error = error

    def start(self):
        self.thread.start()
        return self

    def join(self):
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert self.error is None


@pytest.fixture
def watch(source, tmp_path):
    made = []

    def make(steps=40, hold=True):
        watched = Watched(source, tmp_path / f"run{len(made)}", steps)
        if hold:
            watched.live.pause()
        made.append(watched)
        return watched.start()

    yield make
    for watched in made:
        watched.live.close()
        watched.thread.join(PATIENCE)
        watched.app.stop()


def test_a_watched_training_is_the_same_training(source, tmp_path, watch, monkeypatch):
    monkeypatch.setattr("featuresplat.viewer.live.SHORTEST", 0.0)
    monkeypatch.setattr("featuresplat.viewer.live.SHARE", 1e9)  # a copy after every step
    alone = everything(trained(source, tiny_config(tmp_path / "alone")))
    watched = watch()
    browser = WireBrowser(watched.app.port)
    until(lambda: browser.images and watched.live.paused)
    watched.live.advance(7)
    until(lambda: watched.live.paused and watched.live.step == 8)
    watched.live.resume()
    watched.join()
    assert same(alone, everything(watched.trainer)) == []
    browser.close()


def test_pause_step_resume(watch):
    watched = watch()
    live = watched.live
    until(lambda: live.paused)
    assert live.step == 1
    browser = WireBrowser(watched.app.port)
    until(lambda: browser.tabs() and watched.app.settled())
    assert browser.tabs()[:2] == ["View", "Training"]
    assert "Step 1 of 40" in browser.texts()
    assert "Paused" in browser.texts()
    browser.set("Do steps", "10")
    until(lambda: live.step == 11 and live.paused)
    until(lambda: "Step 11 of 40" in browser.texts())
    browser.press("Resume")
    watched.join()
    assert live.finished
    assert live.step == 40
    browser.close()


def test_steps_asked_for_while_the_pause_begins_are_done(watch, monkeypatch):
    watched = watch()
    live, document = watched.live, watched.app.document
    until(lambda: live.paused)
    asked = []

    def eager():
        """Somebody presses the button before the training waits for it."""
        if not asked:
            asked.append(live.step)
            live.advance(3)
        return []

    monkeypatch.setattr(document, "apply_waiting", eager)
    live.advance(1)
    until(lambda: live.paused and live.step == 5)
    assert asked == [2]
    live.resume()
    watched.join()


def test_the_picture_follows_the_training(watch):
    watched = watch(steps=40)
    until(lambda: watched.live.paused)
    browser = WireBrowser(watched.app.port)
    until(lambda: browser.images and browser.tabs())
    camera = watched.app.base_cameras[0]
    until(lambda: watched.app.settled())
    watched.app.sessions[0].fly_to(camera)
    until(lambda: abs(browser.position - camera.positions[0].numpy()).max() < 1e-6)
    before = settled_image(browser, watched)
    watched.live.advance(30)
    until(lambda: watched.live.paused and watched.live.step == 31)
    after = settled_image(browser, watched)
    assert abs(after.astype(int) - before).mean() > 2
    browser.close()


def settled_image(browser, watched):
    until(watched.app.settled)
    return browser.image.copy()


def test_edits_wait_for_the_pause_and_go_into_the_training(watch):
    watched = watch(steps=60)
    live, document = watched.live, watched.app.document
    until(lambda: live.paused)
    browser = WireBrowser(watched.app.port)
    until(lambda: browser.tabs() and watched.app.settled())
    session = watched.app.sessions[0]
    # Between two steps the training is neither running nor held; make it look busy for as long as the test wants.
    document.busy = lambda: True
    session.edit(Recolor(Target(), shift=(0.3, 0.0, 0.0)))
    until(lambda: browser.said("Waits for a pause"))
    assert len(document.state.waiting) == 1
    assert document.state.edits == ()
    until(lambda: "edits wait" in browser.texts() or "1 edit wait" in browser.texts())
    with pytest.raises(FeaturesplatError, match="wait for a pause"):
        document.undo()
    document.busy = lambda: not live.paused
    before = watched.trainer.mode.gaussian_params["sh0"].detach().clone()
    live.advance(1)  # the next pause does it
    until(lambda: len(document.state.edits) == 1)
    assert document.state.waiting == ()
    live.advance(1)
    until(lambda: live.paused and live.step == 3)
    red = (watched.trainer.mode.gaussian_params["sh0"].detach() - before)[:, 0, 0]
    assert float(red.mean()) > 0.5  # 0.3 / C0 is about 1
    browser.close()


def test_what_was_removed_in_the_pause_stays_away(watch):
    watched = watch(steps=60)
    live, document = watched.live, watched.app.document
    until(lambda: live.paused)
    count = live.gaussians
    mask = torch.zeros(count, dtype=torch.bool)
    mask[: count // 2] = True
    document.apply(Remove(Target.of(Selection(mask), document.scene)))
    live.advance(1)
    until(lambda: live.paused and live.step == 2)
    assert live.gaussians == count - count // 2
    watched.live.resume()
    watched.join()
    assert live.finished


def test_a_waiting_edit_whose_gaussians_are_gone_is_refused(watch):
    watched = watch(steps=60)
    live, document = watched.live, watched.app.document
    until(lambda: live.paused)
    browser = WireBrowser(watched.app.port)
    until(lambda: browser.tabs() and watched.app.settled())
    mask = torch.zeros(live.gaussians, dtype=torch.bool)
    mask[:10] = True
    target = Target.of(Selection(mask), document.scene)
    document.change(waiting=(Remove(target),))
    live.advance(3)  # every Gaussian has moved by then
    until(lambda: live.paused and live.step == 4)
    until(lambda: browser.notes, "an explanation")
    assert document.state.edits == ()
    browser.close()


def test_taking_edits_keeps_values_and_moments_together(source, tmp_path):
    trainer = trained(source, tiny_config(tmp_path / "run", steps=10))
    document = Document(copied(trainer.scene()))
    old = {k: p.detach().clone() for k, p in trainer.mode.gaussian_params.items()}
    moments = {k: trainer.optimizer.state[p]["exp_avg"].clone() for k, p in trainer.mode.gaussian_params.items()}
    n = len(old["means"])
    mask = torch.arange(n) % 3 == 0
    document.apply(Remove(Target.of(Selection(mask), document.scene)))
    few = torch.arange(n - int(mask.sum())) < 5
    document.apply(Duplicate(Target.of(Selection(few), document.scene)))
    rows = document.scene.mode_state[ROWS] - 1
    take(trainer, document.scene)
    assert len(rows) == n - int(mask.sum()) + 5
    for name, parameter in trainer.mode.gaussian_params.items():
        assert torch.allclose(parameter.detach(), old[name][rows], atol=2e-5), name
        assert torch.equal(trainer.optimizer.state[parameter]["exp_avg"], moments[name][rows]), name
    trainer.step()  # and it goes on


def test_other_modes_say_that_they_cannot_take_edits(source, tmp_path):
    trainer = Trainer(source, tiny_config(tmp_path / "run", steps=2), progress=False)
    document = Document(copied(trainer.scene()))
    trainer.config.mode = "dynamic"
    with pytest.raises(FeaturesplatError, match="mode 'dynamic' cannot"):
        take(trainer, document.scene)


def test_train_and_watch_ends_with_the_finished_scene(source, tmp_path, capsys):
    config = tiny_config(tmp_path / "run", steps=6)
    app = train_and_watch(source, config, port=0, progress=False)
    try:
        assert "viewer   http://localhost:" in capsys.readouterr().out
        assert app.live is not None
        assert app.live.finished
        assert not app.document.busy()
        saved = Scene.load(tmp_path / "run")
        assert torch.allclose(app.document.scene.gaussians.means, saved.gaussians.means)
        browser = WireBrowser(app.port)
        until(lambda: browser.images and app.settled())
        assert "Finished" in browser.texts()
        browser.close()
    finally:
        app.stop()


def test_a_training_that_goes_on_to_another_mode_gets_its_panels(source, tmp_path, monkeypatch):
    config = tiny_config(tmp_path / "run", steps=4, mode="inverse")
    config.inverse.light_size, config.inverse.radiance_run = 32, 2.0
    original, browsers, first = Live.watch, [], []

    def look(live, trainer):
        original(live, trainer)
        if not browsers:
            browsers.append(WireBrowser(live._app.port))
            until(lambda: {"Training", "View", "Export"} <= set(browsers[0].tabs()))
            first.extend(browsers[0].tabs())
            assert (live.steps, live.finished) == (8, False)
        if trainer.config.mode == "static":
            assert not live.finished, "another training follows"

    monkeypatch.setattr(Live, "watch", look)
    app = train_and_watch(source, config, port=0, progress=False)
    try:
        assert app.folder == tmp_path / "run"
        assert app.live is not None
        assert (app.live.steps, app.live.finished) == (4, True)
        assert "Light" not in first
        until(lambda: {"Training", "View", "Light", "Material"} <= set(browsers[0].tabs()))
        assert len(browsers[0].tabs()) == len(set(browsers[0].tabs())), "the old ones are gone"
        assert not browsers[0].notes
        browsers[0].close()
    finally:
        app.stop()
