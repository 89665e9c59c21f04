"""Checkpoints: exact, resumable, and the last good one survives a full disk and a damaged file."""

from __future__ import annotations

import errno
import os
import random
import resource
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io import atomic
from featuresplat.io.checkpoint import (
    CorruptCheckpoint,
    checkpoint_path,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from featuresplat.io.rng_state import capture_rng, restore_rng
from featuresplat.io.tensors import read_tensors, write_tensors


def save(folder, step: int, **meta):
    path = checkpoint_path(folder, step)
    save_checkpoint(path, {"means": torch.full((3,), float(step))}, {"step": step, **meta})
    return path


def test_nested_tensors_and_words_come_back_exactly(tmp_path):
    shared = torch.randn(4, 3)
    tensors = {
        "means": shared,
        "view": shared[1:],  # shares memory with means
        "transposed": torch.randn(2, 5).T,
        "adam": {"means": {"exp_avg": torch.randn(4, 3, dtype=torch.float64), "step": torch.tensor(7.0)}},
        "counts": torch.arange(5),
        "mask": torch.tensor([True, False]),
        "half": torch.randn(3).bfloat16(),
        "none": torch.zeros(0, 3),
        "special": torch.tensor([float("nan"), float("inf"), -0.0]),
    }
    meta = {
        "step": 12,
        "best": 24.123456789012345,
        "worst": float("inf"),
        "names": ["a", "ü"],
        "on": True,
        "x": None,
    }
    path = tmp_path / "checkpoints" / "12.safetensors"
    save_checkpoint(path, tensors, meta)
    back = load_checkpoint(path)
    assert back.meta == meta
    assert back.path == path
    assert set(back.tensors) == set(tensors)
    for got, want in (
        *((back.tensors[k], tensors[k]) for k in tensors if k != "adam"),
        (back.tensors["adam"]["means"]["exp_avg"], tensors["adam"]["means"]["exp_avg"]),
        (back.tensors["adam"]["means"]["step"], tensors["adam"]["means"]["step"]),
    ):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.contiguous().reshape(-1).view(torch.uint8).tolist() == (
            want.contiguous().reshape(-1).view(torch.uint8).tolist()
        )


def test_a_resumed_optimiser_takes_the_same_steps(tmp_path):
    def training():
        value = torch.nn.Parameter(torch.ones(5))
        return value, torch.optim.Adam([value], lr=0.1)

    def steps(value, adam, count):
        for _ in range(count):
            adam.zero_grad()
            ((value - torch.rand(5)) ** 2).sum().backward()
            adam.step()

    torch.manual_seed(3)
    whole = training()
    steps(*whole, 10)
    torch.manual_seed(3)
    first = training()
    steps(*first, 6)
    tensors, words = capture_rng()
    moments = {k: v for k, v in first[1].state[first[0]].items()}
    save_checkpoint(tmp_path / "6.safetensors", {"value": first[0], "adam": moments, "rng": tensors}, {"rng": words})
    torch.manual_seed(99)
    back, second = load_checkpoint(tmp_path / "6.safetensors"), training()
    with torch.no_grad():
        second[0].copy_(back.tensors["value"])
    second[1].state[second[0]] = back.tensors["adam"]
    restore_rng(back.tensors["rng"], back.meta["rng"])
    steps(*second, 4)
    assert torch.equal(second[0], whole[0])


def test_every_generator_continues_where_it_was(tmp_path):
    named = {
        "loader": torch.Generator().manual_seed(5),
        "numpy": np.random.default_rng(6),
        "py": random.Random(7),
    }
    named["mt"] = np.random.Generator(np.random.MT19937(8))

    def draw():
        own = [torch.rand(3, generator=named["loader"]).tolist(), named["py"].random(), named["mt"].random()]
        return [torch.rand(2).tolist(), np.random.rand(), random.gauss(0, 1), named["numpy"].normal(), *own]

    draw()  # odd counts of normals leave a cached one behind, which must be kept as well
    tensors, words = capture_rng(named)
    save_checkpoint(tmp_path / "1.safetensors", {"rng": tensors}, {"rng": words})
    expected = draw()
    draw()
    back = load_checkpoint(tmp_path / "1.safetensors")
    restore_rng(back.tensors["rng"], back.meta["rng"], named)
    assert draw() == expected
    with pytest.raises(FeaturesplatError, match="random generators do not fit"):
        restore_rng(back.tensors["rng"], {}, named)


def test_the_latest_is_the_highest_step_not_the_last_name(tmp_path):
    assert latest_checkpoint(tmp_path / "none") is None
    assert latest_checkpoint(tmp_path) is None
    for step in (900, 1000, 20):
        save(tmp_path, step)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / ".2000.0123abcd.tmp.safetensors").write_bytes(b"a killed write")
    assert latest_checkpoint(tmp_path) == tmp_path / "1000.safetensors"


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "long header", "foreign"])
def test_a_damaged_newest_is_skipped_with_a_warning(tmp_path, damage):
    good, bad = save(tmp_path, 100), save(tmp_path, 200)
    data = bad.read_bytes()
    if damage == "foreign":
        write_tensors(bad, {"a": torch.zeros(2)})
    else:
        new = {
            "cut": data[:-1],
            "empty": b"",
            "garbage": b"\x80\x04" * 50,
            "long header": struct.pack("<Q", 2**60),
        }
        bad.write_bytes(new[damage])
    with pytest.warns(UserWarning, match=r"200\.safetensors: .*Skipped; the checkpoint before it is taken"):
        assert latest_checkpoint(tmp_path) == good
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(bad)
    good.unlink()
    none = pytest.raises(FeaturesplatError, match="none of the 1 checkpoints can be read")
    with pytest.warns(UserWarning, match="Skipped"), none:
        latest_checkpoint(tmp_path)


def test_a_newer_format_is_an_error_not_a_damage(tmp_path):
    save(tmp_path, 1)
    words = {"format": "featuresplat.checkpoint", "version": "2", "meta": "{}"}
    write_tensors(tmp_path / "2.safetensors", {"a": torch.zeros(1)}, words)
    for call in (lambda: latest_checkpoint(tmp_path), lambda: load_checkpoint(tmp_path / "2.safetensors")):
        with pytest.raises(FeaturesplatError, match="written in checkpoint format 2; the newest known here is 1"):
            call()


def test_pruning_keeps_the_newest_and_clears_what_killed_writes_left(tmp_path):
    for step in (10, 200, 3000):
        save(tmp_path, step)
    (tmp_path / ".4000.0123abcd.tmp.safetensors").write_bytes(b"half")
    (tmp_path / "mine.safetensors").write_bytes(b"not a step")
    assert prune_checkpoints(tmp_path, keep=2) == [tmp_path / "10.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "200.safetensors",
        "3000.safetensors",
        "mine.safetensors",
    ]
    with pytest.raises(FeaturesplatError, match="keep: expected at least 1"):
        prune_checkpoints(tmp_path, keep=0)


def test_a_full_disk_at_the_flush_keeps_the_last_good_one(tmp_path, monkeypatch):
    good = save(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    for step in (1, 2):  # over the old one, and beside it
        with pytest.raises(FeaturesplatError, match=rf"{step}\.safetensors: the disk is full; .* untouched"):
            save(tmp_path, step, other=True)
    assert list(tmp_path.iterdir()) == [good]
    assert load_checkpoint(good).meta == {"step": 1}


def test_a_disk_that_fills_up_within_the_write_keeps_the_last_good_one(tmp_path):
    """A real failing write: the process may not write files above 64 kB."""
    good = save(tmp_path, 1)
    code = (
        "import resource, sys, torch\n"
        "from featuresplat.errors import FeaturesplatError\n"
        "from featuresplat.io.checkpoint import save_checkpoint\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "try:\n    save_checkpoint(sys.argv[1], {'big': torch.zeros(100_000)}, {})\n"
        "except FeaturesplatError as error:\n    print(error.message)\n"
    )
    path = tmp_path / "2.safetensors"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert run.stdout == f"{path}: the disk is full; what was written before is untouched.\n", run.stderr
    assert list(tmp_path.iterdir()) == [good]
    assert latest_checkpoint(tmp_path) == good
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 65536


def test_wrong_keys_and_leaves_are_programming_errors(tmp_path):
    for tensors in ({"a/b": torch.zeros(1)}, {3: torch.zeros(1)}, {"a": [1.0]}):
        with pytest.raises(TypeError):
            save_checkpoint(tmp_path / "1.safetensors", tensors, {})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "1.safetensors", {}, {"t": torch.zeros(1)})
    assert list(tmp_path.iterdir()) == []


def test_missing_files(tmp_path):
    with pytest.raises(FeaturesplatError, match="there is no such checkpoint"):
        load_checkpoint(tmp_path / "1.safetensors")
    with pytest.raises(FeaturesplatError, match="there is no such file"):
        read_tensors(tmp_path / "1.safetensors")
