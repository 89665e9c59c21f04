"""Materials that are changed: what a picture shows of them, under the scene's own light and another, and undo."""

from __future__ import annotations

from dataclasses import replace

import material_toy as toy
import numpy as np
import pytest
import torch

from featuresplat.modes.inverse import picture
from featuresplat.prompts.edit_files import edit_from_dict
from featuresplat.prompts.edits import Edited, Opacity, Recolor, Transform
from featuresplat.prompts.language import parse
from featuresplat.prompts.materials import MATERIALS, Material
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import Target
from featuresplat.scene import RenderRequest, Scene
from featuresplat.shading import cubemap, transfer
from featuresplat.types import SH_C0

RED, GREEN, BLUE = range(3)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return toy.scene()


def said(scene: Scene, sentence: str) -> Scene:
    # Not whole objects: three balls that float are no scene to cut into objects.
    return scene.edit([replace(p.edit, target=replace(p.edit.target, whole=False)) for p in parse(sentence, scene)])


def shown(scene: Scene, index: int, **how) -> torch.Tensor:
    rgb = scene.render(scene.cameras[2], **how).rgb
    assert rgb is not None
    return toy.patch(rgb[0], index)


def test_golden_is_the_metal_where_there_are_materials(scene):
    out = said(scene, "make the red ball golden")
    mask, state = toy.ball(RED), out.mode_state
    assert MATERIALS["gold"].color is not None
    torch.testing.assert_close(
        state["gaussian.base_color"][mask], torch.tensor(MATERIALS["gold"].color).expand(toy.EACH, 3)
    )
    assert (state["gaussian.metallic"][mask] == 1).all()
    assert (state["gaussian.progress"][mask] == 1).all()
    for name, value in scene.mode_state.items():
        if name.startswith("gaussian."):
            assert torch.equal(value[~mask], state[name][~mask])
    assert torch.equal(scene.gaussians.sh0[~mask], out.gaussians.sh0[~mask])


def test_the_picture_changes_where_the_thing_is_and_nowhere_else(scene):
    out = said(scene, "make the red ball golden")
    before, after = (shown(s, RED).mean((0, 1)) for s in (scene, out))
    assert before[0] > 2 * before[1]  # red
    assert 0.6 * after[0] < after[1] < after[0]  # gold reflects green nearly as well as red
    torch.testing.assert_close(shown(out, BLUE), shown(scene, BLUE), atol=0.02, rtol=0)


def test_it_shows_under_another_light(scene):
    light = np.full((16, 32, 3), 1.0, np.float32)
    out = said(scene, "make the red ball porcelain")
    linear = [shown(s, RED, light=light, linear=True).mean((0, 1)) for s in (scene, out)]
    assert linear[0][1] < 0.25 < 0.6 < linear[1][1] < 1.0


def test_a_rough_surface_has_no_highlight(scene):
    red = toy.ball(RED)

    def sharpest(s: Scene) -> float:
        image = picture(s, s.cameras[2], "specular", RenderRequest(linear=True))[0].mean(-1)
        return float(image[20:28, 14:32].diff(dim=1).abs().max())  # within the ball

    chrome = scene.edit(Material(target_of(red, scene), "chrome"))
    matte = chrome.edit(Material(target_of(red, scene), roughness=1.0))
    assert sharpest(matte) < 0.3 * sharpest(chrome)


def target_of(mask: torch.Tensor, scene: Scene) -> Target:
    return Target.of(Selection(mask), scene)


def test_the_radiance_follows_so_that_exports_show_it(scene):
    out = said(scene, "make the green ball chalk")
    mask = toy.ball(GREEN)
    colors = 0.5 + SH_C0 * out.gaussians.sh0[mask][:, 0]
    assert colors.std(1).mean() < 0.12  # white under a nearly white light
    assert (scene.gaussians.sh0[mask][:, 0].std(1) * SH_C0).mean() > 0.2
    splatted = out.splat(out.cameras[2], RenderRequest()).rgb
    assert splatted is not None
    physical = picture(out, out.cameras[2], "physical", RenderRequest())[0]
    torch.testing.assert_close(toy.patch(splatted[0], GREEN), toy.patch(physical, GREEN), atol=0.06, rtol=0)


def test_undo_and_redo_give_back_every_bit(scene):
    edited = Edited(scene)
    for sentence in ("make the red ball chrome", "make the green ball matte", "make the blue ball red plastic"):
        for plan in parse(sentence, edited.scene):
            edited.apply(plan.edit)
    last = edited.scene
    for _ in range(3):
        edited.undo()
    assert same(edited.scene, scene)
    for _ in range(3):
        edited.redo()
    assert same(edited.scene, last)
    assert not same(last, scene)


def same(a: Scene, b: Scene) -> bool:
    tensors = [{**s.gaussians.tensors(), **s.mode_state} for s in (a, b)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(v, tensors[1][k]) for k, v in tensors[0].items())


def test_edits_are_data(scene):
    edit = Material(Target(text="red ball"), "plastic", "red", roughness=0.5)
    values = edit.to_dict()
    assert values == {
        "kind": "material",
        "target": {"text": "red ball"},
        "material": "plastic",
        "color": "red",
        "roughness": 0.5,
    }
    assert edit_from_dict(values) == edit
    assert same(scene.edit(edit_from_dict(values)), scene.edit(edit))


def test_a_colour_can_keep_the_pattern(scene):
    red = toy.ball(RED)
    state = dict(scene.mode_state)
    base = state["gaussian.base_color"].clone()
    base[red] = base[red] * torch.linspace(0.2, 1, toy.EACH)[:, None]
    state["gaussian.base_color"] = base
    patterned = replace(scene, mode_state=state)
    plain, kept = (
        patterned.edit(Material(target_of(red, patterned), color="#808080", texture=t)).mode_state[
            "gaussian.base_color"
        ][red]
        for t in (0.0, 1.0)
    )
    assert plain.std() < 1e-6
    assert float(torch.corrcoef(torch.stack([kept[:, 0], base[red][:, 0]]))[0, 1]) > 0.999
    assert float(kept.mean()) == pytest.approx(float(plain.mean()), rel=0.05)


def test_recolouring_changes_the_base_colour_too(scene):
    out = scene.edit(Recolor(target_of(toy.ball(RED), scene), color="blue"))
    base = out.mode_state["gaussian.base_color"]
    assert (base[toy.ball(RED)][:, 2] > base[toy.ball(RED)][:, 0] + 0.05).all()
    assert torch.equal(base[~toy.ball(RED)], scene.mode_state["gaussian.base_color"][~toy.ball(RED)])


def test_what_is_turned_turns_its_normals(scene):
    half = 0.5**0.5
    out = scene.edit(Transform(target_of(toy.ball(RED), scene), rotate=(half, 0.0, 0.0, half)))  # 90 degrees about z
    before, after = (s.mode_state["gaussian.normal"][toy.ball(RED)] for s in (scene, out))
    torch.testing.assert_close(after, torch.stack([-before[:, 1], before[:, 0], before[:, 2]], 1), atol=1e-5, rtol=0)
    # What faced the lamp does not take its light along.
    sky = cubemap.shrink(scene.mode_state["light"], toy.SIZE // transfer.SIZE).reshape(-1, 3)
    direct = out.mode_state["gaussian.direct"][toy.ball(RED)]
    torch.testing.assert_close(direct, transfer.open_sky(after) @ sky, atol=1e-4, rtol=1e-4)
    assert (direct - scene.mode_state["gaussian.direct"][toy.ball(RED)]).abs().max() > 0.5


def test_guests_without_materials_are_not_black_under_another_light(scene):
    guest = Scene(scene.gaussians[toy.ball(GREEN)], scene.cameras)
    out = Scene.cat([scene, guest])
    assert len(out.gaussians) == 4 * toy.EACH
    base = out.mode_state["gaussian.base_color"][3 * toy.EACH :]
    assert base[:, 1].min() > 0.2
    assert (out.mode_state["gaussian.progress"][3 * toy.EACH :] == 0).all()
    assert out.render(out.cameras[1], light=np.ones((16, 32, 3), np.float32)).rgb is not None


def test_other_edits_leave_the_materials(scene):
    out = scene.edit(Opacity(target_of(toy.ball(RED), scene), factor=0.5))
    assert out.mode_state["gaussian.base_color"] is scene.mode_state["gaussian.base_color"]
