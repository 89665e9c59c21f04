"""The process that runs COLMAP: an abort in native code, or a kill, ends it and not the training.

Started by :mod:`featuresplat.datasets._sfm` as a plain script with one argument, a JSON file of settings. It
imports nothing of featuresplat (no torch: starts in a blink, no second OpenMP runtime). It reports on stdout, one
JSON object a line: ``{"text", "done", "total"}`` for progress, with ``"watch"`` the table of the database whose rows
tell how far the step is. COLMAP's own log goes to stderr.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

WORDS = 256
"""Size of the visual vocabulary that a photograph set gets of its own."""


def main(settings_path: str) -> None:
    """Features, matches, poses; leaves ``sparse/0`` and ``verdict.json`` in the work folder."""
    settings = json.loads(Path(settings_path).read_text(encoding="utf-8"))
    import pycolmap

    pycolmap.set_random_seed(0)
    work = Path(settings["work"])
    names = [name for group in settings["groups"] for name in group]
    _features(pycolmap, work, settings["groups"], len(names), settings)
    _matches(pycolmap, work, sorted(names), settings)
    _poses(pycolmap, work, len(names), settings["threads"])


def _say(text: str, done: int, total: int) -> None:
    print(json.dumps({"text": text, "done": min(done, total), "total": total}), flush=True)


@contextmanager
def _counted(table: str, text: str, total: int) -> Iterator[None]:
    """Ask the parent to count the rows of ``table`` meanwhile: COLMAP has no callback for these steps.

    Not counted here: this process holds two copies of SQLite (Python's and COLMAP's), and closing a file in one drops
    the locks of the other (sqlite.org/howtocorrupt.html, 2.2.1); that ended in a SIGBUS.
    """
    print(json.dumps({"watch": table, "text": text, "done": 0, "total": total}), flush=True)
    yield
    _say(text, total, total)


def _features(pycolmap: Any, work: Path, groups: list[list[str]], total: int, settings: dict) -> None:
    """SIFT on the CPU; each group of photographs shares one camera, whose focal length starts from EXIF."""
    database, finished = work / "database.db", work / "features.done"
    if finished.exists():
        return
    for stale in work.glob("database.db*"):
        stale.unlink()
    options = pycolmap.FeatureExtractionOptions()
    options.max_image_size = settings["max_image_size"]
    options.num_threads = settings["threads"]
    options.use_gpu = False
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = settings["camera_model"]
    if (work / "motion").is_dir():  # NAME.png: black where things move, which says nothing about the camera
        reader.mask_path = work / "motion"
    with _counted("descriptors", "finding features", total):
        for group in groups:
            pycolmap.extract_features(
                database,
                work / "images",
                image_names=group,
                camera_mode=pycolmap.CameraMode.SINGLE,
                reader_options=reader,
                extraction_options=options,
                device=pycolmap.Device.cpu,
            )
    finished.touch()


def _matches(pycolmap: Any, work: Path, names: list[str], settings: dict) -> None:
    """All pairs of a small set; else the neighbours by name and the most similar ones. Pairs done are kept."""
    database = work / "database.db"
    options = pycolmap.FeatureMatchingOptions()
    options.num_threads = settings["threads"]
    options.use_gpu = False
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = 0
    shared = {"matching_options": options, "verification_options": verification, "device": pycolmap.Device.cpu}
    count = len(names)
    text = "matching pairs"
    if count <= settings["exhaustive"]:
        with _counted("two_view_geometries", text, count * (count - 1) // 2):
            pycolmap.match_exhaustive(database, **shared)
    elif any(any(c.isspace() for c in name) for name in names):
        # COLMAP's list of pairs is separated by spaces, so such names cannot be written into it.
        with _counted("two_view_geometries", text, 10 * count):
            pycolmap.match_sequential(database, **shared)
    else:
        pairs = chosen_pairs(_histograms(database, names), settings["window"], settings["similar"])
        listing = work / "pairs.txt"
        listing.write_text("".join(f"{names[a]} {names[b]}\n" for a, b in pairs), encoding="utf-8")
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = listing
        with _counted("two_view_geometries", text, len(pairs)):
            pycolmap.match_image_pairs(database, pairing_options=pairing, **shared)


def _histograms(database: Path, names: list[str]) -> np.ndarray:
    """One bag of visual words per photograph, [C, WORDS], tf-idf weighted and of unit length.

    The vocabulary is learnt from the set itself (k-means on a sample of its SIFT descriptors), so none has to be
    downloaded.
    """
    # COLMAP has closed the file at this point, see `_counted`.
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
        rows = db.execute(
            "SELECT images.name, descriptors.rows, descriptors.cols, descriptors.data"
            " FROM images JOIN descriptors USING (image_id)"
        ).fetchall()
    found = {name: np.frombuffer(data, np.uint8).reshape(r, c) for name, r, c, data in rows if r and data}
    random = np.random.default_rng(0)
    empty = np.zeros((0, 128), np.uint8)
    some = [random.permutation(found.get(name, empty))[:1000].astype(np.float32) for name in names]
    sample = random.permutation(np.concatenate(some))[:20_000]
    if len(sample) < WORDS:
        return np.zeros((len(names), WORDS), np.float32)
    words = sample[:WORDS].copy()
    for _ in range(8):
        label = _nearest(sample, words)
        sizes = np.bincount(label, minlength=WORDS)
        sums = np.zeros_like(words)
        np.add.at(sums, label, sample)
        words = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], words)
    counts = np.stack([np.bincount(_nearest(s, words), minlength=WORDS) for s in some]).astype(np.float32)
    weight = np.log((1 + len(names)) / (1 + (counts > 0).sum(0)))
    weighted = np.sqrt(counts) * np.maximum(weight, 0.05)
    return weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)


def _nearest(descriptors: np.ndarray, words: np.ndarray) -> np.ndarray:
    """Index of the nearest word of each descriptor: argmin |d - w|^2 = argmax (d.w - |w|^2 / 2)."""
    return np.argmax(descriptors @ words.T - 0.5 * (words**2).sum(1), axis=1) if len(descriptors) else np.zeros(0, int)


def chosen_pairs(histograms: np.ndarray, window: int, similar: int) -> list[tuple[int, int]]:
    """Pairs (a < b) worth matching: up to ``window`` apart, at powers of two apart, or among the ``similar`` most
    alike of either; [C, W] unit histograms in the order of the names."""
    count = len(histograms)
    pairs = {(a, b) for a in range(count) for b in range(a + 1, min(a + window + 1, count))}
    step = 1
    while step < count:
        pairs |= {(a, a + step) for a in range(count - step)}
        step *= 2
    alike = histograms @ histograms.T
    np.fill_diagonal(alike, -1)
    for a in range(count):
        pairs |= {(min(a, b), max(a, b)) for b in np.argsort(-alike[a], kind="stable")[:similar].tolist() if b != a}
    return sorted(pairs)


def _poses(pycolmap: Any, work: Path, total: int, threads: int) -> None:
    """Incremental mapping; the largest model is written to ``sparse/0`` in COLMAP's binary form."""
    text = "finding poses"
    options = pycolmap.IncrementalPipelineOptions()
    options.min_model_size = 3  # the default of 10 drops small sets silently
    options.num_threads = threads
    options.random_seed = 0
    registered = 0

    def one_more() -> None:
        nonlocal registered
        registered += 1
        _say(text, registered, total)

    models_folder = work / "models"
    shutil.rmtree(models_folder, ignore_errors=True)
    models_folder.mkdir()
    _say(text, 0, total)
    models = pycolmap.incremental_mapping(
        work / "database.db", work / "images", models_folder, options=options, next_image_callback=one_more
    )
    order = sorted(models.values(), key=lambda m: (m.num_reg_images(), m.num_points3D()), reverse=True)
    verdict: dict[str, Any] = {"registered": [], "models": [m.num_reg_images() for m in order], "points": 0}
    if order:
        best = order[0]
        shutil.rmtree(work / "sparse", ignore_errors=True)
        (work / "sparse" / "0").mkdir(parents=True)
        best.write_binary(work / "sparse" / "0")
        verdict["registered"] = sorted(best.image(i).name for i in best.reg_image_ids())
        verdict["points"] = best.num_points3D()
        verdict["error"] = best.compute_mean_reprojection_error()
        verdict["cameras"] = best.num_cameras()
    _say(text, total, total)
    shutil.rmtree(models_folder, ignore_errors=True)
    (work / "verdict.json.new").write_text(json.dumps(verdict), encoding="utf-8")
    (work / "verdict.json.new").replace(work / "verdict.json")


if __name__ == "__main__":
    # As a script its own folder comes first on the path; modules beside it must not pass for top-level ones.
    sys.path.pop(0)
    main(sys.argv[1])
