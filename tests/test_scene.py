"""A trained scene: kept on disk, read back, rendered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from featuresplat.config import TrainConfig
from featuresplat.decoders import LinearDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.exposure import predict, transform
from featuresplat.io.ply import read_ply
from featuresplat.scene import Scene
from featuresplat.trainer import train
from featuresplat.types import Cameras, FeatureField

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A short run of the demo scene with exposures."""
    out = tmp_path_factory.mktemp("scene") / "run"
    config = TrainConfig(out=out, steps=60, device="cpu", report=False, eval_views=0)
    config.data.downscale, config.model.budget, config.model.sh_degree = 4, 1500, 1
    config.exposure.enabled, config.exposure.lr = True, 1e-2
    train(DEMO, config, progress=False)
    return out


@pytest.fixture
def scene(folder) -> Scene:
    return Scene.load(folder)


def test_saved_and_loaded_renders_the_same_to_the_bit(scene, tmp_path):
    g = torch.Generator().manual_seed(0)
    fields = {
        name: FeatureField(torch.randn(len(scene.gaussians), d, generator=g), name) for name, d in (("a", 3), ("b", 5))
    }
    rich = replace(scene, fields=fields)
    assert rich.save(tmp_path / "copy") == tmp_path / "copy/scene.json"
    again = Scene.load(tmp_path / "copy")
    for name in (None, "a", "b"):
        one, two = (s.render(scene.cameras[[0, 7]], features=name) for s in (rich, again))
        for what in ("rgb", "alpha", "depth", "features"):
            x, y = getattr(one, what), getattr(two, what)
            assert x is y is None or torch.equal(x, y)  # pyright: ignore[reportArgumentType]
        if name:
            assert one.features is not None
            assert one.features.shape[-1] == fields[name].dim
    assert again.info == scene.info
    assert again.config == scene.config
    assert again.units == scene.units
    assert again.cameras.names == scene.cameras.names
    assert torch.equal(again.mode_state["exposure.delta"], scene.mode_state["exposure.delta"])


def test_the_split_is_kept(scene):
    held = (DEMO / "test.txt").read_text().split()
    assert scene.names("test") == held
    assert len(scene.names("train")) == 40 - len(held)
    assert set(scene.names("train")).isdisjoint(held)
    assert list(scene.part("test").names) == held
    assert len(scene.mode_state["exposure.delta"]) == len(scene.names("train"))
    assert Path(scene.info["source"]) == DEMO.resolve()


def test_ply_lies_in_the_datas_frame(folder, scene):
    """The demo's table is at z = 0, objects on it; the training frame is centred on the cameras, a metre above."""
    means = read_ply(folder / "gaussians.ply").gaussians.means
    assert torch.equal(means, scene.gaussians.means)
    assert -0.15 < float(means[:, 2].median()) < 0.6
    assert scene.units["center"][2] > 0.5
    assert scene.units["scale"] != 1.0


def test_exposure_own_of_a_training_view_predicted_of_another(scene):
    names, train_views = scene.names("train"), scene.part("train")
    delta = scene.mode_state["exposure.delta"]
    assert float(delta.abs().max()) > 1e-3
    known = scene.part("train")[4]
    plain, shown = scene.render(known).rgb, scene.render(known, exposure=True).rgb
    assert plain is not None
    assert shown is not None
    assert known.names[0] == names[4]
    assert torch.equal(shown[0], transform(plain[0], delta[4]))
    held = scene.part("test")[0]
    plain, shown = scene.render(held).rgb, scene.render(held, exposure=True).rgb
    assert plain is not None
    assert shown is not None
    assert torch.equal(shown[0], transform(plain[0], predict(delta, train_views, held)))


def test_render_any_size_and_background(scene):
    view = scene.cameras[3]
    small = view.resized([21], [17])
    out = scene.render(small)
    assert out.rgb is not None
    assert out.rgb.shape == (1, 17, 21, 3)
    assert not out.rgb.requires_grad
    white, black = (scene.render(view, backgrounds=torch.full((3,), v)) for v in (1.0, 0.0))
    assert white.rgb is not None
    assert black.rgb is not None
    torch.testing.assert_close(white.rgb - black.rgb, (1 - black.alpha).expand_as(black.rgb), atol=1e-5, rtol=0)


def test_a_scenes_own_background_is_taken(scene):
    view = scene.cameras[3]
    gray = replace(scene, info={**scene.info, "background": [0.5, 0.5, 0.5]})
    own, asked = gray.render(view).rgb, scene.render(view, backgrounds=torch.full((3,), 0.5)).rgb
    assert own is not None
    assert asked is not None
    assert torch.equal(own, asked)


def test_rendering_twice_is_the_same_and_changes_nothing(scene):
    before = {k: v.clone() for k, v in scene.gaussians.tensors().items()}
    a, b = (scene.render(scene.cameras[[0, 1]]).rgb for _ in range(2))
    assert a is not None
    assert b is not None
    assert torch.equal(a, b)
    assert all(torch.equal(before[k], v) for k, v in scene.gaussians.tensors().items())


def test_depth_of_the_scene_is_about_right(scene):
    """60 steps from the true points: the centre of the table is where the cameras look, 2 to 3 metres away."""
    depth = scene.render(scene.cameras[0]).depth[0, 25:35, 35:45, 0]
    assert 1.5 < float(depth.median()) < 3.5


def test_to_keeps_everything(scene):
    there = scene.to("cpu")
    assert there.units == scene.units
    assert there.info == scene.info
    assert there.mode_state.keys() == scene.mode_state.keys()
    assert isinstance(there.cameras, Cameras)


def test_a_scene_without_a_config_is_kept_too(scene, tmp_path):
    bare = Scene(scene.gaussians, scene.cameras)
    bare.save(tmp_path / "bare")
    assert not (tmp_path / "bare/config.yaml").exists()
    again = Scene.load(tmp_path / "bare")
    assert again.config is None
    assert again.names("train") == []


def test_missing_empty_and_unfinished_folders(tmp_path):
    with pytest.raises(FeaturesplatError, match="there is no such run folder"):
        Scene.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeaturesplatError, match="is empty"):
        Scene.load(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(FeaturesplatError, match="not a run folder"):
        Scene.load(tmp_path / "file")
    (tmp_path / "empty/log.jsonl").write_text("")
    with pytest.raises(FeaturesplatError, match=r"no scene\.json") as caught:
        Scene.load(tmp_path / "empty")
    assert "--resume" in caught.value.hint


@pytest.mark.parametrize("text", ["steps: [", "stepz: 3", "steps: {"])
def test_a_damaged_config_is_told(scene, tmp_path, text):
    scene.save(tmp_path / "run")
    (tmp_path / "run/config.yaml").write_text(text)
    with pytest.raises(FeaturesplatError, match=r"config\.yaml"):
        Scene.load(tmp_path / "run")


def test_an_unknown_field_is_told(scene):
    with pytest.raises(FeaturesplatError, match="no feature field"):
        scene.render(scene.cameras[0], features="clip")
    with pytest.raises(FeaturesplatError, match="clip"):
        with_fields(scene).render(scene.cameras[0], features="clip")


def with_fields(scene: Scene) -> Scene:
    """A scene with two fields over the same codes, a third one, and a mode's tensor with a row per Gaussian."""
    n, g = len(scene.gaussians), torch.Generator().manual_seed(0)
    codes = torch.randn(n, 3, generator=g)
    decoder = LinearDecoder(3, 5)
    decoder.weight.data.normal_(generator=g)
    fields = {
        "a": FeatureField(codes, "t", decoder, torch.rand(n, generator=g)),
        "b": FeatureField(codes, "u"),
        "c": FeatureField(torch.randn(n, 2, generator=g), "v"),
    }
    state = scene.mode_state | {"gaussian.rough": torch.rand(n, generator=g), "other": torch.arange(n)}
    return replace(scene, fields=fields, mode_state=state)


@pytest.mark.parametrize("kind", ["mask", "index", "slice"])
def test_rows_follow_the_gaussians(scene, kind):
    rich, n = with_fields(scene), len(scene.gaussians)
    chosen = torch.arange(n)[3:200:7]
    index = {"mask": torch.isin(torch.arange(n), chosen), "index": chosen, "slice": slice(3, 200, 7)}[kind]
    some = rich.rows(index)
    assert torch.equal(some.gaussians.means, scene.gaussians.means[chosen])
    for name, field in rich.fields.items():
        assert torch.equal(some.fields[name].codes, field.codes[chosen])
    assert some.fields["a"].confidence is not None
    assert torch.equal(some.fields["a"].confidence, rich.fields["a"].confidence[chosen])  # pyright: ignore
    assert some.fields["a"].codes is some.fields["b"].codes
    assert torch.equal(some.mode_state["gaussian.rough"], rich.mode_state["gaussian.rough"][chosen])
    assert torch.equal(some.mode_state["other"], rich.mode_state["other"])
    assert len(rich.gaussians) == n


def test_cat_keeps_what_means_the_same(scene):
    rich = with_fields(scene)
    one, two = rich.rows(slice(0, 40)), rich.rows(slice(40, 100))
    both = Scene.cat([one, two])
    assert torch.equal(both.gaussians.means, rich.gaussians.means[:100])
    for name in rich.fields:
        assert torch.equal(both.fields[name].codes, rich.fields[name].codes[:100])
    assert torch.equal(both.mode_state["gaussian.rough"], rich.mode_state["gaussian.rough"][:100])
    other = replace(two, fields={"a": FeatureField(torch.ones(60, 3), "another teacher")}, mode_state={})
    both = Scene.cat([one, other])
    assert both.fields["a"].codes[40:].abs().max() == 0
    assert both.fields["a"].confidence is not None
    assert both.fields["a"].confidence[40:].max() == 0
    assert both.mode_state["gaussian.rough"][40:].max() == 0


def test_the_default_field_is_the_last_one(scene):
    rich = with_fields(scene)
    assert rich.field()[0] == "c"
    assert rich.field("a") == ("a", rich.fields["a"])
    with pytest.raises(FeaturesplatError, match="has none called 'x'") as caught:
        rich.field("x")
    assert "a, b, c" in caught.value.hint
    with pytest.raises(FeaturesplatError, match="no feature field"):
        scene.field()


def test_values_of_ones_own_are_splatted_and_projections_commute_with_blending(scene):
    rich = with_fields(scene)
    phrases = torch.randn(4, 5)
    projected = rich.fields["a"].project(phrases)
    assert projected is not None
    camera = scene.cameras[0]
    direct = rich.render(camera, features=rich.fields["a"].codes @ projected.T).features
    rendered = rich.render(camera, features="a").features
    assert direct is not None
    assert rendered is not None
    assert torch.allclose(direct, rich.fields["a"].decode(rendered) @ phrases.T, atol=1e-4)
