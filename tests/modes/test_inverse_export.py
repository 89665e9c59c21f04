"""Materials and light that are taken away, and brought back."""

from __future__ import annotations

from pathlib import Path

import material_toy as toy
import numpy as np
import pytest
import torch

from featuresplat import cli
from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import read_environment
from featuresplat.io.ply import read_ply
from featuresplat.modes._inverse_scene import NAMES
from featuresplat.scene import Scene
from featuresplat.shading import cubemap


@pytest.fixture(scope="module")
def scene() -> Scene:
    return toy.scene()


@pytest.fixture(scope="module")
def run(scene, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    scene.save(folder)
    return folder


def test_a_ply_brings_everything_back(scene, run, tmp_path):
    assert cli.main(["export", str(run), str(tmp_path / "a.ply")]) == 0
    back = Scene.load(tmp_path / "a.ply")
    assert back.mode == "inverse"
    for name in (*(f"gaussian.{n}" for n in NAMES), "light", "environment"):
        assert torch.equal(back.mode_state[name], scene.mode_state[name]), name
    assert list(back.fields) == ["objects"]
    camera = scene.cameras[2]
    for light in (None, np.full((16, 32, 3), 0.7, np.float32)):
        first, second = scene.render(camera, light=light).rgb, back.render(camera, light=light).rgb
        assert first is not None
        assert second is not None
        torch.testing.assert_close(first, second, atol=2e-3, rtol=0)
    back.save(tmp_path / "b.ply")
    assert Scene.load(tmp_path / "b.ply").mode == "inverse"


def test_the_columns_are_those_of_the_documentation(run, tmp_path):
    assert cli.main(["export", str(run), str(tmp_path / "a.ply")]) == 0
    found = read_ply(tmp_path / "a.ply").extra
    text = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text(encoding="utf-8")
    for name in found:
        assert f"`{name}`" in text or f"`{name.rstrip('012')}0..2`" in text, name
    for index in range(3):
        rows = slice(index * toy.EACH, (index + 1) * toy.EACH)
        assert float(found["roughness"][rows].mean()) == pytest.approx(toy.ROUGHNESS[index])
        assert float(found["base_color_1"][rows].mean()) == pytest.approx(float(toy.COLORS[index][1]), rel=1e-5)


def test_plain_files_and_other_formats_hold_none(run, tmp_path):
    assert cli.main(["export", str(run), str(tmp_path / "p.ply"), "--plain"]) == 0
    assert not read_ply(tmp_path / "p.ply").extra
    assert Scene.load(tmp_path / "p.ply").mode == "static"
    assert [f.name for f in tmp_path.iterdir()] == ["p.ply"]
    with pytest.warns(UserWarning, match="holds no features"):
        Scene.load(run).save(tmp_path / "s.splat")
    assert Scene.load(tmp_path / "s.splat").mode == "static"


def test_without_the_file_beside_the_light_is_grey(run, tmp_path):
    assert cli.main(["export", str(run), str(tmp_path / "a.ply")]) == 0
    (tmp_path / "a.light.npy").unlink()
    light = Scene.load(tmp_path / "a.ply").mode_state["light"]
    assert float(light.std()) == 0


@pytest.mark.parametrize("ending", [".npy", ".hdr", ".exr"])
def test_the_light_as_an_environment_map(scene, run, tmp_path, ending, capsys):
    if ending == ".exr":
        pytest.importorskip("OpenEXR")
    out = tmp_path / f"sky{ending}"
    assert cli.main(["export", str(run), str(out)]) == 0
    assert "environment map, 128x64" in capsys.readouterr().out
    sky = torch.from_numpy(read_environment(out))
    assert sky.shape == (64, 128, 3)
    cube = scene.mode_state["light"]
    assert float((cubemap.from_equirect(sky, toy.SIZE) - cube).abs().mean()) < 0.02 * float(cube.mean())
    # The scene under its own light from a file is the scene under its own light.
    own = scene.render(scene.cameras[2], light=scene.mode_state["light"], linear=True).rgb
    read = scene.render(scene.cameras[2], light=out, linear=True).rgb
    assert own is not None
    assert read is not None
    assert float((own - read).abs().mean()) < 0.01


@pytest.mark.parametrize(
    "told",
    ["nonsense", '{"light": "../x.npy", "environment": true, "tone": "none", "shadows": true}', '{"light": "a.npy"}'],
)
def test_damaged_comments(scene, told):
    from featuresplat.modes.inverse import from_columns

    with pytest.raises(FeaturesplatError, match="damaged"):
        from_columns(scene, told, {}, "a.ply")


def test_a_missing_column(scene, run, tmp_path):
    from featuresplat.modes.inverse import columns, from_columns

    comments, found = columns(scene, tmp_path / "a.ply")
    del found["metallic"]
    with pytest.raises(FeaturesplatError, match="lacks the column 'metallic'"):
        from_columns(scene, comments[0].split(" ", 2)[2], found, tmp_path / "a.ply")


def test_the_report_shows_materials_light_and_other_lights(scene):
    from featuresplat.modes.inverse import report

    sections = dict(report(scene))
    assert list(sections) == ["Materials", "Light", "Under other lights"]
    assert sections["Materials"].count("<img") == 8
    assert sections["Light"].count("<img") == 1
    assert sections["Under other lights"].count("<img") == 8
    for word in ("Albedo", "Normal", "Roughness", "Metallic", "view_2.png"):
        assert word in sections["Materials"]
