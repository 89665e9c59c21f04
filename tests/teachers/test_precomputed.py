"""Teacher `precomputed`: its folder, and everything that can be wrong with one."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featuresplat.config_fields import TeacherConfig
from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import CANONICAL, make_teacher, text_side

PHRASES = {"red mug": 1, "duck": 0, "background": 2}


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "teacher.json").write_text(json.dumps({"name": "truth", "dim": 5, "phrases": PHRASES}))
    np.save(tmp_path / "text.npy", rng.normal(size=(3, 5)).astype(np.float32))
    np.save(tmp_path / "view_000.npy", rng.normal(size=(3, 4, 5)).astype(np.float16))
    save_file({"features": torch.ones(2, 2, 5), "other": torch.zeros(1)}, tmp_path / "view_001.safetensors")
    return tmp_path


def made(folder):
    return make_teacher("precomputed", TeacherConfig(path=folder))


def described(folder, **changes):
    values = {"name": "truth", "dim": 5, "phrases": PHRASES} | changes
    (folder / "teacher.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    return folder


IMAGE = torch.zeros(6, 8, 3)


def test_maps_are_found_by_the_photographs_stem(folder):
    teacher = made(folder)
    half = teacher.encode_image(IMAGE, name="images/view_000.jpg")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, torch.from_numpy(np.load(folder / "view_000.npy")).float())
    torch.testing.assert_close(teacher.encode_image(IMAGE, name="view_001.png"), torch.ones(2, 2, 5))
    assert (teacher.name, teacher.dim) == ("precomputed", 5)


def test_the_table_follows_the_rows_of_teacher_json(folder):
    teacher = made(folder)
    rows = torch.from_numpy(np.load(folder / "text.npy"))
    assert teacher.table.phrases == tuple(PHRASES)
    torch.testing.assert_close(teacher.table.vectors, rows[[1, 0, 2]])
    torch.testing.assert_close(teacher.encode_text(["Duck", "red mug"]), rows[[0, 1]])
    torch.testing.assert_close(text_side("precomputed", teacher.settings).encode_text(["duck"]), rows[[0]])
    assert teacher.canonical == ()
    assert "red mug" in teacher.about


def test_with_the_canonical_phrases_text_is_open(folder):
    described(folder, phrases={p: 0 for p in CANONICAL} | {"duck": 1})
    assert made(folder).canonical == CANONICAL


def test_without_phrases_there_is_no_text(folder):
    teacher = made(described(folder, phrases=None))
    assert teacher.table is None
    with pytest.raises(FeaturesplatError, match="brings no phrases"):
        teacher.encode_text(["duck"])
    with pytest.raises(FeaturesplatError, match="fixed list of phrases"):
        made(described(folder)).encode_text(["chair"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, "dim: expected a number"),
        ({"dim": True}, "dim: expected a number"),
        ({"dim": None}, "dim: expected a number"),
        ({"dim": 6}, r"text\.npy: expected \[P, 6\]"),
        ({"name": 3}, "name: expected text"),
        ({"phrases": ["duck"]}, "phrases: expected"),
        ({"phrases": {"duck": "0"}}, "phrases: expected"),
        ({"phrases": {"duck": 3}}, "puts 'duck' in row 3"),
        ({"phrases": {"duck": -1}}, "puts 'duck' in row -1"),
    ],
)
def test_a_teacher_json_that_is_wrong(folder, changes, message):
    with pytest.raises(FeaturesplatError, match=message):
        made(described(folder, **changes))


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe"])
def test_a_teacher_json_that_is_no_object(folder, text):
    (folder / "teacher.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FeaturesplatError, match=r"teacher\.json"):
        made(folder)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(FeaturesplatError, match="expected the folder of maps") as caught:
        make_teacher("precomputed")
    assert "--teacher.path" in caught.value.hint
    with pytest.raises(FeaturesplatError, match="there is none"):
        made(tmp_path / "nowhere")
    with pytest.raises(FeaturesplatError, match=r"expected a teacher\.json"):
        made(tmp_path)


@pytest.mark.parametrize("name", ["view_007.jpg", "", "../secret.jpg", "."])
def test_a_photograph_without_a_map(folder, name):
    np.save(folder.parent / "secret.npy", np.ones((1, 1, 5), np.float32))
    with pytest.raises(FeaturesplatError, match="has no map"):
        made(folder).encode_image(IMAGE, name=name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 4, 6), np.float32), r"expected a map \[h, w, 5\], got \[3, 4, 6\]"),
        (np.ones((4, 5), np.float32), r"expected a map"),
        (np.ones((5, 3, 4), np.float32), r"expected a map"),
        (np.ones((0, 4, 5), np.float32), r"view_002\.npy"),
        (np.full((3, 4, 5), np.nan, np.float32), "60 that are NaN"),
        (np.full((3, 4, 5), np.inf, np.float16), "NaN or infinite"),
        (np.ones((3, 4, 5), np.float64), "expected float16 or float32, got float64"),
        (np.ones((3, 4, 5), np.uint8), "expected float16 or float32, got uint8"),
    ],
)
def test_a_map_that_is_wrong(folder, values, message):
    np.save(folder / "view_002.npy", values)
    with pytest.raises(FeaturesplatError, match=message):
        made(folder).encode_image(IMAGE, name="view_002.jpg")


def test_pickles_are_refused_unread(folder, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    np.save(folder / "view_002.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (folder / "view_003.npy").write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "boom").unlink(missing_ok=True)
    for name in ("view_002.jpg", "view_003.jpg"):
        with pytest.raises(FeaturesplatError, match="pickled"):
            made(folder).encode_image(IMAGE, name=name)
    assert not (tmp_path / "boom").exists()


def test_damaged_and_lying_files(folder):
    whole = (folder / "view_000.npy").read_bytes()
    (folder / "view_002.npy").write_bytes(whole[:-7])
    (folder / "view_003.npy").write_bytes(b"")
    (folder / "view_004.npy").write_bytes(whole.replace(b"(3, 4, 5), }    ", b"(30000, 4, 5), }"))
    (folder / "view_009.npy").write_bytes(whole.replace(b"(3, 4, 5)", b"(9, 4, (("))
    save_file({"a": torch.ones(2, 2, 5), "b": torch.ones(2, 2, 5)}, folder / "view_005.safetensors")
    save_file({"a": torch.ones(2, 2, 5, dtype=torch.float64)}, folder / "view_006.safetensors")
    (folder / "view_008.safetensors").write_bytes(b"\xff" * 20)
    for number in (2, 3, 4, 5, 6, 8, 9):
        with pytest.raises(FeaturesplatError, match=f"view_00{number}"):
            made(folder).encode_image(IMAGE, name=f"view_00{number}.jpg")


def test_text_that_is_wrong(folder):
    for rows, message in (
        (np.ones((3, 4), np.float32), r"expected \[P, 5\], got \[3, 4\]"),
        (np.ones((2, 5), np.float32), "has 2 rows"),
        (np.zeros((3, 5), np.float32), "finite rows that are not zero"),
        (np.ones((3, 5), np.int64), "expected float16 or float32"),
    ):
        np.save(folder / "text.npy", rows)
        with pytest.raises(FeaturesplatError, match=message):
            made(folder)
    (folder / "text.npy").unlink()
    with pytest.raises(FeaturesplatError, match=r"no text\.npy"):
        made(folder)
