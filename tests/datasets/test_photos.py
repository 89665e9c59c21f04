"""Photographs and videos without poses: structure from motion on the demo scene, whose true poses are known."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featuresplat.config import DataConfig
from featuresplat.datasets import _sfm, _sfm_worker, photos, video
from featuresplat.errors import FeaturesplatError

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"
needs_pycolmap = pytest.mark.skipif(
    _sfm.importlib.util.find_spec("pycolmap") is None, reason="pycolmap (extra sfm) is not installed"
)
needs_av = pytest.mark.skipif(_sfm.importlib.util.find_spec("av") is None, reason="PyAV (extra video) is not installed")


def quiet(text: str, done: int, total: int) -> None:
    """A progress callback, to keep bars out of the tests' output."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATURESPLAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copy_demo(folder: Path, step: int = 1) -> Path:
    folder.mkdir(parents=True)
    for file in sorted((DEMO / "images").glob("*.jpg"))[::step]:
        shutil.copy2(file, folder)
    return folder


def demo_poses() -> dict[str, np.ndarray]:
    """World-to-camera, OpenCV axes, by stem (the file holds camera-to-world with OpenGL axes)."""
    frames = json.loads((DEMO / "transforms.json").read_text())["frames"]
    flip = np.diag([1.0, -1.0, -1.0, 1.0])
    return {Path(f["file_path"]).stem: np.linalg.inv(np.array(f["transform_matrix"]) @ flip) for f in frames}


def pose_errors(recording) -> tuple[np.ndarray, np.ndarray]:
    """(degrees, position error over the mean distance from the centre) after the best similarity (Umeyama 1991)."""
    truth = demo_poses()
    got = np.stack([f.viewmat for f in recording.frames])
    want = np.stack([truth[Path(f.name).stem] for f in recording.frames])
    a, b = (-np.einsum("nji,nj->ni", m[:, :3, :3], m[:, :3, 3]) for m in (got, want))
    da, db = a - a.mean(0), b - b.mean(0)
    u, d, vt = np.linalg.svd(db.T @ da)
    sign = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ sign @ vt
    scale = (d * np.diag(sign)).sum() / (da**2).sum()
    positions = np.linalg.norm(scale * da @ rotation.T - db, axis=1) / np.linalg.norm(db, axis=1).mean()
    relative = np.einsum("nji,njk->nik", want[:, :3, :3], got[:, :3, :3]) @ rotation.T
    cosine = (np.trace(relative, axis1=1, axis2=2) - 1) / 2
    return np.degrees(np.arccos(cosine.clip(-1, 1))), positions


@needs_pycolmap
def test_poses_match_the_truth_and_are_reused(tmp_path, cache, monkeypatch):
    # The layout with images/, one photograph stored on its side, one cut short, one mask and a note beside them.
    scene = tmp_path / "scene"
    folder = copy_demo(scene / "images")
    names = sorted(f.name for f in folder.iterdir())
    with Image.open(folder / names[3]) as image:
        sideways = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown after a quarter turn clockwise
        sideways.save(folder / names[3], exif=exif, quality=95)
    broken = folder / names[7]
    broken.write_bytes(broken.read_bytes()[:2000])
    (folder / "notes.txt").write_text("no photograph")
    (scene / "masks").mkdir()
    Image.new("L", (320, 240), 255).save(scene / "masks" / f"{Path(names[0]).stem}.png")
    before = {f: (f.stat().st_size, f.stat().st_mtime_ns) for f in scene.rglob("*")}

    steps: list[tuple[str, int, int]] = []
    with pytest.warns(UserWarning, match=f"cannot be read: {names[7]}"):
        recording = photos.read(scene, DataConfig(), lambda *step: steps.append(step))

    assert {f: (f.stat().st_size, f.stat().st_mtime_ns) for f in scene.rglob("*")} == before
    assert len(recording.frames) >= 37
    degrees, positions = pose_errors(recording)
    # Measured: 0.65 and 1.1 degrees, 0.011 and 0.023 of the distance, focal length 0.5 % short (views of 320 x 240).
    assert np.median(degrees) < 1.0
    assert degrees.max() < 2.0
    assert np.median(positions) < 0.02
    assert positions.max() < 0.05
    assert len({f.lens for f in recording.frames}) == 1  # one shared camera
    assert recording.frames[0].lens is not None
    assert recording.frames[0].lens.fx == pytest.approx(330, rel=0.03)
    upright = next(f for f in recording.frames if f.name == names[3])
    with Image.open(upright.image_path) as image:
        assert image.size == (320, 240)
        assert image.getexif().get(0x0112, 1) == 1
    assert recording.points is not None
    assert len(recording.points) > 200
    assert next(f for f in recording.frames if f.name == names[0]).mask_path == scene / "masks" / "view_000.png"
    texts = {text for text, _, _ in steps}
    assert {"reading photographs", "finding features", "matching pairs", "finding poses"} <= texts
    assert all(0 <= done <= total for _, done, total in steps)
    verdict = next(text for text in texts if text.startswith("poses: "))
    assert f"{len(recording.frames)} of 40 photographs registered" in verdict
    assert names[7] in verdict

    def no_second_run(*_):
        raise AssertionError("the second run must take the result of the first")

    monkeypatch.setattr(_sfm, "_run_worker", no_second_run)
    with pytest.warns(UserWarning, match="cannot be read"):
        again = photos.read(scene, DataConfig(), quiet)
    assert all(np.array_equal(a.viewmat, b.viewmat) for a, b in zip(recording.frames, again.frames, strict=True))


@needs_pycolmap
def test_sets_too_large_for_all_pairs_match_chosen_pairs(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(_sfm, "EXHAUSTIVE", 10)
    monkeypatch.setattr(_sfm, "WINDOW", 4)
    monkeypatch.setattr(_sfm, "SIMILAR", 14)
    recording = photos.read(copy_demo(tmp_path / "scene"), DataConfig(), quiet)
    assert len(recording.frames) >= 36
    assert pose_errors(recording)[0].max() < 3.0
    (listing,) = cache.glob("sfm/*/pairs.txt")
    pairs = listing.read_text().splitlines()
    with sqlite3.connect(listing.with_name("database.db")) as db:
        assert db.execute("SELECT count(*) FROM two_view_geometries").fetchone()[0] == len(pairs) < 780 * 0.8


def test_chosen_pairs_are_neighbours_powers_of_two_and_look_alikes():
    # Five images: 0 and 3 look alike, the others share nothing. Window 1: 01 12 23 34; steps of 2: 02 13 24; of 4: 04.
    histograms = np.eye(5, dtype=np.float32)
    histograms[3] = histograms[0]
    assert _sfm_worker.chosen_pairs(histograms, 1, 0) == [
        (0, 1),
        (0, 2),
        (0, 4),
        (1, 2),
        (1, 3),
        (2, 3),
        (2, 4),
        (3, 4),
    ]
    assert (0, 3) in _sfm_worker.chosen_pairs(histograms, 1, 1)


def test_cameras_are_grouped_by_size_and_exif(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    target.mkdir()

    def save(name: str, size: tuple[int, int], focal: float | None = None, turn: int = 1) -> None:
        exif = Image.Exif()
        exif[0x0112] = turn
        if focal is not None:
            exif.get_ifd(0x8769)[0x920A] = focal
        Image.new("RGB", size, "red").save(source / name, exif=exif)

    save("a.jpg", (40, 30), 4.5)
    save("b.jpg", (40, 30), 4.5)
    save("c.jpg", (40, 30), 9.0)  # zoomed
    save("d.jpg", (30, 40), 4.5, turn=8)  # on its side: 40 x 30 once upright
    save("e.jpg", (20, 30))
    groups, unreadable = photos.prepare(photos.list_photos(source), target, quiet)
    assert sorted(groups) == [["a.jpg", "b.jpg", "d.jpg"], ["c.jpg"], ["e.jpg"]]
    assert unreadable == []
    with Image.open(target / "d.jpg") as image:  # the focal length survives the turning
        assert image.size == (40, 30)
        assert float(image.getexif().get_ifd(0x8769)[0x920A]) == 4.5


@needs_pycolmap
@needs_av
def test_video(tmp_path):
    film = write_film(tmp_path / "film.mp4", [Image.open(f) for f in sorted((DEMO / "images").glob("*.jpg"))])
    assert video.detect(film)
    assert not photos.detect(film)
    recording = video.read(film, DataConfig(), quiet)
    assert 36 <= len(recording.frames) <= 40
    assert all(f.image_path.is_file() and f.name.startswith("frame_") for f in recording.frames)
    for frame in recording.frames:
        frame.name = f"view_{int(frame.name[6:12]):03d}.jpg"
    assert np.median(pose_errors(recording)[0]) < 2.0


@needs_av
def test_the_sharpest_frame_of_an_interval_is_taken_and_blank_ones_are_not(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)).resize((320, 240))
    soft, black = noise.resize((40, 30)).resize((320, 240)), Image.new("RGB", (320, 240))
    film = write_film(tmp_path / "film.mp4", [soft, noise, noise, soft, soft, noise, black, black])
    (tmp_path / "out").mkdir()
    names = video.extract_frames(film, tmp_path / "out", 4, quiet)
    assert names == ["frame_000001.jpg", "frame_000002.jpg", "frame_000005.jpg"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == names


def test_sharpness_of_a_known_image():
    # A single 3 on a 5x5 zero field: the Laplacian over the inner 3x3 is -12 in the middle, 3 at its four neighbours:
    # mean 0, variance (144 + 4 * 9) / 9 = 20.
    grey = np.zeros((5, 5), np.uint8)
    grey[2, 2] = 3
    assert video.sharpness(grey) == pytest.approx(20.0)


def write_film(path: Path, images: list[Image.Image]) -> Path:
    import av

    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        stream.bit_rate = 8_000_000
        for image in images:
            film.mux(stream.encode(av.VideoFrame.from_image(image)))
        film.mux(stream.encode())
    return path


def test_detect(tmp_path):
    assert photos.detect(DEMO / "images")
    assert not photos.detect(DEMO)
    assert not photos.detect(tmp_path)
    assert not photos.detect(tmp_path / "missing")
    assert not video.detect(tmp_path / "missing.mp4")
    scene = copy_demo(tmp_path / "scene" / "images", 20).parent
    assert photos.detect(scene)
    (scene / "sparse").mkdir()
    assert not photos.detect(scene)


def test_two_photographs_are_too_few(tmp_path):
    with pytest.raises(FeaturesplatError, match="at least 3 photographs, found 2"):
        photos.read(copy_demo(tmp_path / "two", 20), DataConfig(), quiet)


@needs_pycolmap
def test_photographs_that_cannot_be_read_do_not_count(tmp_path):
    folder = copy_demo(tmp_path / "three", 15)
    (folder / "view_015.jpg").write_text("not a jpeg")
    with pytest.raises(FeaturesplatError, match=r"found 2 that can be read \(view_015\.jpg cannot"):
        photos.read(folder, DataConfig(), quiet)


@needs_pycolmap
def test_black_photographs_say_what_to_do(tmp_path):
    for k in range(4):
        Image.new("RGB", (160, 120)).save(tmp_path / f"{k}.png")
    with pytest.raises(FeaturesplatError, match="0 of 4 photographs registered") as caught:
        photos.read(tmp_path, DataConfig(), quiet)
    assert "overlap" in caught.value.hint
    assert "0.png" in caught.value.message


@needs_pycolmap
@needs_av
def test_a_text_file_is_no_video(tmp_path):
    (tmp_path / "film.mp4").write_text("these are not the frames you are looking for")
    with pytest.raises(FeaturesplatError, match=r"film\.mp4: is not a video that can be read"):
        video.read(tmp_path / "film.mp4", DataConfig(), quiet)


@needs_pycolmap
@needs_av
def test_a_black_video_has_no_usable_frames(tmp_path):
    film = write_film(tmp_path / "film.mp4", [Image.new("RGB", (320, 240))] * 6)
    with pytest.raises(FeaturesplatError, match="holds 0 usable frames of 6"):
        video.read(film, DataConfig(), quiet)


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(_sfm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FeaturesplatError, match="needs pycolmap") as caught:
        photos.read(copy_demo(tmp_path / "scene", 10), DataConfig(), quiet)
    assert "featuresplat[sfm]" in caught.value.hint
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(FeaturesplatError, match="needs PyAV") as caught:
        video.read(tmp_path / "film.mp4", DataConfig(), quiet)
    assert "featuresplat[video" in caught.value.hint


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_native_abort_is_told_and_leaves_a_clean_start(tmp_path, monkeypatch):
    (tmp_path / "database.db").write_bytes(b"half a database")
    (tmp_path / "features.done").touch()
    start = subprocess.Popen

    def aborting(arguments, **options):
        code = "import os, sys; print('SIFT exploded', file=sys.stderr, flush=True); os.abort()"
        return start([sys.executable, "-c", code], **options)

    monkeypatch.setattr(_sfm.subprocess, "Popen", aborting)
    with pytest.raises(FeaturesplatError, match="ended by SIGABRT while looking for poses: SIFT exploded"):
        _sfm._run_worker(tmp_path, quiet)
    assert not (tmp_path / "database.db").exists()
    assert not (tmp_path / "features.done").exists()


def test_a_search_without_end_is_ended(tmp_path, monkeypatch):
    start, workers = subprocess.Popen, []

    def endless(arguments, **options):
        workers.append(start([sys.executable, "-c", "while True: pass"], **options))
        return workers[0]

    monkeypatch.setattr(_sfm.subprocess, "Popen", endless)
    with pytest.raises(FeaturesplatError, match="no poses were found within 0 minutes") as caught:
        _sfm._run_worker(tmp_path, quiet, patience=0.0)
    assert "Film slowly" in caught.value.hint
    assert workers[0].poll() is not None


def test_poor_registration_warns_and_names_the_failed(recwarn):
    bad = _sfm.Verdict(["a.jpg", "b.jpg", "c.jpg"], [f"{k:02d}.jpg" for k in range(12)], [3, 3], 99, 0.5, 1)
    with pytest.warns(UserWarning, match="3 of 15 photographs registered") as caught:
        _sfm._judge(bad, [], quiet)
    text = str(caught[0].message)
    assert "09.jpg and 2 more" in text
    assert "10.jpg" not in text
    assert "2 separate models" in text
    assert "overlap" in text
    good = _sfm.Verdict([f"{k}.jpg" for k in range(9)], ["x.jpg"], [9], 99, 0.5, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _sfm._judge(good, [], quiet)


@needs_pycolmap
@pytest.mark.parametrize(("name", "mode"), [("a.webp", "RGB"), ("a b.jpg", "CMYK"), ("a.png", "P"), ("a.TIFF", "L")])
def test_what_colmap_cannot_decode_is_rewritten_under_its_name(tmp_path, name, mode):
    import pycolmap

    (tmp_path / "out").mkdir()
    grey = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    Image.fromarray(grey).convert("RGB").convert(mode).save(tmp_path / name)
    groups, unreadable = photos.prepare(photos.list_photos(tmp_path), tmp_path / "out", quiet)
    assert groups == [[name]]
    assert unreadable == []
    bitmap = pycolmap.Bitmap.read(str(tmp_path / "out" / name), as_rgb=True)
    assert bitmap is not None
    with Image.open(tmp_path / name) as image:  # what Pillow sees: making a palette dithers
        want = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(bitmap.to_array() - want).max() <= 8
