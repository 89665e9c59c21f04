"""Structure from motion: photographs without poses in, a COLMAP folder and a verdict out.

The work is done in a folder of the cache (``$FEATURESPLAT_CACHE``, else ``$XDG_CACHE_HOME/featuresplat``, else
``~/.cache/featuresplat``), named after what the photographs are, so that nothing is written beside them and a
second run starts at once; an interrupted one goes on after the features and pairs that it has. COLMAP itself runs in
a process of its own (:mod:`featuresplat.datasets._sfm_worker`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from featuresplat.errors import FeaturesplatError

if TYPE_CHECKING:
    from featuresplat.datasets._recording import Recording

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, total)."""

VERSION = 1
"""Part of the cache key: raise it when the settings below change what comes out."""
MAX_FEATURE_SIZE = 1600
EXHAUSTIVE = 150
WINDOW, SIMILAR = 10, 20
WORST_SHARE = 0.8
PATIENCE = 12.0
"""Seconds a frame of a video that the search for poses may take: some films have none to find, and it would go on."""
ADVICE = (
    "Take more photographs with more overlap (each thing in at least three, small steps between them), sharp, of a"
    " scene with texture, standing still, with one camera at one focal length."
)


@dataclass(frozen=True)
class Verdict:
    """What structure from motion came to.

    ``registered`` and ``failed`` are file names; ``models`` the photographs in each separate model found, largest
    first (the largest is used); ``error`` the mean reprojection error in pixels of the photographs.
    """

    registered: list[str]
    failed: list[str]
    models: list[int]
    points: int
    error: float
    cameras: int

    def __str__(self) -> str:
        total = len(self.registered) + len(self.failed)
        text = f"{len(self.registered)} of {total} photographs registered"
        if self.registered:
            text += (
                f" ({self.points} points, mean reprojection error {self.error:.2f} px, {self.cameras}"
                f" camera{'s' if self.cameras != 1 else ''})"
            )
        if len(self.models) > 1:
            text += f"; {len(self.models)} separate models of {self.models} photographs were found, the largest is used"
        if self.failed:
            more = f" and {len(self.failed) - 10} more" if len(self.failed) > 10 else ""
            text += f"; not registered: {', '.join(self.failed[:10])}{more}"
        return text + "."


def require_pycolmap() -> None:
    """Raises: FeaturesplatError when pycolmap is not installed."""
    if importlib.util.find_spec("pycolmap") is None:
        raise FeaturesplatError(
            "finding poses of plain photographs needs pycolmap, which is not installed.",
            "pip install 'featuresplat[sfm]'",
        )


def work_folder(files: Iterable[Path], kind: str) -> Path:
    """The folder in the cache for these files, made if missing: named by a hash of names, sizes, times and places."""
    digest = hashlib.sha256(f"{VERSION} {kind}".encode())
    for file in files:
        stat = file.stat()
        digest.update(f"\0{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode(errors="surrogateescape"))
    own, xdg = os.environ.get("FEATURESPLAT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    cache = Path(own) if own else Path(xdg or Path.home() / ".cache") / "featuresplat"
    folder = cache.expanduser().absolute() / "sfm" / digest.hexdigest()[:16]
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeaturesplatError(
            f"{folder}: the cache folder cannot be made ({error.strerror}).",
            "Set FEATURESPLAT_CACHE to a folder that can be written to.",
        ) from error
    return folder


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """One process at a time in ``work``; a second waits and then finds the finished result. (No locks on Windows.)"""
    with open(work / "lock", "w") as file:
        with suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def reconstruct(
    work: Path, groups: list[list[str]], unreadable: list[str], progress: Progress, *, video: bool
) -> Verdict:
    """Poses for the images in ``work/images``; leaves a COLMAP model in ``work/sparse/0``.

    Args:
        work: from :func:`work_folder`; finished steps found in it are not repeated.
        groups: names in ``work/images``; each group was taken by one camera at one focal length.
        unreadable: names of files that had to be left out; they count as not registered.
        progress: see :data:`Progress`.
        video: frames in order of time: pairs are chosen among neighbours and look-alikes from 60 frames on.

    Raises:
        FeaturesplatError: pycolmap is missing or stopped, or fewer than three images were registered.
    """
    names = sorted(name for group in groups for name in group)
    if len(names) < 3:
        left_out = f" ({', '.join(unreadable[:10])} cannot be read)" if unreadable else ""
        raise FeaturesplatError(
            f"poses need at least 3 photographs, found {len(names)} that can be read{left_out}.", ADVICE
        )
    done = work / "verdict.json"
    if not done.is_file():
        require_pycolmap()
        settings = {
            "work": str(work),
            "groups": groups,
            "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            "max_image_size": MAX_FEATURE_SIZE,
            "camera_model": "SIMPLE_RADIAL",
            "exhaustive": 60 if video else EXHAUSTIVE,
            "window": WINDOW,
            "similar": SIMILAR,
        }
        (work / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
        _run_worker(work, progress, PATIENCE * max(len(names), 25) if video else math.inf)
    raw = json.loads(done.read_text(encoding="utf-8"))
    registered = raw["registered"]
    failed = sorted({*names, *unreadable} - set(registered))
    verdict = Verdict(
        registered, failed, raw["models"], raw["points"], raw.get("error", float("nan")), raw.get("cameras", 0)
    )
    _judge(verdict, unreadable, progress)
    return verdict


def timed(recording: Recording, names: list[str]) -> Recording:
    """The recording with times in 0..1: the places of its frames among ``names``, all that were taken, in order."""
    place = {name: k / max(len(names) - 1, 1) for k, name in enumerate(names)}
    for frame in recording.frames:
        frame.time = place[frame.name]
    return recording


def _judge(verdict: Verdict, unreadable: list[str], progress: Progress) -> None:
    """Raise when the result cannot be trained on, warn when it is poor, and say it in any case."""
    count, total = len(verdict.registered), len(verdict.registered) + len(verdict.failed)
    if count < 3:
        raise FeaturesplatError(f"structure from motion found no poses: {verdict}", ADVICE)
    logging.getLogger(__name__).info("structure from motion: %s", verdict)
    progress(f"poses: {verdict}", count, total)
    if count < WORST_SHARE * total:
        warnings.warn(f"structure from motion: {verdict} {ADVICE}", stacklevel=3)
    elif unreadable:
        warnings.warn(f"left out, because they cannot be read: {', '.join(unreadable[:10])}.", stacklevel=3)


def _run_worker(work: Path, progress: Progress, patience: float = math.inf) -> None:
    """Run the worker to its end, passing its progress on; it is ended when this process is interrupted, or when it has
    taken ``patience`` seconds."""
    script = Path(__file__).with_name("_sfm_worker.py")
    log = work / "colmap.log"
    with open(log, "w", encoding="utf-8") as errors:
        worker = subprocess.Popen(
            [sys.executable, str(script), str(work / "settings.json")],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        try:
            _relay(worker, work / "database.db", progress, patience)
            code = worker.wait()
        finally:
            if worker.poll() is None:
                worker.terminate()
                try:
                    worker.wait(5)
                except subprocess.TimeoutExpired:
                    worker.kill()
                    worker.wait()
    if code == 0 and (work / "verdict.json").is_file():
        return
    if code not in (-signal.SIGINT, -signal.SIGTERM, -9):
        # Whatever made it abort may lie in its database; after a plain kill that is sound.
        for stale in (*work.glob("database.db*"), work / "features.done"):
            stale.unlink(missing_ok=True)
    said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"stopped with code {code}"
    raise FeaturesplatError(
        f"COLMAP {ended} while looking for poses: {said[-1] if said else 'it left no message'}",
        f"Its log is {log}. Try again; when memory was short, with smaller or fewer photographs.",
    )


def _relay(worker: subprocess.Popen[str], database: Path, progress: Progress, patience: float = math.inf) -> None:
    """Pass the worker's progress on until it closes its output, counting rows where it asks for that."""
    until = time.monotonic() + patience
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def listen() -> None:
        for line in worker.stdout or ():
            lines.put(line)
        lines.put(None)

    threading.Thread(target=listen, daemon=True).start()
    watched: tuple[str, str, int] | None = None
    while True:
        if time.monotonic() > until:
            raise FeaturesplatError(
                f"no poses were found within {patience / 60:.0f} minutes: the frames hardly fit together.",
                "Film slowly, without cuts, moving round a scene that mostly holds still; or give poses"
                " (transforms.json). The same command goes on where this one stopped.",
            )
        try:
            line = lines.get(timeout=0.5)
        except queue.Empty:
            if watched is not None:
                table, text, total = watched
                with suppress(sqlite3.Error), closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as db:
                    rows = db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                    progress(text, min(rows, total), total)
            continue
        if line is None:
            return
        with suppress(ValueError):
            said = json.loads(line)
            watched = (said["watch"], said["text"], said["total"]) if "watch" in said else None
            progress(said["text"], said["done"], said["total"])


class Bar:
    """A rich progress bar for those who pass no callback; use as ``with Bar.unless(progress) as progress``."""

    @staticmethod
    @contextmanager
    def unless(progress: Progress | None) -> Iterator[Progress]:
        """``progress`` itself, or a bar on the error stream while the block lasts."""
        if progress is not None:
            yield progress
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with RichProgress(*columns, console=Console(stderr=True)) as rich:
            task, current = None, None

            def show(text: str, done: int, total: int) -> None:
                nonlocal task, current
                if text.startswith("poses: "):
                    rich.console.print(text, markup=False, highlight=False)
                    return
                if text != current:
                    task, current = rich.add_task(text, total=total), text
                if task is not None:
                    rich.update(task, completed=done, total=total)

            yield show
