"""One browser, spoken to by its protocol: what it is shown, asked and told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import NAMES, ball, toy_scene
from wire import until

from featuresplat.viewer.markup import shortened, swatches
from featuresplat.viewer.panels.view import rounded

GREY_ENOUGH = 0.12


def settled(browser):
    """Everything that was asked for is done and shown."""
    until(lambda: browser.session.app.settled(), "the viewer to settle")
    return browser.image


def middle(image: np.ndarray, index: int) -> np.ndarray:
    """Mean colour where a ball's middle shows from the front; the ball is 25 pixels wide."""
    h, w = image.shape[:2]
    x = round(w / 2 + (index - 1) * w * 0.3105)
    return image[h // 2 - 3 : h // 2 + 4, x - 3 : x + 4].reshape(-1, 3).mean(0) / 255


def test_the_first_picture_shows_the_scene(browser):
    image = browser.image
    assert image.shape == (120, 160, 3)
    for i in range(3):
        assert middle(image, i).argmax() == i
    assert image[:10].mean() < 10  # nothing is there: the background


def test_all_panels_are_there(browser):
    assert browser.tabs() == ["View", "Cameras", "Ask", "Select", "Edit", "Export"]


def test_the_picture_follows_the_camera(browser):
    browser.move(position=(0.0, 0.0, 4.0))  # from behind, left and right change places
    until(lambda: middle(settled(browser), 0).argmax() == 2)
    assert middle(browser.image, 2).argmax() == 0


def test_nonsense_of_a_camera_is_no_picture_and_no_harm(browser):
    images = browser.images
    for fov in (float("nan"), -1.0, 7.0):
        browser.fov = fov
        browser.send_camera()
    browser.fov = 0.8
    browser.size = (100, 75)
    browser.send_camera()
    until(lambda: settled(browser).shape == (75, 100, 3))
    assert browser.images > images


def test_views_of_every_kind(browser):
    pictures = {"Colour": settled(browser).copy()}
    kinds = {"Depth": "depth", "Normals": "normals", "Opacity": "alpha", "Features": "features", "Objects": "instances"}
    for label, kind in kinds.items():
        browser.set("Show", label)
        until(lambda kind=kind: browser.session.look.kind == kind)
        pictures[label] = settled(browser).copy()
        assert browser.session.look.kind == kind
    flat = list(pictures.values())
    assert all(np.abs(a.astype(int) - b).max() > 40 for i, a in enumerate(flat) for b in flat[:i])
    assert (middle(pictures["Opacity"], 1) > 0.95).all()
    colors = [middle(pictures["Features"], i) for i in range(3)]
    assert min(np.abs(a - b).max() for i, a in enumerate(colors) for b in colors[:i]) > 0.3


def test_a_prompt_lights_up_its_object_and_nothing_else(browser):
    browser.set("Look for", "green ball")
    until(lambda: browser.session.look.kind == "relevancy")
    image = settled(browser)
    heat = [middle(image, i) for i in range(3)]
    assert heat[1].sum() > heat[0].sum() + 0.5
    assert heat[1].sum() > heat[2].sum() + 0.5
    assert "green ball: 120 Gaussians match" in browser.texts()
    browser.set("Own threshold", True)
    until(lambda: browser.session.state.threshold == 0.5)
    before = settled(browser).copy()
    browser.set("Threshold", 0.0)  # everything scores more than nothing: the line moves, live
    until(lambda: "green ball: 360 Gaussians match" in browser.texts())
    assert np.abs(settled(browser).astype(int) - before).max() > 60
    browser.set("Own threshold", False)
    until(lambda: browser.session.state.threshold is None)
    browser.press("Select what matches")
    until(lambda: browser.session.state.selected is not None)
    assert torch.equal(browser.session.state.selected, ball(1))


def test_several_prompts_have_their_colours(browser):
    browser.set("Look for", "red ball, blue ball")
    until(lambda: browser.session.look.kind == "relevancy")
    image = settled(browser)
    prompts = browser.session.state.prompts
    assert [p.text for p in prompts] == ["red ball", "blue ball"]
    for place, prompt in zip((0, 2), prompts, strict=True):
        seen, wanted = middle(image, place), np.array(prompt.color)
        assert seen @ wanted / np.linalg.norm(seen) / np.linalg.norm(wanted) > 0.97
    grey = middle(image, 1)
    assert grey.max() - grey.min() < GREY_ENOUGH
    browser.set("Heat map", "2: blue ball")
    until(lambda: browser.session.look.prompt == 1)
    heat = settled(browser)
    assert middle(heat, 2).sum() > middle(heat, 0).sum() + 0.5


def test_questions_are_remembered_but_not_what_was_typed_on_the_way(browser):
    for text in ("red", "red ball", "blue ball"):
        browser.set("Look for", text)
        until(lambda text=text: browser.control("Look for")["uuid"])
        settled_text(browser, text)
    assert "blue ball" in browser.session.history
    assert "red" not in browser.session.history


def settled_text(browser, text):
    """Typing has been dealt with: the prompt is set, or refused."""
    known = text in NAMES
    until(lambda: [p.text for p in browser.session.state.prompts] == [text] if known else browser.notes)
    settled(browser)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x" * 10_000, "at most 200 characters"),
        ("purple cow", "purple cow"),
        (", ".join("abcdefghijklmn"), "at most 12"),
    ],
)
def test_prompts_that_cannot_be_answered_are_explained(browser, text, words):
    browser.set("Look for", text)
    until(lambda: browser.said(words), words)
    settled(browser)
    assert browser.session.look.kind == "rgb"
    assert browser.session.state.prompts == ()


def test_an_empty_prompt_goes_back_to_colours(browser):
    browser.set("Look for", "red ball")
    until(lambda: browser.session.look.kind == "relevancy")
    browser.set("Look for", "   ")
    until(lambda: browser.session.look.kind == "rgb")
    assert browser.session.state.prompts == ()


def test_a_scene_without_fields_says_how_to_get_one(make_app, browse):
    app = make_app(toy_scene(field=False))
    browser = browse(app)
    assert "has no feature field" in browser.texts()
    browser.set("Look for", "red ball")
    until(lambda: browser.said("no feature field"))
    browser.set("Show", "Features")
    until(lambda: len([n for n in browser.notes if "no feature field" in n[0]]) == 2)
    settled(browser)
    assert browser.session.look.kind == "rgb"


def test_markup_is_shown_as_text(browser):
    nasty = "<img src=x onerror=alert(1)>"
    browser.session.document.change(field="", negatives=(nasty,))
    browser.session.document.select(ball(0))
    browser.session.document.keep(nasty)
    settled(browser)
    browser.set("Look for", nasty)
    until(lambda: browser.said("onerror"))
    settled(browser)
    assert "<img" not in browser.texts()


def test_long_names_and_prompts_leave_room_for_the_rest(browser):
    document, name = browser.session.document, "n" * 60
    document.select(ball(0))
    document.keep(name)
    settled(browser)
    assert name not in browser.labels()
    browser.set("n" * 21 + "...", False)
    until(lambda: not document.kept(name).visible)
    assert (shortened("abcdef", 6), shortened("abcdefg", 6)) == ("abcdef", "abc...")
    legend = swatches([((1.0, 0.0, 0.0), '"><script>')])
    assert "<script>" not in legend
    assert '"&quot;&gt;&lt;script&gt;"' in legend  # all of it under the mouse


def test_grow_shrink_invert_clear(browser):
    document = browser.session.document
    document.select(ball(1))
    settled(browser)
    browser.set("All of it", "Invert")
    until(lambda: torch.equal(document.state.selected, ~ball(1)))
    browser.set("All of it", "Clear")
    until(lambda: document.state.selected is None)
    some = ball(1)
    some[130:] = False
    document.select(some)
    settled(browser)
    browser.set("Border", "Grow")
    until(lambda: int(document.state.selected.sum()) > int(some.sum()))
    assert bool((document.state.selected | ~some).all())


def test_selections_are_outlined_kept_hidden_and_used(browser):
    document = browser.session.document
    plain = settled(browser).copy()
    document.select(ball(0))
    outlined = settled(browser).copy()
    changed = np.abs(outlined.astype(int) - plain).max(-1) > 60
    assert changed[:, :80].sum() > 40
    assert changed[:, 80:].sum() == 0
    browser.set("Name", "the red one")
    until(lambda: browser.session.look.extra.get("selection name") == "the red one")
    browser.press("Keep selection")
    until(lambda: [k.name for k in document.state.kept] == ["the red one"])
    browser.set("All of it", "Clear")
    until(lambda: document.state.selected is None)
    assert np.abs(settled(browser).astype(int) - plain).max() > 60  # still outlined, as it is kept
    browser.set("the red one", False)
    until(lambda: not document.state.kept[0].visible)
    assert np.array_equal(settled(browser), plain)
    document.select(document.kept("the red one").mask)
    assert torch.equal(document.state.selected, ball(0))


def test_crop_box_size_background_and_detail(browser):
    session, whole = browser.session, settled(browser).copy()
    session.show(background=(0.0, 0.0, 1.0))
    assert settled(browser)[0, 0, 2] > 240
    session.show(background=(0.0, 0.0, 0.0), crop=((-0.7, -1.0, -1.0), (0.7, 1.0, 1.0)))
    image = settled(browser)
    assert middle(image, 0).max() < 0.05
    assert middle(image, 1).argmax() == 1
    session.show(crop=None, size=0.05)
    assert settled(browser).mean() < 0.5 * whole.mean()
    session.show(size=1.0, detail=0.5)
    assert settled(browser).shape == (120, 160, 3)  # few pixels are never made fewer
    browser.size = (640, 480)
    browser.send_camera()
    until(lambda: settled(browser).shape == (240, 320, 3))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 3e5])
def test_the_crop_box_has_limits_that_can_be_read(scale):
    low, high = [-6.19005 * scale, -0.0031274 * scale, 1.23456 * scale], [6.18597 * scale, 0.0045 * scale, 2.2 * scale]
    lower, upper = rounded(low, high)
    for a, b, x, y in zip(low, high, lower, upper, strict=True):
        assert x <= a < b <= y
        assert y - x < 1.3 * (b - a)
        assert all(v == pytest.approx(float(f"{v:.3g}"), rel=1e-9) for v in (x, y))


def test_home_and_field_of_view(browser):
    browser.move(position=(3.0, -2.0, -3.0))
    settled(browser)
    browser.press("Home")
    home = browser.session.app.home
    until(lambda: np.allclose(browser.position, home.position, atol=1e-6))
    until(lambda: np.allclose(browser.look_at, home.look_at, atol=1e-6))
    browser.set("Field of view", 90)
    until(lambda: abs(browser.fov - np.pi / 2) < 1e-6)


@pytest.mark.parametrize("views", [0, 8])
def test_which_way_is_up_can_be_said(browse, make_app, views):
    browser = browse(make_app(toy_scene(views=views)))
    browser.set("Up", "+y")  # in these scenes y points down
    until(lambda: np.allclose(browser.up, (0.0, 1.0, 0.0)))
    home = browser.session.home
    until(lambda: np.allclose(browser.position, home.position, atol=1e-6))
    if views == 0:
        assert browser.session.app.home.position[1] < -0.5 < 0.5 < home.position[1]  # from above, either way
    else:
        assert np.array_equal(home.position, browser.session.app.home.position)
    browser.set("Up", "As photographed")
    until(lambda: np.allclose(browser.up, browser.session.app.home.up))


def test_fly_turns_on_the_spot_wherever_one_is_taken(browser):
    app = browser.session.app

    def reach() -> float:
        return float(np.linalg.norm(browser.look_at - browser.position))

    forward = (browser.look_at - browser.position) / reach()
    browser.set("Mouse", "Fly")
    until(lambda: reach() < 0.01 * app.extent)
    assert np.allclose((browser.look_at - browser.position) / reach(), forward, atol=1e-4)
    browser.press("Home")
    until(lambda: np.allclose(browser.position, app.home.position, atol=1e-6))
    until(lambda: reach() < 0.01 * app.extent)
    browser.set("Photograph", "view_5.png")
    until(lambda: np.allclose(browser.position, app.base_cameras.positions[5].numpy(), atol=1e-6))
    until(lambda: reach() < 0.01 * app.extent)
    browser.set("Mouse", "Orbit")
    until(lambda: reach() > 0.5 * app.extent)


def test_flying_to_a_photograph(browser):
    scene = browser.session.scene
    browser.set("Photograph", "view_5.png")
    until(lambda: np.allclose(browser.position, scene.cameras.positions[5].numpy(), atol=1e-6))
    settled(browser)
    browser.press("Fly there")
    until(lambda: browser.session.settled())
    pose = browser.session.pose()
    assert np.allclose(pose.camera().viewmats[0].numpy(), scene.cameras.viewmats[5].numpy(), atol=1e-5)


def test_the_cameras_are_drawn_and_can_be_clicked(browser):
    browser.set("Show cameras", True)
    until(lambda: len([n for n in browser.nodes if n.startswith("/cameras/")]) == 8)
    browser.send(
        "SceneNodeClickMessage", name="/cameras/6", instance_index=None, ray_origin=[0.0, 0.0, 0.0],
        ray_direction=[0.0, 0.0, 1.0], screen_pos=[0.5, 0.5], modifier=None,
        owner=browser.nodes["/cameras/6"]["owner"],
    )  # fmt: skip
    positions = browser.session.scene.cameras.positions
    until(lambda: np.allclose(browser.position, positions[6].numpy(), atol=1e-6))
    browser.set("Show cameras", False)
    until(lambda: not [n for n in browser.nodes if n.startswith("/cameras/")])


def test_playing_stops_by_itself_and_by_hand(browser):
    session, calls = browser.session, []
    session.play("count", lambda dt: calls.append(dt) or len(calls) < 3)
    until(lambda: not session.playing("count"))
    assert len(calls) == 3
    session.play("count", lambda dt: True)
    assert session.playing("count")
    session.play("count", None)
    assert not session.playing("count")


def test_splats_by_the_browser_while_moving_and_our_picture_when_still(make_app, browse):
    browser = browse(make_app(draw="splats"))
    assert browser.session.canvas.showing == "render"
    browser.move(position=(0.5, 0.0, -4.0))
    until(lambda: "/splats" in browser.nodes, "splats while moving")
    until(lambda: len(browser.nodes["/splats"].get("buffer", b"")) == 360 * 32)
    settled(browser)
    until(lambda: browser.session.canvas.showing == "render" and browser.nodes["/splats"]["visible"] is False)
    browser.session.show(draw="splats")
    until(lambda: browser.session.canvas.showing == "splats" and browser.nodes["/splats"]["visible"])
    browser.session.show(kind="depth")  # no colour per Gaussian: ours
    until(lambda: browser.session.canvas.showing == "render")


def test_splats_are_sent_anew_only_when_they_change(make_app, browse):
    browser = browse(make_app(draw="splats"))
    browser.session.show(draw="splats")
    until(lambda: browser.session.canvas.showing == "splats")
    settled(browser)
    sent = len([k for k in browser.seen if k.startswith("GaussianSplats")])
    for x in (0.1, 0.2, 0.3):
        browser.move(position=(x, 0.0, -4.0))
        settled(browser)
    assert len([k for k in browser.seen if k.startswith("GaussianSplats")]) == sent == 1
    before = browser.nodes["/splats"]["buffer"]
    browser.session.document.select(ball(0))
    until(lambda: browser.nodes["/splats"]["buffer"] != before, "tinted splats")
