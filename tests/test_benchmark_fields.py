"""The benchmark of fields: its teacher, its table, and the command it remembers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from benchmark_scripts import load
from PIL import Image


@pytest.fixture(scope="module")
def fields():
    return load("fields")


@pytest.fixture
def truth(fields, tmp_path, monkeypatch):
    """Two objects on a background, in two images; sentences are rows of a unit matrix."""

    class Sentences:
        def encode(self, phrases):
            return torch.eye(len(phrases), 8)

    monkeypatch.setattr(fields, "SentenceEncoder", Sentences)
    objects = [{"index": 1, "name": "mug"}, {"index": 2, "name": "duck"}]
    (tmp_path / "meta.json").write_text(json.dumps({"objects": objects}))
    (tmp_path / "instance").mkdir()
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 2:5], labels[:, 5:] = 1, 2
    for name in ("a", "b"):
        Image.fromarray(labels).save(tmp_path / "instance" / f"{name}.png")
    return fields.Truth(tmp_path, 0)


def test_mislabelled_masks_take_another_objects_name_whole(truth):
    labels = truth.labels("a.png")
    seen = set()
    for _ in range(40):
        found = truth.mislabelled(labels, 0.5)
        assert bool((found[labels == 0] == 0).all())
        for k in (1, 2):
            (value,) = found[labels == k].unique().tolist()
            seen.add((k, value))
    assert seen == {(1, 1), (1, 2), (2, 2), (2, 1)}
    assert torch.equal(truth.mislabelled(labels, 0.0), labels)


def test_the_folder_is_one_that_the_teacher_reads(truth, tmp_path):
    from featuresplat.config_fields import TeacherConfig
    from featuresplat.teachers import make_teacher

    truth.write(tmp_path / "maps", 2)
    teacher = make_teacher("precomputed", TeacherConfig("precomputed", tmp_path / "maps"))
    found = teacher.encode_image(torch.zeros(6, 8, 3), name="images/b.jpg")
    assert found.shape == (3, 4, 8)
    assert torch.equal(found[0, 0], truth.vectors[0])
    assert torch.equal(found[2, 3], truth.vectors[2])
    assert torch.equal(teacher.encode_text(["duck"])[0], truth.vectors[2])  # pyright: ignore


def test_seeds_measured_one_after_the_other_make_one_table(fields):
    def row(seed, value):
        return {"rows": {"mean, clean": {k: {seed: value} for k in ("rendered", "gaussians", "cpu")}}}

    both = fields.merged({"commit": "a", **row("0", 0.5)}, {"commit": "b", **row("1", 0.7)})
    assert both["commit"] == "b"
    assert "0.600 (>= 0.500)" in fields.table(both["rows"])


def test_the_command_is_told_without_places(fields):
    command = fields.command
    said = command(["/home/me/benchmarks/fields.py", "truth", "/data/runs/x", "--json", "/data/y.json", "--seeds", "1"])
    assert said == "python benchmarks/fields.py truth x --seeds 1"
    assert command(["b/p.py", "--ask", "mug=a red mug"]) == 'python benchmarks/p.py --ask "mug=a red mug"'
