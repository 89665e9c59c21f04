"""Several browsers, browsers that leave, browsers that talk nonsense, and the end of the server."""

from __future__ import annotations

import gc
import socket
import threading
import weakref

import msgspec
import numpy as np
import pytest
import torch
from test_session import middle, settled
from toy import ball, toy_scene
from wire import PATIENCE, WireBrowser, until

from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.edits import Remove
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.viewer import open_scene, start, view
from featuresplat.viewer.document import Document
from featuresplat.viewer.insight import Insight


def test_two_browsers_share_the_scene_but_not_the_view(app, browse):
    one, two = browse(), browse(size=(80, 60))
    two.set("Show", "Depth")
    until(lambda: two.session.look.kind == "depth")
    assert one.session.look.kind == "rgb"
    one.move(position=(1.0, 0.0, -4.0))
    settled(one)
    assert one.session.pose().position != two.session.pose().position
    assert two.image.shape == (60, 80, 3)
    before = settled(two).copy()
    app.document.select(ball(1))
    settled(one)
    one.press("Remove")
    until(lambda: len(app.document.scene.gaussians) == 240)
    until(lambda: np.abs(settled(two).astype(int) - before).max() > 60)  # both see it gone
    until(lambda: "1 edit" in one.texts() and "1 edit" in two.texts())


def test_one_that_leaves_hurts_nobody(app, browse):
    one, two = browse(), browse()
    two.session.play("spin", lambda dt: True)
    two.close()
    until(lambda: len(app.sessions) == 1)
    one.set("Show", "Depth")
    until(lambda: one.session.look.kind == "depth")
    settled(one)
    assert two.session.closed
    until(lambda: not two.session._thread.is_alive())
    until(lambda: not any(t.name == "play spin" and t.is_alive() for t in threading.enumerate()))


def test_one_whose_line_breaks_hurts_nobody_and_finds_its_look_again(app, browse):
    storage: dict[str, str] = {}
    one, two = browse(storage=storage), browse()
    one.set("Show", "Normals")
    until(lambda: one.session.look.kind == "normals")
    one.drop()
    until(lambda: len(app.sessions) == 1)
    settled(two)
    again = browse(storage=storage)
    assert again.session is not one.session
    assert again.session.look.kind == "normals"
    other = browse()
    assert other.session.look.kind == "rgb"


def test_one_that_never_answers_is_not_waited_for_by_others(app, browse):
    deaf = browse(acknowledge=False)
    until(lambda: len(app.sessions) == 1)
    one = browse()
    for kind in ("Depth", "Opacity", "Colour"):
        one.set("Show", kind)
    until(lambda: one.session.look.kind == "rgb" and one.session.settled())
    assert middle(one.image, 0).argmax() == 0
    deaf.close()


NONSENSE = [
    b"",
    b"\x00\xff\x13",
    msgspec.msgpack.encode({"type": "NoSuchMessage"}),
    msgspec.msgpack.encode([1, 2, 3]),
    msgspec.msgpack.encode({"type": "ViewerCameraMessage"}),
    msgspec.msgpack.encode({"type": "GuiUpdateMessage", "uuid": "none", "updates": {"value": 1}}),
    msgspec.msgpack.encode({"type": "RunJavascriptMessage", "source": "alert(1)"}),
]


@pytest.mark.parametrize("payload", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_hurts_nobody(app, browse, payload):
    one, two = browse(), browse()
    two.socket.send(payload)
    one.set("Show", "Depth")
    until(lambda: one.session.look.kind == "depth")
    settled(one)
    two.close()
    until(lambda: len(app.sessions) == 1)
    three = browse()
    assert middle(three.image, 1).argmax() == 1


def test_values_of_the_wrong_kind_hurt_nobody(browser):
    for label, value in (("Show", "No such view"), ("Show", 7), ("Field of view", "wide"), ("Selections", [1, 2])):
        uuid = browser.control(label)["uuid"]
        browser.send("GuiUpdateMessage", uuid=uuid, updates={"value": value})
        browser.send("GuiUpdateMessage", uuid=uuid, updates={"no_such_property": value})
    browser.set("Show", "Depth")
    until(lambda: browser.session.look.kind == "depth")
    settled(browser)


def test_uploads_and_tunnels_are_off(app, browser):
    uuid = browser.control("Detail")["uuid"]
    browser.send(
        "FileTransferStartUpload", source_component_uuid=uuid, transfer_uuid="t", filename="f", mime_type="m",
        part_count=2, size_bytes=10,
    )  # fmt: skip
    browser.send("FileTransferPart", source_component_uuid=uuid, transfer_uuid="t", part_index=0, content=b"x" * 5)
    browser.send("ShareUrlRequest")
    browser.set("Show", "Depth")
    until(lambda: browser.session.look.kind == "depth")
    settled(browser)
    assert "FileTransferPartAck" not in browser.seen
    assert app.server._share_tunnel is None
    assert not app.server.gui._current_file_upload_states
    assert not browser.session.client.gui._current_file_upload_states


def test_many_at_once_change_things_without_a_race(app, browse):
    browsers = [browse(size=(60, 45)) for _ in range(3)]
    document, errors = app.document, []

    def work(index: int) -> None:
        try:
            for k in range(40):
                document.select(ball(k % 3), ("replace", "add", "subtract")[k % 3])
                document.ask([("red ball", "green ball", "blue ball")[(index + k) % 3]])
                browsers[index].move(position=(0.01 * k, 0.0, -4.0))
                if document.state.selected is not None:
                    document.keep(f"{index}")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[i]) for i in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(PATIENCE)
    assert errors == []
    for browser in browsers:
        settled(browser)
    state = document.state
    assert sorted(k.name for k in state.kept) == ["0", "1", "2"]
    assert len(state.prompts) == 1
    assert all(len(k.mask) == 360 for k in state.kept)


def test_answers_about_a_scene_that_is_gone_are_let_go():
    document = Document(toy_scene())
    insight = Insight(document)
    document.ask(["red ball"])
    assert insight.scores(document.state) is not None
    insight.instances(document.scene)
    document.select(ball(0))
    document.apply(Remove(Target.of(Selection(ball(0)), document.scene)))
    insight.scores(document.state)
    document.undo()
    assert insight.known_question(document.state)  # back at the first scene, whose answers are still there
    gone = weakref.ref(document.scene.gaussians.means)
    document.replace_base(toy_scene())
    assert not insight.known_question(document.state)
    gc.collect()
    assert gone() is None


def test_the_end_is_clean(make_app, browse):
    app = make_app()
    browser = browse(app)
    session = browser.session
    app.stop()
    app.stop()  # twice is once
    browser._thread.join(PATIENCE)
    assert not browser._thread.is_alive()
    until(lambda: not session._thread.is_alive() and not session.canvas.stream.thread.is_alive())
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", app.port), timeout=PATIENCE)


def test_view_of_a_run_a_file_and_a_scene(scene, tmp_path, capsys):
    scene.save(tmp_path / "run")
    loaded, folder = open_scene(tmp_path / "run")
    assert len(loaded.gaussians) == 360
    assert folder == tmp_path / "run"
    app = view(scene, block=False, port=0)
    assert "viewer   http://localhost:" in capsys.readouterr().out
    app.stop()
    app, lines = start(tmp_path / "run" / "gaussians.ply", port=0)
    browser = WireBrowser(app.port)
    until(lambda: browser.images and app.settled())
    assert browser.image.max() > 100  # no cameras, no split, and still a picture
    browser.close()
    app.stop()
    assert lines[0].startswith("viewer")


def test_a_taken_port_is_passed_by(scene):
    first, _ = start(scene, port=0)
    second, lines = start(scene, port=first.port)
    assert second.port > first.port
    assert str(second.port) in lines[0]
    second.stop()
    first.stop()


def test_what_cannot_be_shown(tmp_path, scene):
    with pytest.raises(FeaturesplatError, match="no such run"):
        start(tmp_path / "nowhere", port=0)
    scene.save(tmp_path / "run")
    (tmp_path / "run" / "gaussians.ply").write_bytes(b"ply\nnonsense")
    with pytest.raises(FeaturesplatError):
        start(tmp_path / "run", port=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeaturesplatError):
        start(tmp_path / "empty", port=0)


def test_scenes_that_are_hardly_there(make_app, browse, scene):
    for rows in (slice(0, 0), slice(0, 1)):
        browser = browse(make_app(scene.rows(rows)))
        settled(browser)
        browser.set("Show", "Depth")
        until(lambda browser=browser: browser.session.look.kind == "depth")
        settled(browser)
    bad = scene.rows(slice(0, 360))
    bad.gaussians.means[5] = torch.nan
    browser = browse(make_app(bad, draw="splats"))
    browser.session.show(draw="splats")
    until(lambda: "/splats" in browser.nodes)
    assert len(browser.nodes["/splats"]["buffer"]) == 359 * 32
