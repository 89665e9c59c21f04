"""The radiance field behind a scene of materials: what it shows, what edits leave of it, how progress settles."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import material_toy as toy
import pytest
import torch

from featuresplat.modes import _inverse_radiance as radiance
from featuresplat.modes.inverse import picture
from featuresplat.prompts.edits import Edit, Opacity, Recolor, Remove, Transform
from featuresplat.prompts.materials import Material
from featuresplat.prompts.targets import Target
from featuresplat.scene import RenderRequest, Scene
from featuresplat.types import SH_C0, Gaussians

RED, GREEN, BLUE = range(3)
WHITE = (1.0, 1.0, 1.0)


def field_like(scene: Scene) -> Gaussians:
    """Two Gaussians in place of one of each surfel, in cyan, a bit off: not to be mistaken for the surfels."""
    g = scene.gaussians
    sh0 = ((torch.tensor([0.1, 0.8, 0.8]) - 0.5) / SH_C0).expand(len(g), 1, 3)
    away = replace(g, sh0=sh0.clone(), means=g.means + 0.002)
    return Gaussians.cat([away, replace(away, means=g.means - 0.002)])


@pytest.fixture(scope="module")
def scene() -> Scene:
    plain = toy.scene()
    state = {**plain.mode_state, "gaussian.progress": torch.zeros(len(plain.gaussians), 1)}
    return radiance.attached(replace(plain, mode_state=state), field_like(plain), None)


def edited(scene: Scene, kind: type[Edit], **values) -> Scene:
    return kind(target=Target(text="red ball", whole=False), **values).apply(scene)


def shown(scene: Scene, index: int) -> torch.Tensor:
    rgb = scene.render(scene.cameras[2]).rgb
    assert rgb is not None
    return toy.patch(rgb[0], index).mean((0, 1))


def cyan(color: torch.Tensor) -> bool:
    return bool((color - torch.tensor([0.1, 0.8, 0.8])).abs().max() < 0.05)


def test_seals_tell_gaussians_apart_by_a_bit(scene, tmp_path):
    g = scene.gaussians
    seals = radiance.seals(g)
    assert len(seals.unique()) == len(g)
    assert radiance.seals(g[:0]).shape == (0,)
    for name, value in g.tensors().items():
        changed = value.clone()
        changed[5].view(-1)[-1] = torch.nextafter(changed[5].view(-1)[-1], torch.tensor(9.0))
        now = radiance.seals(replace(g, **{name: changed}))
        assert (now != seals).nonzero().tolist() == [[5]], name
    wider = replace(g, shN=torch.cat([g.shN, torch.zeros(len(g), 7, 3)], 1))  # as joined to a scene of higher degree
    assert torch.equal(radiance.seals(wider), seals)
    scene.save(tmp_path / "run")
    back = Scene.load(tmp_path / "run")
    assert torch.equal(radiance.seals(back.gaussians), back.mode_state["radiance.seals"])


def test_it_shows_the_field_where_there_is_no_progress(scene):
    field, whole = radiance.field_of(scene)
    assert whole is None
    assert len(field) == 2 * len(scene.gaussians)
    assert all(cyan(shown(scene, k)) for k in range(3))
    plain = Scene(field_like(scene), scene.cameras, info=scene.info).render(scene.cameras[2]).rgb
    torch.testing.assert_close(scene.render(scene.cameras[2]).rgb, plain, atol=1e-5, rtol=0)
    under = scene.render(scene.cameras[2], backgrounds=torch.tensor(WHITE)).rgb
    assert under is not None
    assert torch.allclose(under[0, 0, 0], torch.tensor(WHITE), atol=1e-3)


def test_its_picture_is_over_black(scene):
    white = {**scene.mode_state, "radiance.background": torch.tensor(WHITE)}
    over_white = replace(scene, mode_state=white)
    found, same = (picture(s, s.cameras[2], "radiance", RenderRequest())[0] for s in (scene, over_white))
    assert torch.equal(found, same)
    assert float(found[0, 0].max()) < 1e-3
    rgb = over_white.render(over_white.cameras[2]).rgb
    assert rgb is not None
    assert torch.allclose(rgb[0, 0, 0], torch.tensor(WHITE), atol=1e-3)


def test_another_light_does_not_know_it(scene):
    bare = {k: v for k, v in scene.mode_state.items() if not k.startswith("radiance.")}
    light = torch.full((6, toy.SIZE, toy.SIZE, 3), 0.6).numpy()
    with_field, without = (s.render(s.cameras[2], light=light).rgb for s in (scene, replace(scene, mode_state=bare)))
    assert torch.equal(with_field, without)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Recolor, {"color": "blue"}),
        (Transform, {"translate": (0.0, 0.0, 0.05)}),
        (Material, {"material": "gold"}),
        (Opacity, {"factor": 0.999}),
    ],
)
def test_what_is_edited_speaks_for_itself(scene, kind, values):
    out = edited(scene, kind, **values)
    found = radiance.field_of(out)
    assert found is not None
    field, whole = found
    assert whole is not None
    assert len(field) == 4 * toy.EACH + toy.EACH
    assert not cyan(shown(out, RED))
    assert cyan(shown(out, BLUE))


def test_what_is_removed_is_gone(scene):
    out = edited(scene, Remove)
    field, _ = radiance.field_of(out)
    assert len(field) == 4 * toy.EACH
    sky = scene.render(scene.cameras[2], light=scene.mode_state["light"].numpy()).rgb
    assert sky is not None
    gone = shown(out, RED)
    assert not cyan(gone)
    assert gone.min() > 0.3  # the sky, as behind surfels; not the black that the field was trained over
    assert cyan(shown(out, GREEN))


def test_it_comes_back_from_disk_and_goes_with_rows(scene, tmp_path):
    edited(scene, Remove).save(tmp_path / "run")
    back = Scene.load(tmp_path / "run")
    assert len(radiance.field_of(back)[0]) == 4 * toy.EACH
    assert len(radiance.field_of(scene.rows(toy.ball(GREEN)))[0]) == 2 * toy.EACH


def test_progress_settles_where_the_mixture_fits(tmp_path):
    """The photographs: the physical model on the red ball, the field on the green, half of each on the blue one."""
    plain = toy.scene()
    shares = torch.tensor([1.0, 0.0, 0.5]).repeat_interleave(toy.EACH)[:, None]
    field = field_like(plain)
    truth = radiance.attached(replace(plain, mode_state={**plain.mode_state, "gaussian.progress": shares}), field, None)
    images = [(truth.render(c).rgb[0].clamp(0, 1) * 255).round().byte() for c in (truth.cameras[i] for i in range(4))]
    dataset = SimpleNamespace(train=[0, 1, 3], image=lambda i: images[i], mask=lambda i: None)
    Scene(field, plain.cameras, info=plain.info).save(tmp_path / "start")
    plain.config.inverse.start = tmp_path / "start"
    out = radiance.settled(plain, dataset)
    found = out.mode_state["gaussian.progress"][:, 0]
    seen = plain.gaussians.means[:, 1] < -0.2  # from the cameras' side
    for index, share in ((RED, 1.0), (GREEN, 0.0), (BLUE, 0.5)):
        assert float((found[toy.ball(index) & seen] - share).abs().mean()) < 0.05
    assert len(radiance.field_of(out)[0]) == len(field)


def test_exposures_of_the_run_go_along(tmp_path):
    """Photographs that are half as bright as the field says: by the run's exposures, not by the physical model."""
    plain = toy.scene()
    field = field_like(plain)
    names = plain.names("train")
    delta = torch.cat([-0.5 * torch.eye(3), torch.zeros(3, 1)], 1).repeat(len(names), 1, 1)
    start = Scene(field, plain.cameras, info=plain.info, mode_state={"exposure.delta": delta})
    start.save(tmp_path / "start")
    images = [(start.render(c, exposure=True).rgb[0].clamp(0, 1) * 255).round().byte() for c in
              (plain.cameras[i] for i in range(4))]  # fmt: skip
    dataset = SimpleNamespace(train=[0, 1, 3], image=lambda i: images[i], mask=lambda i: None)
    plain.config.inverse.start = tmp_path / "start"
    out = radiance.settled(plain, dataset)
    assert torch.equal(out.mode_state["exposure.delta"], delta)
    seen = plain.gaussians.means[:, 1] < -0.2
    assert float(out.mode_state["gaussian.progress"][seen].mean()) < 0.02
    shown = out.render(out.cameras[2], exposure=True).rgb
    assert shown is not None
    inside = toy.patch(shown[0], RED).mean((0, 1))
    torch.testing.assert_close(inside, torch.tensor([0.05, 0.4, 0.4]), atol=0.03, rtol=0)


def test_without_a_run_to_start_from_nothing_settles():
    plain = toy.scene()
    assert radiance.settled(plain, SimpleNamespace()) is plain
    assert radiance.field_of(plain) is None
