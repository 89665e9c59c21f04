"""Pictures and linear values of a scene of materials, from the command line to files."""

from __future__ import annotations

from pathlib import Path

import material_toy as toy
import numpy as np
import pytest
from PIL import Image

from featuresplat import cli, render
from featuresplat.modes.inverse import KINDS
from featuresplat.scene import Scene
from featuresplat.shading import light as lights

RED, GREEN, BLUE = range(3)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("materials") / "run"
    toy.scene().save(folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """The same as a run without materials."""
    scene = toy.scene()
    folder = tmp_path_factory.mktemp("plain") / "run"
    Scene(scene.gaussians, scene.cameras, scene.fields, info=scene.info).save(folder)
    return folder


def rendered(run: Path, out: Path, *options: str) -> Path:
    assert cli.main(["render", str(run), "--path", "test", "--out", str(out), "--quiet", *options]) == 0
    return out


def values(out: Path, kind: str) -> np.ndarray:
    return np.load(out / kind / "view_2.npy")


def at(image: np.ndarray, index: int) -> np.ndarray:
    return toy.patch(image, index).reshape(64, -1).mean(0)


def test_every_kind_and_its_linear_values(run, tmp_path):
    rendered(run, tmp_path, "--what", ",".join(("rgb", *KINDS)), "--linear")
    for kind in ("rgb", *KINDS):
        assert [f.name for f in (tmp_path / kind).glob("*.png")] == ["view_2.png"]
        linear = values(tmp_path, kind)
        assert linear.dtype == np.float32
        assert linear.shape[:2] == (48, 96)
        assert np.asarray(Image.open(tmp_path / kind / "view_2.png")).shape == (48, 96, 3)
    for i in range(3):
        np.testing.assert_allclose(at(values(tmp_path, "albedo"), i), toy.COLORS[i], atol=0.02)
        np.testing.assert_allclose(at(values(tmp_path, "roughness"), i), toy.ROUGHNESS[i], atol=0.02)
        np.testing.assert_allclose(at(values(tmp_path, "metallic"), i), toy.METALLIC[i], atol=0.02)
        np.testing.assert_allclose(at(values(tmp_path, "progress"), i), 0.9, atol=0.02)
        normal = toy.patch(values(tmp_path, "normal"), i)
        np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-4)
        true = toy.patch(toy.true_normals(Scene.load(run).part("test")[0], i).numpy(), i)
        assert np.rad2deg(np.arccos((normal * true).sum(-1).clip(-1, 1))).mean() < 0.3
    total = values(tmp_path, "diffuse") + values(tmp_path, "specular")
    np.testing.assert_allclose(values(tmp_path, "physical"), total, atol=1e-5)
    assert at(values(tmp_path, "diffuse"), BLUE).max() < 0.02 < at(values(tmp_path, "specular"), BLUE).max()  # a metal
    assert at(values(tmp_path, "diffuse"), RED).argmax() == 0


def test_pictures_are_the_values_by_the_srgb_curve(run, tmp_path):
    rendered(run, tmp_path, "--what", "rgb,albedo", "--linear", "--light-gain", "0.2")
    for kind in ("rgb", "albedo"):
        shown = np.asarray(Image.open(tmp_path / kind / "view_2.png")).astype(np.float32) / 255
        for i in range(3):  # at edges, colours are blended as they are shown
            linear = toy.patch(values(tmp_path, kind), i)
            encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clip(1e-9) ** (1 / 2.4) - 0.055)
            np.testing.assert_allclose(toy.patch(shown, i), encoded.clip(0, 1), atol=0.005)


def test_another_light_turned(run, tmp_path):
    sky = np.full((16, 32, 3), 0.05, np.float32)
    sky[:, 22:26] = 4.0  # about -y, where the cameras are
    np.save(tmp_path / "sky.npy", sky)
    light = ["--light", str(tmp_path / "sky.npy"), "--linear"]
    front = values(rendered(run, tmp_path / "front", *light), "rgb")
    back = values(rendered(run, tmp_path / "back", *light, "--light-turn", "180"), "rgb")
    bright = values(rendered(run, tmp_path / "bright", *light, "--light-gain", "3"), "rgb")
    assert at(front, RED).mean() > 4 * at(back, RED).mean()
    np.testing.assert_allclose(at(bright, RED), 3 * at(front, RED), rtol=0.02)


def test_a_point_light_and_its_shadow(run, tmp_path):
    lamp = ["--light-gain", "0", "--linear"]
    front = values(rendered(run, tmp_path / "a", *lamp, "--point-light", "-1.4", "-3", "0", "20"), "rgb")
    # Arriving: 20 / 2.55^2 on a surface that faces the lamp; the red ball is dull: albedo / pi of it leaves, and gloss.
    arrives = 20 / 2.55**2
    nearest = toy.patch(front, RED)[..., 0].max()
    assert nearest == pytest.approx(toy.COLORS[RED][0].item() * arrives / np.pi, rel=0.1)
    behind = values(rendered(run, tmp_path / "b", *lamp, "--point-light", "-1.4", "3", "0", "20"), "rgb")
    assert np.abs(at(behind, RED)).max() < 1e-3
    both = ["--point-light", "-1.4", "-3", "0", "20", "--point-light", "1.4", "3", "0", "5", "0", "0"]
    two = values(rendered(run, tmp_path / "c", *lamp, *both), "rgb")
    np.testing.assert_allclose(at(two, RED), at(front, RED), rtol=0.01, atol=1e-3)


def test_sampling_agrees_with_the_fast_way(run, tmp_path):
    sky = np.full((16, 32, 3), 1.0, np.float32)
    np.save(tmp_path / "sky.npy", sky)
    light = ["--light", str(tmp_path / "sky.npy"), "--linear"]
    fast = values(rendered(run, tmp_path / "fast", *light), "rgb")
    slow = values(rendered(run, tmp_path / "slow", *light, "--light-samples", "32"), "rgb")
    np.testing.assert_allclose(at(slow, RED), at(fast, RED), rtol=0.07, atol=0.01)


def test_a_map_is_read_once_however_many_cameras(run, tmp_path, monkeypatch):
    np.save(tmp_path / "sky.npy", np.ones((16, 32, 3), np.float32))
    reads = []
    original = lights.read_environment
    monkeypatch.setattr(lights, "read_environment", lambda path: reads.append(path) or original(path))
    render.render_run(run, "train", ["rgb", "albedo"], tmp_path / "out", light=tmp_path / "sky.npy")
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--light", "nowhere.hdr"], "no such environment map"),
        (["--point-light", "1", "2", "3"], "got 3 numbers"),
        (["--light-gain", "-1"], "at least 0"),
        (["--what", "albdo"], "cannot render 'albdo'"),
    ],
)
def test_mistakes(run, tmp_path, capsys, options, says):
    assert cli.main(["render", str(run), "--path", "test", "--out", str(tmp_path), *options]) == 2
    assert says in capsys.readouterr().err


def test_spoilt_maps_are_refused_and_8_bits_are_warned_of(run, tmp_path, capsys):
    sky = np.ones((16, 32, 3), np.float32)
    for bad, says in ((-1.0, "negative"), (np.inf, "infinite")):
        sky[0, 0, 0] = bad
        np.save(tmp_path / "bad.npy", sky)
        out = ["--path", "test", "--out", str(tmp_path / "o"), "--light", str(tmp_path / "bad.npy")]
        assert cli.main(["render", str(run), *out]) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "o").exists()
    Image.fromarray(np.full((16, 32, 3), 128, np.uint8)).save(tmp_path / "sky.png")
    rendered(run, tmp_path / "p", "--light", str(tmp_path / "sky.png"))
    assert "8 bits" in capsys.readouterr().err


def test_runs_without_materials_say_so(plain, tmp_path, capsys):
    np.save(tmp_path / "sky.npy", np.ones((16, 32, 3), np.float32))
    base = ["render", str(plain), "--path", "test", "--out", str(tmp_path / "o")]
    for options in (
        ["--light", str(tmp_path / "sky.npy")],
        ["--light-turn", "90"],
        ["--point-light", "0", "0", "1", "5"],
    ):
        assert cli.main([*base, *options]) == 2
        said = capsys.readouterr().err
        assert "cannot be relit" in said
        assert "featuresplat inverse" in said
    assert cli.main(["edit", str(plain), "make the red ball chrome", "--out", str(tmp_path / "e")]) == 2
    said = capsys.readouterr().err
    assert "no materials" in said
    assert "featuresplat inverse" in said
    assert not (tmp_path / "e").exists()


def test_editing_from_the_command_line(run, tmp_path, capsys):
    out, on_cpu = tmp_path / "edited", ["--device", "cpu"]  # where sums have an order
    assert cli.main(["edit", str(run), "make the red ball golden", "--out", str(out), *on_cpu]) == 0
    assert "understood: material 'red ball' material gold" in capsys.readouterr().out
    again = tmp_path / "again"
    assert cli.main(["edit", str(run), str(out / "edits.yaml"), "--out", str(again), *on_cpu]) == 0
    assert (out / "mode.safetensors").read_bytes() == (again / "mode.safetensors").read_bytes()
    assert (out / "gaussians.ply").read_bytes() == (again / "gaussians.ply").read_bytes()
    albedo = values(rendered(out, tmp_path / "r", "--what", "albedo", "--linear"), "albedo")
    np.testing.assert_allclose(at(albedo, RED), (1.0, 0.782, 0.344), atol=0.02)
