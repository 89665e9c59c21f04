"""The run folder: exact, vouched for by sha256, and nothing from outside gets in."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from featuresplat.decoders import CodebookDecoder, LinearDecoder, MLPDecoder
from featuresplat.errors import FeaturesplatError
from featuresplat.io import atomic
from featuresplat.io.cameras import read_cameras, write_cameras
from featuresplat.io.ply import read_ply
from featuresplat.io.scene_folder import read_scene_folder, sha256_of, write_scene_folder
from featuresplat.io.tensors import read_tensors, write_tensors
from featuresplat.types import Cameras, FeatureField, TextTable


def linear_decoder(dim: int, out_dim: int) -> LinearDecoder:
    decoder = LinearDecoder(dim, out_dim)
    decoder.weight.data.normal_()
    return decoder


def some_cameras(dtype=torch.float64, times=True) -> Cameras:
    gen = torch.Generator().manual_seed(1)
    viewmats = torch.eye(4, dtype=dtype).repeat(3, 1, 1)
    viewmats[:, :3] = torch.randn(3, 3, 4, generator=gen, dtype=dtype) / 3
    Ks = torch.rand(3, 3, 3, generator=gen, dtype=dtype) * 1000
    when = torch.tensor([0, 1 / 3, 1], dtype=dtype) if times else None
    return Cameras(viewmats, Ks, [640, 641, 642], [480, 481, 482], when, ["a.jpg", "ü b.png", ""])


def same_cameras(a: Cameras, b: Cameras) -> None:
    assert torch.equal(a.viewmats, b.viewmats)
    assert torch.equal(a.Ks, b.Ks)
    assert a.viewmats.dtype == b.viewmats.dtype
    assert (a.widths, a.heights, a.names) == (b.widths, b.heights, b.names)
    assert (a.times is None) == (b.times is None)
    if a.times is not None:
        assert torch.equal(a.times, b.times)


@pytest.fixture
def scene(tmp_path, gaussians):
    folder = tmp_path / "run"
    fields = {"clip": FeatureField(torch.randn(20, 3), "clip"), "dino": FeatureField(torch.randn(20, 5))}
    write_scene_folder(folder, gaussians(20, 1), some_cameras(), fields, info={"steps": 7})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("times", [True, False])
def test_cameras_come_back_exactly(tmp_path, dtype, times):
    cameras = some_cameras(dtype, times)
    write_cameras(tmp_path / "cameras.json", cameras)
    same_cameras(cameras, read_cameras(tmp_path / "cameras.json"))
    data = json.loads((tmp_path / "cameras.json").read_text(encoding="utf-8"))
    assert set(data["cameras"][0]) == {"name", "width", "height", "viewmat", "K"} | ({"time"} if times else set())
    none = cameras[[]]
    write_cameras(tmp_path / "none.json", none)
    assert len(read_cameras(tmp_path / "none.json")) == 0


def test_bad_cameras(tmp_path):
    path = tmp_path / "cameras.json"
    cameras = some_cameras()
    cameras.viewmats[1, 0, 3] = torch.nan
    write_cameras(path, cameras)
    with pytest.raises(FeaturesplatError, match=r"camera 1 \('ü b.png'\) is not finite"):
        read_cameras(path)
    write_cameras(path, some_cameras())
    good = path.read_text(encoding="utf-8")
    for text, words in (
        (good[:-20], "is not readable JSON"),
        (
            good.replace('"format": 1', '"format": 2'),
            "written in camera format 2; the newest known here is 1",
        ),
        (good.replace('"K"', '"intrinsics"'), "is incomplete"),
        (good.replace('"dtype": "float64"', '"dtype": "float8"'), "is incomplete"),
        ("[]", "is incomplete"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(FeaturesplatError, match=words):
            read_cameras(path)
    with pytest.raises(FeaturesplatError, match="there is no such file"):
        read_cameras(tmp_path / "none.json")


def test_a_scene_comes_back_exactly(tmp_path, gaussians, same):
    g, cameras, folder = gaussians(50, 3), some_cameras(), tmp_path / "runs" / "garden"
    fields = {
        "clip": FeatureField(torch.randn(50, 4), "clip", linear_decoder(4, 6), info={"teacher": {"model": "a"}}),
        "sam": FeatureField(torch.randn(50, 2), "sam"),
    }
    state = {"knots": torch.randn(3, 2), "order": torch.arange(3)}
    units = {"center": [1.0, 2.0, 3.0], "scale": 0.25}
    path = write_scene_folder(folder, g, cameras, fields, "dynamic", state, {"psnr": 27.25}, units=units)
    content = json.loads(path.read_text())
    assert content["format"] == 1
    assert content["units"] == units
    assert content["fields"] == {
        "clip": {"dim": 4, "offset": 0, "teacher": "clip", "out_dim": 6, "decoder": "clip.decoder.safetensors"}
        | {"sidecar": None, "info": {"teacher": {"model": "a"}}},
        "sam": {"dim": 2, "offset": 4, "teacher": "sam", "out_dim": 2, "decoder": None, "sidecar": None, "info": {}},
    }
    names = {"gaussians.ply", "cameras.json", "mode.safetensors", "clip.decoder.safetensors"}
    assert set(content["files"]) == names
    assert {p.name for p in folder.iterdir()} == names | {"scene.json"}
    for name, entry in content["files"].items():
        assert entry == {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    back = read_scene_folder(folder)
    same(g, back.gaussians)
    same_cameras(cameras, back.cameras)
    assert list(back.fields) == ["clip", "sam"]
    for name, value in fields.items():
        assert torch.equal(back.fields[name].codes, value.codes)
        assert back.fields[name].teacher == value.teacher
    assert (back.mode, back.info, back.units) == ("dynamic", {"psnr": 27.25}, units)
    assert back.mode_state is not None
    assert all(torch.equal(back.mode_state[k], v) for k, v in state.items())
    assert back.fields["clip"].same_space(fields["clip"])
    assert back.fields["clip"].info == {"teacher": {"model": "a"}}
    assert back.fields["sam"].decoder is None


def test_what_a_field_has_beside_its_codes_comes_back(tmp_path, gaussians):
    table = TextTable(("a red mug", "Tisch <b>"), torch.randn(2, 6))
    seen = torch.rand(20)
    full = FeatureField(torch.randn(20, 4), "clip", linear_decoder(4, 6), seen, table, {"teacher": {}})
    write_scene_folder(tmp_path / "r", gaussians(20), some_cameras(), {"full": full})
    back = read_scene_folder(tmp_path / "r").fields["full"]
    assert torch.equal(back.decode(back.codes), full.decode(full.codes))
    assert back.confidence is not None
    assert torch.equal(back.confidence, seen)
    assert back.text is not None
    assert back.text.phrases == table.phrases
    assert torch.equal(back.text.vectors, table.vectors)


def test_fields_over_the_same_codes_share_their_columns(tmp_path, gaussians):
    codes = torch.randn(20, 4)
    fields = {
        "a": FeatureField(codes, "clip", linear_decoder(4, 6)),
        "own": FeatureField(torch.randn(20, 1)),
        "b": FeatureField(codes, "sam", MLPDecoder(4, 3, 8)),
    }
    write_scene_folder(tmp_path / "r", gaussians(20), some_cameras(), fields)
    loaded = read_ply(tmp_path / "r" / "gaussians.ply")
    assert loaded.features is not None
    assert loaded.features.shape[1] == 5
    back = read_scene_folder(tmp_path / "r").fields
    assert back["a"].codes is back["b"].codes
    for name, value in fields.items():
        assert torch.equal(back[name].decode(back[name].codes), value.decode(value.codes))


def test_codes_of_a_codebook_are_stored_sparsely(tmp_path, gaussians):
    codes = torch.zeros(30, 64)
    codes.scatter_(1, torch.rand(30, 64).topk(4).indices, torch.rand(30, 4).half().float())
    decoder = CodebookDecoder(64, 100, top=4)
    decoder.weight.data.normal_()
    fields = {"book": FeatureField(codes, "clip", decoder), "x": FeatureField(torch.randn(30, 2))}
    write_scene_folder(tmp_path / "r", gaussians(30), some_cameras(), fields)
    loaded = read_ply(tmp_path / "r" / "gaussians.ply")
    assert loaded.features is not None
    assert loaded.features.shape[1] == 2
    tensors, _ = read_tensors(tmp_path / "r" / "book.field.safetensors")
    assert {k: (v.dtype, v.shape[1]) for k, v in tensors.items()} == {
        "entries": (torch.uint8, 4),
        "weights": (torch.float16, 4),
    }
    back = read_scene_folder(tmp_path / "r").fields
    assert torch.equal(back["book"].codes, codes)
    assert back["book"].same_space(fields["book"])


@pytest.mark.parametrize("damage", ["truncated", "other kind", "other shape", "newer"])
def test_a_damaged_decoder_is_told(tmp_path, gaussians, damage):
    folder, name = tmp_path / "r", "f.decoder.safetensors"
    write_scene_folder(
        folder, gaussians(5), some_cameras(), {"f": FeatureField(torch.zeros(5, 2), "t", linear_decoder(2, 3))}
    )
    tensors, header = read_tensors(folder / name)
    if damage == "truncated":
        (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    else:
        said = json.loads(header["decoder"])
        said |= {"other kind": {"kind": "tree"}, "other shape": {"dim": 7}, "newer": {"version": 99}}[damage]
        write_tensors(folder / name, tensors, {"decoder": json.dumps(said)})
    with pytest.raises(FeaturesplatError, match=r"is not the file that scene\.json describes"):
        read_scene_folder(folder)
    vouch_for(folder, name)
    with pytest.raises(FeaturesplatError, match=r"is no decoder|truncated|decoder format 99") as caught:
        read_scene_folder(folder)
    assert caught.value.hint


def vouch_for(folder, name) -> None:
    """Enter a changed file into scene.json, as a forger would."""
    entry = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    edit(folder, lambda c: c["files"].update({name: entry}))


def test_the_ply_of_a_scene_names_its_sidecar(scene):
    assert b"comment sidecar scene.json\n" in (scene / "gaussians.ply").read_bytes()[:200]


def test_a_second_write_replaces_the_first_and_drops_its_mode_state(tmp_path, gaussians, same):
    folder = tmp_path / "run"
    write_scene_folder(folder, gaussians(5), some_cameras(), mode="dynamic", mode_state={"a": torch.ones(1)})
    second = gaussians(9, seed=2)
    write_scene_folder(folder, second, some_cameras(times=False))
    back = read_scene_folder(folder)
    same(second, back.gaussians)
    assert back.mode_state is None
    assert back.fields == {}


def test_a_gaussian_with_nan_keeps_its_row(tmp_path, gaussians):
    g = gaussians(5)
    g.means[2] = torch.nan
    fields = {"f": FeatureField(torch.arange(5.0)[:, None])}
    write_scene_folder(tmp_path / "r", g, some_cameras(), fields)
    back = read_scene_folder(tmp_path / "r")
    assert back.fields["f"].codes[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert back.gaussians.means.isnan().any(1).tolist() == [False, False, True, False, False]


def test_a_full_disk_keeps_the_old_scene_whole(scene, gaussians, monkeypatch):
    before = {p.name: p.read_bytes() for p in scene.iterdir()}
    calls = []

    def full_at_the_third(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full_at_the_third)
    with pytest.raises(FeaturesplatError, match=r"run/cameras\.json: the disk is full; what was written before is"):
        write_scene_folder(scene, gaussians(7), some_cameras())
    assert {p.name: p.read_bytes() for p in scene.iterdir()} == before


def test_not_a_run_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    for name, words in (
        ("none", "there is no such run folder"),
        ("empty", "is empty"),
        ("other", r"holds no scene\.json"),
        ("other/notes.txt", "is a file, not a run folder"),
    ):
        with pytest.raises(FeaturesplatError, match=words) as caught:
            read_scene_folder(tmp_path / name)
        assert caught.value.hint


def edit(scene, change) -> None:
    content = json.loads((scene / "scene.json").read_text())
    change(content)
    (scene / "scene.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(format=2), "written in scene format 2; the newest known here is 1"),
        (lambda c: c.update(format="one"), "expected a scene with a format version, got 'one'"),
        (
            lambda c: c["files"].update({"../secret.txt": {}}),
            r"'\.\./secret\.txt' points outside of the folder",
        ),
        (lambda c: c["files"].update({"/etc/passwd": {}}), "'/etc/passwd' points outside of the folder"),
        (
            lambda c: c["fields"]["clip"].update(decoder="../../x"),
            r"'\.\./\.\./x' points outside of the folder",
        ),
        (lambda c: c["fields"]["clip"].update(decoder="x"), "does not list the file 'x'"),
        (lambda c: c["files"].pop("gaussians.ply"), r"does not list the file 'gaussians\.ply'"),
        (lambda c: c["files"]["gaussians.ply"].update(sha256="0" * 64), "its sha256 differs"),
        (
            lambda c: c["files"].update({"gone.bin": {"sha256": "", "bytes": 1}}),
            r"gone\.bin: .*it is missing",
        ),
        (lambda c: c["fields"]["dino"].update(dim=6), "the field 'dino' is said to be columns 3 to 8"),
        (lambda c: c["fields"].pop("dino"), "its fields use 3 of 8 feature columns"),
        (lambda c: c.update(fields=[]), "is not as featuresplat writes it"),
        (lambda c: c.pop("mode"), "is not as featuresplat writes it"),
        (lambda c: c["units"].update(scale=0), "units: expected a center of three numbers and a scale above 0"),
        (lambda c: c["units"].update(center=[0, 1]), "units: expected a center of three numbers"),
        (lambda c: c.pop("units"), "is not as featuresplat writes it"),
    ],
)
def test_a_scene_json_that_was_tampered_with(scene, change, words):
    edit(scene, change)
    with pytest.raises(FeaturesplatError, match=words) as caught:
        read_scene_folder(scene)
    assert caught.value.hint


def test_changed_missing_and_linked_files(scene, tmp_path):
    data = bytearray((scene / "gaussians.ply").read_bytes())
    data[-1] ^= 1
    (scene / "gaussians.ply").write_bytes(data)
    with pytest.raises(FeaturesplatError, match=r"gaussians\.ply: is not the file that scene\.json describes"):
        read_scene_folder(scene)
    (scene / "gaussians.ply").rename(tmp_path / "elsewhere.ply")
    with pytest.raises(FeaturesplatError, match=r"gaussians\.ply: .*it is missing"):
        read_scene_folder(scene)
    (scene / "gaussians.ply").symlink_to(tmp_path / "elsewhere.ply")
    with pytest.raises(FeaturesplatError, match="is a link that leads outside"):
        read_scene_folder(scene)
    (scene / "scene.json").write_text("{")
    with pytest.raises(FeaturesplatError, match=r"scene\.json: is not readable JSON"):
        read_scene_folder(scene)


def test_writer_refuses_what_does_not_fit(tmp_path, gaussians):
    g, c = gaussians(4), some_cameras()
    for fields, words in (
        ({"f": FeatureField(torch.zeros(3, 2))}, r"expected codes \[4, D\] for 'f', got \(3, 2\)"),
        ({"../f": FeatureField(torch.zeros(4, 2))}, "'../f' is no usable name"),
    ):
        with pytest.raises(FeaturesplatError, match=words):
            write_scene_folder(tmp_path / "r", g, c, fields)
    assert not (tmp_path / "r").exists()
