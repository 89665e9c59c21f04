"""The cache of maps: keyed, resumed, checked, compressed, and never in memory at once."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.fields.cache import MapCache, default_folder, image_key
from featuresplat.fields.extract import extract
from featuresplat.types import Cameras


@dataclass
class Photographs:
    """What `extract` asks of a data set: small images made from their number."""

    count: int
    size: int = 8

    def __post_init__(self):
        names = [f"p{i:03d}.png" for i in range(self.count)]
        eye = torch.eye(4).expand(self.count, 4, 4)
        self.cameras = Cameras(eye, torch.eye(3).expand(self.count, 3, 3), self.size, self.size, names=names)

    def image(self, i: int) -> Tensor:
        generator = torch.Generator().manual_seed(i)
        return torch.randint(0, 256, (self.size, self.size, 3), generator=generator, dtype=torch.uint8)

    def mask(self, i: int) -> None:
        return None


@dataclass
class FakeTeacher:
    """Maps made from the image; counts how often it is asked."""

    dim: int = 6
    cells: int = 4
    rank: int | None = None
    name: str = "fake"
    asked: list[str] = field(default_factory=list)
    settings: dict = field(default_factory=lambda: {"model": "small", "sizes": (1, 2)})

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        self.asked.append(name)
        g = torch.Generator().manual_seed(int(image.sum() * 255))
        if self.rank is None:
            return torch.randn(self.cells, self.cells, self.dim, generator=g)
        fixed = torch.randn(self.rank, self.dim, generator=torch.Generator().manual_seed(9))
        return torch.randn(self.cells, self.cells, self.rank, generator=g) @ fixed


def cache_of(folder: Path, teacher: FakeTeacher, channels: int = 0) -> MapCache:
    return MapCache(folder, teacher.name, teacher.settings, teacher.dim, channels)


def run(folder: Path, teacher: FakeTeacher, photographs: Photographs, channels: int = 0):
    return extract(photographs, teacher, range(photographs.count), cache_of(folder, teacher, channels))  # pyright: ignore


def test_maps_come_back_as_half_floats_and_are_made_once(tmp_path):
    teacher, data = FakeTeacher(), Photographs(5)
    maps = run(tmp_path, teacher, data)
    assert teacher.asked == [f"p{i:03d}.png" for i in range(5)]
    for i in range(5):
        want = FakeTeacher().encode_image(data.image(i).float() / 255)
        assert maps[i].dtype == torch.float16
        assert torch.equal(maps[i], want.half())
    again = run(tmp_path, teacher, data)
    assert torch.equal(again[3], maps[3])
    assert len(teacher.asked) == 5


def test_an_interrupted_extraction_goes_on(tmp_path):
    class Tired(FakeTeacher):
        def encode_image(self, image, *, name=""):
            if len(self.asked) == 3:
                raise KeyboardInterrupt
            return super().encode_image(image, name=name)

    teacher = Tired()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, teacher, Photographs(5))
    fresh = FakeTeacher()
    run(tmp_path, fresh, Photographs(5))
    assert fresh.asked == ["p003.png", "p004.png"]


def test_another_image_another_setting_another_teacher_are_other_maps(tmp_path):
    data = Photographs(1)
    run(tmp_path, FakeTeacher(), data)
    for teacher in (
        FakeTeacher(settings={"model": "large", "sizes": (1, 2)}),
        FakeTeacher(dim=7),
        FakeTeacher(name="other"),
    ):
        run(tmp_path, teacher, data)
        assert len(teacher.asked) == 1
    run(tmp_path, same := FakeTeacher(), Photographs(1, size=9))
    assert len(same.asked) == 1
    assert "model: 'small' here, 'large' there" in " ".join(cache_of(tmp_path, FakeTeacher()).others())
    assert image_key(data.image(0)) != image_key(data.image(0).flip(0))


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "other shape"])
def test_a_damaged_entry_is_found_and_made_again(tmp_path, damage):
    teacher, data = FakeTeacher(), Photographs(3)
    good = run(tmp_path, teacher, data)[1].clone()
    path = cache_of(tmp_path, teacher).entry(image_key(data.image(1)))
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flipped bit":
        content[-7] ^= 4
        path.write_bytes(content)
    else:
        cache_of(tmp_path / "other", FakeTeacher(dim=3)).put("x", torch.zeros(2, 2, 3))
        path.write_bytes(next((tmp_path / "other").rglob("x.safetensors")).read_bytes())
    with pytest.warns(UserWarning, match="this cached map is damaged and is made again"):
        maps = run(tmp_path, teacher, data)
    assert teacher.asked[3:] == ["p001.png"]
    assert torch.equal(maps[1], good)


def test_an_entry_that_goes_while_it_is_used_is_made_again(tmp_path):
    teacher, data = FakeTeacher(), Photographs(2)
    maps = run(tmp_path, teacher, data)
    good = maps[0].clone()
    cache_of(tmp_path, teacher).entry(image_key(data.image(0))).unlink()
    assert torch.equal(maps[0], good)
    assert len(teacher.asked) == 3


def test_a_compressed_cache_keeps_what_lies_in_its_axes(tmp_path):
    teacher, data = FakeTeacher(dim=40, rank=5), Photographs(30)
    maps = run(tmp_path, teacher, data, channels=5)
    for i in (0, 1, 29):
        want = FakeTeacher(dim=40, rank=5).encode_image(data.image(i).float() / 255)
        assert torch.allclose(maps[i], want, atol=0.02 * float(want.abs().max()))
    sizes = [p.stat().st_size for p in cache_of(tmp_path, teacher, 5).folder.glob("*.safetensors")]
    assert sorted(sizes)[len(sizes) // 2] < 16 * 5 * 2 + 400
    before = len(teacher.asked)
    assert torch.equal(run(tmp_path, teacher, data, channels=5)[7], maps[7])
    assert len(teacher.asked) == before


def test_the_basis_of_a_compressed_cache_is_checked(tmp_path):
    teacher = FakeTeacher(dim=40)
    run(tmp_path, teacher, Photographs(3), channels=5)
    basis = cache_of(tmp_path, teacher, 5).folder / "basis.safetensors"
    basis.write_bytes(basis.read_bytes()[:-9])
    with pytest.raises(FeaturesplatError, match="is damaged; the maps that lean on it") as caught:
        run(tmp_path, teacher, Photographs(3), channels=5)
    assert "Delete" in caught.value.hint


def test_a_cache_written_by_other_settings_is_refused(tmp_path):
    cache = cache_of(tmp_path, FakeTeacher())
    path = cache.folder / "settings.json"
    said = json.loads(path.read_text())
    said["settings"]["model"] = "large"
    path.write_text(json.dumps(said))
    with pytest.raises(FeaturesplatError, match=r"written by other settings.*model: 'small' here, 'large' there"):
        cache_of(tmp_path, FakeTeacher())
    path.write_text("{")
    with pytest.raises(FeaturesplatError, match=r"written by other settings.*cannot be read"):
        cache_of(tmp_path, FakeTeacher())


def test_maps_that_break_the_promise_are_refused(tmp_path):
    cache = cache_of(tmp_path, FakeTeacher())
    with pytest.raises(FeaturesplatError, match=r"a\.png: expected a map \[h, w, 6\], got \[2, 2, 5\]"):
        cache.put("k", torch.zeros(2, 2, 5), "a.png")
    with pytest.raises(FeaturesplatError, match=r"a\.png: its map holds NaN"):
        cache.put("k", torch.full((2, 2, 6), torch.nan), "a.png")
    assert not cache.has("k")


def test_the_default_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "featuresplat" / "maps"


def resident() -> int:
    """Bytes of this process that belong to no file."""
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("needs Linux's /proc to see the memory in use")
    found = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
    if found is None:
        pytest.skip("this kernel does not tell anonymous memory apart")
    return int(found[1]) * 1024


def test_300_maps_of_512_channels_never_sit_in_memory(tmp_path, monkeypatch):
    """The bound: beside the teacher, one image and one map at a time, however many there are."""
    monkeypatch.setattr("featuresplat.io.atomic._fsync_opened", lambda *a: None)  # 300 waits for a disk prove nothing
    one_map = 16 * 16 * 512 * 4

    class Watching(FakeTeacher):
        most = 0

        def encode_image(self, image, *, name=""):
            self.most = max(self.most, resident())
            self.asked.append(name)
            return image.mean() + torch.arange(16 * 16 * 512, dtype=torch.float32).view(16, 16, 512) / 1e5

    teacher, data = Watching(dim=512, cells=16), Photographs(300)
    run(tmp_path / "warm", teacher, Photographs(3))
    before, teacher.most = resident(), 0
    maps = run(tmp_path / "real", teacher, data)
    total = torch.zeros(512)
    for i in range(300):
        total += maps[i].float().mean((0, 1))
        teacher.most = max(teacher.most, resident())
    assert len(teacher.asked) == 303
    # All of them would be 157 MB, as half floats 79 MB; allocators keep a few blocks.
    assert teacher.most - before < 20 * one_map


def test_the_verb_fills_the_cache_and_says_what_differs(tmp_path, monkeypatch, capsys):
    from tiny_training import write_scene

    from featuresplat import teachers
    from featuresplat.cli import main

    write_scene(tmp_path / "scene", range(0, 40, 10))
    made: list[FakeTeacher] = []

    def make(name, config, device="cpu"):
        made.append(FakeTeacher(settings={"model": config.model or "small"}))
        return made[-1]

    monkeypatch.setattr(teachers, "make_teacher", make)
    ask = ["extract", str(tmp_path / "scene"), "--teacher", "fake", "--cache", str(tmp_path / "cache"), "--quiet"]
    assert main(ask) == 0
    assert "fake: 4 images, 6 channels" in capsys.readouterr().out
    assert len(made[-1].asked) == 4
    assert main([*ask, "--teacher.model", "large"]) == 0
    assert "model: 'large' here, 'small' there" in capsys.readouterr().out
    assert main(ask) == 0
    assert made[-1].asked == []
    assert main([*ask, "--channels", "2"]) == 0
    assert len(list((tmp_path / "cache").rglob("basis.safetensors"))) == 1
    assert main(["extract", str(tmp_path / "nowhere"), "--teacher", "fake"]) == 2
    assert main(["extract"]) == 2
    assert "expected a run folder" in capsys.readouterr().err
