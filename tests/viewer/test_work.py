"""Clicking, editing and taking away, spoken to by the protocol."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_session import middle, settled
from toy import ball, toy_scene
from wire import until

from featuresplat.cli import main
from featuresplat.io.ply import read_ply
from featuresplat.prompts import spatial
from featuresplat.prompts.selection import Selection
from featuresplat.scene import Scene


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum()) / max(float((a | b).sum()), 1)


def selected(browser):
    until(lambda: browser.session.state.selected is not None, "a selection")
    settled(browser)
    return browser.session.state.selected


def use(browser, tool: str) -> None:
    browser.set("Tool", tool)
    until(lambda: browser.session.pointer.tool == tool.split(":")[0].lower())
    settled(browser)


def test_a_click_selects_the_object_under_it(browser):
    use(browser, "Point")
    browser.click(0.5, 0.5)
    assert iou(selected(browser), ball(1)) > 0.9
    browser.press("New object")
    until(lambda: not browser.session.pointer.points)


def test_a_scene_without_views_can_be_clicked(browse, make_app):
    """As a file of Gaussians is: nothing says from where it may be looked at."""
    browser = browse(make_app(toy_scene(field=False, views=0)))
    use(browser, "Point")
    browser.click(0.5, 0.5)
    assert iou(selected(browser), ball(1)) > 0.9
    browser.press("Find all objects")
    until(lambda: browser.said("none can be told apart"))
    assert browser.session.look.kind == "rgb"


def test_a_click_beside_everything_says_so(browser):
    use(browser, "Point")
    browser.click(0.5, 0.02)
    until(lambda: browser.notes)
    settled(browser)
    assert browser.session.state.selected is None
    for u in (float("nan"), float("inf")):
        browser.click(u, 0.5)
    until(lambda: len(browser.notes) >= 3)
    assert browser.session.state.selected is None


def test_a_box_selects_the_object_in_it(browser):
    """In a scene without a ground, of few Gaussians that reach far beyond their centres."""
    use(browser, "Box")
    for index, u in enumerate((0.19, 0.5, 0.81)):
        browser.session.document.select(None)
        settled(browser)
        browser.drag_box(u - 0.11, 0.36, u + 0.11, 0.64)
        assert iou(selected(browser), ball(index)) > 0.9


def test_a_box_is_handed_on_in_pixels_of_the_view(browser, monkeypatch):
    calls = []

    def select_points(scene, camera, points=(), labels=None, box=None, **options):
        calls.append((camera, box))
        return spatial.Prompted(Selection(ball(1)), ball(1).float(), torch.zeros(0, 3), lambda c: None)

    monkeypatch.setattr(spatial, "select_points", select_points)
    use(browser, "Box")
    browser.drag_box(0.6, 0.7, 0.4, 0.25)  # from the lower right to the upper left
    assert torch.equal(selected(browser), ball(1))
    camera, box = calls[0]
    assert camera.sizes == [(160, 120)]
    assert np.allclose(box, (64.0, 30.0, 96.0, 84.0))
    browser.drag_box(-3.0, 0.5, 2.0, 0.6)  # what reaches out of the window is cut
    until(lambda: len(calls) == 2)
    assert np.allclose(calls[1][1], (0.0, 60.0, 160.0, 72.0))


def test_a_prompt_that_finds_nothing_says_so(browser, monkeypatch):
    nothing = torch.zeros(360, dtype=torch.bool)
    found = spatial.Prompted(Selection(nothing), nothing.float(), torch.zeros(0, 3), lambda c: None)
    monkeypatch.setattr(spatial, "select_points", lambda *args, **options: found)
    use(browser, "Box")
    browser.drag_box(0.4, 0.4, 0.6, 0.6)
    until(lambda: browser.said("nothing was found there"))
    assert browser.session.state.selected is None


def test_prompts_add_to_the_selection_and_take_from_it(browser, monkeypatch):
    asked = []

    def select_points(scene, camera, points=(), labels=None, box=None, **options):
        asked.append((points, labels))
        return spatial.Prompted(Selection(ball(2)), ball(2).float(), torch.zeros(0, 3), lambda c: None)

    monkeypatch.setattr(spatial, "select_points", select_points)
    document = browser.session.document
    document.select(ball(0))
    browser.set("Prompts", "Add to it")
    use(browser, "Point")
    browser.click(0.5 + 0.3105, 0.5)
    until(lambda: torch.equal(document.state.selected, ball(0) | ball(2)))
    browser.click(0.5, 0.5, modifier="shift")  # the same object: not this
    until(lambda: len(asked) == 2)
    assert asked[1][1] == [1, 0]
    assert np.allclose(asked[1][0], [[0.8105 * 160, 60.0], [80.0, 60.0]], atol=1.0)
    browser.press("New object")
    until(lambda: not browser.session.pointer.points)
    browser.set("Prompts", "Take from it")
    until(lambda: browser.session.pointer.how == "subtract")
    browser.click(0.5 + 0.3105, 0.5)
    until(lambda: torch.equal(document.state.selected, ball(0)))


def test_the_brush_paints_what_shows(browser):
    pointer = browser.session.pointer
    use(browser, "Brush")
    assert "/brush" in browser.nodes
    pointer.radius = 0.08
    pointer.brush([(0.48, 0.5), (0.52, 0.5)])
    mask = selected(browser)
    assert 5 < int(mask.sum()) < 120
    assert not bool((mask & ~ball(1)).any())
    front = browser.session.scene.gaussians.means[mask][:, 2]
    assert float(front.max()) < 0.15  # nothing of the far side
    use(browser, "Off: the mouse moves the view")
    until(lambda: "/brush" not in browser.nodes)


def test_remove_undo_redo(browser):
    document = browser.session.document
    before = settled(browser).copy()
    original = document.scene
    document.select(ball(1))
    settled(browser)
    browser.press("Remove")
    until(lambda: len(document.scene.gaussians) == 240)
    gone = settled(browser).copy()
    assert middle(gone, 1).max() < 0.1
    assert middle(gone, 0).argmax() == 0
    assert "1. " in browser.texts()
    browser.set("History", "Undo")
    until(lambda: document.scene is original)
    document.select(None)
    assert np.array_equal(settled(browser), before)
    browser.set("History", "Redo")
    until(lambda: len(document.scene.gaussians) == 240)
    assert np.array_equal(settled(browser), gone)
    browser.set("History", "Redo")
    until(lambda: len(browser.notes) == 1)  # there is nothing left to redo


def test_kept_selections_follow_their_gaussians(browser):
    document = browser.session.document
    document.select(ball(2))
    document.keep("blue")
    document.select(ball(0))
    settled(browser)
    browser.press("Remove")
    until(lambda: len(document.scene.gaussians) == 240)
    means = document.scene.gaussians.means[document.kept("blue").mask]
    assert len(means) == 120
    assert float(means[:, 0].min()) > 0.9
    assert document.state.selected is None
    browser.set("History", "Undo")
    until(lambda: len(document.scene.gaussians) == 360)
    assert torch.equal(document.kept("blue").mask, ball(2))
    assert torch.equal(document.state.selected, ball(0))


def test_keep_only_and_duplicate(browser):
    document = browser.session.document
    document.select(ball(1))
    settled(browser)
    browser.press("Duplicate")
    until(lambda: len(document.scene.gaussians) == 480)
    assert int(document.state.selected.sum()) == 120  # the copy, ready to be moved
    assert bool(document.state.selected[360:].all())
    browser.press("Keep only this")
    until(lambda: len(document.scene.gaussians) == 120)


def test_recolour_and_opacity(browser):
    document = browser.session.document
    document.select(ball(0))
    settled(browser)
    browser.set("Colour", [0, 0, 255])
    until(lambda: browser.session.look.extra.get("color") == (0.0, 0.0, 1.0))
    browser.press("Give it this colour")
    until(lambda: len(document.state.edits) == 1)
    browser.session.show(outlines=False)
    assert middle(settled(browser), 0).argmax() == 2
    browser.set("Opacity times", 0.0)
    until(lambda: browser.session.look.extra.get("fade") == 0.0)
    browser.press("Change the opacity")
    until(lambda: len(document.state.edits) == 2)
    assert middle(settled(browser), 0).max() < 0.1


def test_the_gizmo_moves_the_selection(browser):
    document, gizmo = browser.session.document, browser.session.pointer.gizmo
    document.select(ball(1))
    settled(browser)
    browser.set("Move and turn", True)
    until(lambda: "/gizmo" in browser.nodes)
    pose = {"name": "/gizmo", "owner": browser.nodes["/gizmo"]["owner"]}
    start = np.array(gizmo._center)
    moved = (start + [0.0, 1.0, 0.0]).tolist()
    before = document.state
    browser.send("TransformControlsDragStartMessage", **pose)
    browser.send("TransformControlsUpdateMessage", **pose, wxyz=[1.0, 0.0, 0.0, 0.0], position=moved)
    until(lambda: browser.session.shown_scene(before) is not before.scene, "a preview")
    assert document.state.edits == ()
    browser.send("TransformControlsDragEndMessage", **pose)
    until(lambda: len(document.state.edits) == 1)
    settled(browser)
    shift = document.scene.gaussians.means[ball(1)] - before.scene.gaussians.means[ball(1)]
    assert torch.allclose(shift, torch.tensor([0.0, 1.0, 0.0]).expand_as(shift), atol=1e-4)
    browser.set("Move and turn", False)
    until(lambda: "/gizmo" not in browser.nodes)


def test_an_edit_without_a_selection_is_explained(browser):
    browser.press("Remove")
    until(lambda: browser.said("nothing is selected"))
    browser.set("History", "Undo")
    until(lambda: len(browser.notes) == 2)
    settled(browser)
    assert len(browser.session.scene.gaussians) == 360


def test_in_plain_words(browser):
    browser.set("Say it", "remove the red ball and make the green ball blue")
    until(lambda: "Understood" in browser.texts())
    browser.press("Do it")
    until(lambda: len(browser.session.state.edits) == 2)
    settled(browser)
    assert len(browser.session.scene.gaussians) == 240
    assert middle(browser.image, 1).argmax() == 2


def test_edit_lists_are_saved_and_done_again(browser, tmp_path):
    document = browser.session.document
    document.select(ball(1))
    settled(browser)
    browser.press("Remove")
    until(lambda: len(document.scene.gaussians) == 240)
    kept = document.scene.gaussians.means.clone()
    browser.session.look.extra["edit file"] = "mine"
    buttons = next(p for p in browser.gui.values() if p.get("options") == ["Save list", "Load list"])
    uuid = next(u for u, p in browser.gui.items() if p is buttons)
    browser.send("GuiUpdateMessage", uuid=uuid, updates={"value": "Save list"})
    path = tmp_path / "run" / "exports" / "mine.yaml"
    until(path.is_file)
    browser.set("History", "Undo")
    until(lambda: len(document.scene.gaussians) == 360)
    browser.send("GuiUpdateMessage", uuid=uuid, updates={"value": "Load list"})
    until(lambda: len(document.scene.gaussians) == 240)
    assert torch.equal(document.scene.gaussians.means, kept)
    toy_scene().save(tmp_path / "saved")
    assert main(["edit", str(tmp_path / "saved"), str(path), "--out", str(tmp_path / "edited")]) == 0
    assert torch.allclose(Scene.load(tmp_path / "edited").gaussians.means, kept)


def test_export_of_the_selection(browser, tmp_path):
    browser.session.document.select(ball(2))
    settled(browser)
    browser.press("Export the selection")
    until(lambda: browser.downloads, "a download")
    path = tmp_path / "run" / "exports" / "scene.ply"
    read = read_ply(path)
    assert torch.allclose(read.gaussians.means, browser.session.scene.gaussians.means[ball(2)])
    assert read.features is not None
    assert read.features.shape == (120, 3)
    assert browser.downloads["scene.ply"] == path.read_bytes()
    browser.set("Plain", True)
    until(lambda: browser.session.look.extra.get("plain"))
    browser.press("Export everything")
    until(lambda: "scene_2.ply" in browser.downloads)  # never over what is there
    again = read_ply(tmp_path / "run" / "exports" / "scene_2.ply")
    assert len(again.gaussians) == 360
    assert again.features is None


@pytest.mark.parametrize("name", ["../../evil", "a/b", "a\\b", ".hidden", "", "x" * 200, "a\nb", "C:evil"])
def test_file_names_stay_in_their_folder(browser, tmp_path, name):
    browser.session.look.extra["export name"] = name
    browser.press("Export everything")
    until(lambda: browser.said("file name"))
    settled(browser)
    assert not list(tmp_path.rglob("*evil*"))
    assert not browser.downloads


def test_the_view_as_png(browser):
    shown = settled(browser)
    browser.press("This view as PNG")
    until(lambda: browser.downloads)
    image = np.asarray(Image.open(io.BytesIO(browser.downloads["scene.png"])))
    assert image.shape == shown.shape
    assert np.abs(image.astype(int) - shown).mean() < 3  # what was shown came as JPEG


def test_masks_of_all_views(browser):
    browser.session.document.select(ball(1))
    settled(browser)
    browser.press("Masks of all views")
    until(lambda: browser.downloads)
    archive = zipfile.ZipFile(io.BytesIO(browser.downloads["scene.masks.zip"]))
    assert sorted(archive.namelist()) == [f"view_{i}.png" for i in range(8)]
    mask = np.asarray(Image.open(io.BytesIO(archive.read("view_3.png"))))
    assert mask.shape == (120, 160)
    assert set(np.unique(mask)) == {0, 255}
    assert mask[60, 80] == 255
    assert 300 < (mask > 0).sum() < 1500


def test_a_film_along_key_frames(browser, tmp_path):
    for x in (-1.0, 0.0, 1.0):
        browser.move(position=(x, 0.0, -4.0))
        until(lambda x=x: abs(browser.session.pose().position[0] - x) < 1e-9)
        browser.press("Add key frame")
        until(lambda x=x: len(browser.session.keys) == round(x) + 2)
    browser.press("Take the last away")
    until(lambda: len(browser.session.keys) == 2)
    browser.set("Seconds", 0.2)
    until(lambda: browser.session.look.extra.get("film seconds") == 0.2)
    browser.press("Fly along")
    until(lambda: abs(browser.position[0]) < 1e-6 and not browser.session.playing("path"))
    browser.press("Save as mp4")
    until(lambda: browser.downloads)
    assert len(next(iter(browser.downloads.values()))) > 1000


def test_a_page_that_stands_by_itself(browser, tmp_path):
    browser.session.document.select(ball(0))
    browser.press("Page that stands by itself")
    until(lambda: browser.downloads, "the page")
    page = browser.downloads["scene.html"].decode()
    assert page.lstrip().lower().startswith("<!doctype html")
    assert "__VISER_EMBED_DATA__" in page
    assert str(tmp_path) not in page
