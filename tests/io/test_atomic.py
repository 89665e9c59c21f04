"""Atomic writes keep the old file whatever happens; stored paths stay inside their folder."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from featuresplat.errors import FeaturesplatError
from featuresplat.io import atomic
from featuresplat.io.atomic import (
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    check_folder,
    make_folder,
)
from featuresplat.io.safe_paths import inside


def test_writes_replace_and_leave_nothing_else(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    atomic_write_json(path, {"a": [1.5, "ü"]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, "ü"]}
    atomic_write_text(path, "second\n")
    atomic_write_bytes(path, b"third")
    assert path.read_bytes() == b"third"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_the_temporary_file_lies_beside_hidden_with_the_same_ending(tmp_path):
    with atomic_path(tmp_path / "film.mp4") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".film.")
        assert temporary.suffix == ".mp4"
        temporary.write_bytes(b"x")
        assert not (tmp_path / "film.mp4").exists()
    assert (tmp_path / "film.mp4").exists()


def test_a_failing_block_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half_a_write():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        half_a_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EIO, "could not be written"),
    ],
)
def test_errors_of_the_system_become_sentences(tmp_path, monkeypatch, call, code, words):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, call, fail)
    with pytest.raises(FeaturesplatError, match=rf"a\.txt: .*{words}.*before is untouched") as caught:
        atomic_write_text(path, "new")
    assert caught.value.hint
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").write_text("file")
    for path in (tmp_path / "a", tmp_path / "b" / "c.txt"):
        with pytest.raises(FeaturesplatError, match="in the place of the file"):
            atomic_write_text(path, "x")


def test_a_folder_is_looked_at_before_long_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    check_folder(tmp_path)
    check_folder(tmp_path / "not" / "yet" / "there")
    assert not (tmp_path / "not").exists()
    for place in ("file", "file/below/it"):
        with pytest.raises(FeaturesplatError, match="in the place of the file"):
            check_folder(tmp_path / place)
        with pytest.raises(FeaturesplatError, match="in the place of the file"):
            make_folder(tmp_path / place)
    monkeypatch.setattr(atomic.os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(FeaturesplatError, match="no permission to write there"):
        check_folder(tmp_path / "new")
    assert make_folder(tmp_path / "a" / "b").is_dir()


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import sys, time\nfrom featuresplat.io.atomic import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n"
        "    t.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.send_signal(signal.SIGKILL)
        child.wait(10)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    "stored",
    ["/etc/passwd", "../other", "a/../../b", "..", "C:\\x", "C:x", "\\\\host\\share", "a\\..\\b", "~/x"],
)
def test_paths_that_point_outside(tmp_path, stored):
    with pytest.raises(FeaturesplatError, match="points outside of the folder") as caught:
        inside(tmp_path, stored)
    assert stored in caught.value.message


@pytest.mark.parametrize("stored", ["", "a\0b", 3, None])
def test_paths_that_are_none(tmp_path, stored):
    with pytest.raises(FeaturesplatError, match="expected a file name"):
        inside(tmp_path, stored)


def test_links_may_stay_inside_but_not_leave(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "real").mkdir()
    (run / "in").symlink_to(run / "real")
    (run / "out").symlink_to(outside)
    assert inside(run, "in/a.ply") == run / "in/a.ply"
    assert inside(run, "sub/not yet there.ply") == run / "sub/not yet there.ply"
    with pytest.raises(FeaturesplatError, match="is a link that leads outside"):
        inside(run, "out/a.ply")
