"""Minutes of scripted use: is memory flat, does nothing complain?

    python benchmarks/viewer_soak.py RUN --minutes 10 --prompts "soccer ball" "banana"

A real browser, driven from a process of its own, and a client that speaks the protocol move, ask, select, keep, edit,
undo, change views, export and come and go, in an order fixed by the seed. Every ten seconds everything is undone and
forgotten, so that moments can be compared, and the memory of this process is noted, as is the heap of the page's
scripts in the browser. At the end: the growth of both over the second half, errors in the log, and errors in the
browser's console. The exit status is 1 when anything complained or one of the two grew by more than five per cent.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import multiprocessing
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "viewer"))
from browsing import KNOWN_ERRORS, SIZE, launched
from rasterize import provenance
from wire import WireBrowser, until

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _native
from featuresplat.scene import Scene
from featuresplat.viewer import heap
from featuresplat.viewer.app import App
from featuresplat.viewer.panels import ask, edit, export

KINDS = ("rgb", "depth", "normals", "alpha", "features")
GROWTH = 0.05
EVERY = 10.0
"""Seconds between two looks at the memory."""


def resident() -> int:
    """Bytes of memory that this process holds now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


class Complaints(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record)[-800:])


class Soak:
    def __init__(self, app: App, prompts: list[str], seed: int):
        self.app, self.prompts, self.random = app, prompts, random.Random(seed)
        self.scene = app.document.scene
        self.wire: WireBrowser | None = None
        self.did: dict[str, int] = {}

    def step(self, session: Any) -> None:
        """One thing that a person may do."""
        action = self.random.choice(
            [self.move, self.move, self.look, self.question, self.select, self.keep, self.change, self.undo, self.save,
             self.reconnect]
        )  # fmt: skip
        self.did[action.__name__] = self.did.get(action.__name__, 0) + 1
        with contextlib.suppress(FeaturesplatError):  # such as nothing to undo: a person is told so
            action(session)
        until(self.app.settled, "the viewer to settle", 300)

    def move(self, session: Any) -> None:
        cameras = self.app.base_cameras
        session.fly_to(cameras[self.random.randrange(len(cameras))])

    def look(self, session: Any) -> None:
        session.show(kind=self.random.choice(KINDS if session.scene.fields else KINDS[:-1]))

    def question(self, session: Any) -> None:
        if self.prompts and session.scene.fields:
            ask.ask(session, self.random.choice(self.prompts))
            until(self.app.settled, "the answer", 300)
            ask.select(session)

    def select(self, session: Any) -> None:
        session.pointer.box(0.35, 0.35, 0.6, 0.6)

    def keep(self, session: Any) -> None:
        session.document.keep(f"object {self.random.randrange(4)}")

    def change(self, session: Any) -> None:
        edits = (edit.Remove, edit.Extract, edit.Duplicate)
        if len(session.scene.gaussians) < 200_000 and len(session.state.edits) < 6:
            edit.do(session, self.random.choice(edits)(edit.target(session)))

    def undo(self, session: Any) -> None:
        session.work("Undo", session.document.undo)

    def save(self, session: Any) -> None:
        session.look.extra[export.DOWNLOAD] = False
        export._gaussians(session, False)
        until(self.app.settled, "the export", 300)
        for path in (self.app.folder / "exports").glob("*"):  # pyright: ignore[reportOptionalOperand]
            path.unlink()

    def rest(self) -> int:
        """Bytes in use when all edits, selections and prompts are forgotten."""
        self.app.document.ask([], negatives=[])
        self.app.document.replace_base(self.scene)
        until(self.app.settled, "the viewer to settle", 300)
        gc.collect()
        heap.trim()
        return resident()

    def reconnect(self, session: Any) -> None:
        if self.wire is not None:
            self.wire.close()
        self.wire = WireBrowser(self.app.port, size=(320, 240))


def look_on(port: int, stop: Any, answers: Any) -> None:
    """A browser that shows the viewer until ``stop`` is set, in a process of its own; puts the errors of its console
    and (second, bytes) of the page's script heap, garbage collected, into ``answers``.
    """
    errors: list[str] = []
    heap_sizes: list[tuple[float, int]] = []

    def said(message: Any) -> None:
        if message.type == "error" and not any(known in message.text for known in KNOWN_ERRORS):
            errors.append(message.text)

    for browser in launched():
        page = browser.new_page(viewport=SIZE)
        page.on("console", said)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://localhost:{port}/")
        tools = page.context.new_cdp_session(page)
        tools.send("Performance.enable")
        tools.send("HeapProfiler.enable")
        began = noted = time.monotonic()
        while not stop.is_set():
            page.wait_for_timeout(200)
            if time.monotonic() - noted > EVERY:
                noted = time.monotonic()
                tools.send("HeapProfiler.collectGarbage")
                found = {m["name"]: m["value"] for m in tools.send("Performance.getMetrics")["metrics"]}
                heap_sizes.append((round(noted - began), int(found["JSHeapUsedSize"])))
        page.close()
    answers.put((errors, heap_sizes))


def growth(sizes: list[tuple[float, int]]) -> float:
    """Of the second half: the slope of a straight line through it times its length, as a share of where it begins."""
    half = [size for _, size in sizes[len(sizes) // 2 :]]
    if len(half) < 3:
        return 0.0
    return float(np.polyfit(range(len(half)), half, 1)[0]) * len(half) / max(half[0], 1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    complaints = Complaints()
    logging.getLogger().addHandler(complaints)
    with tempfile.TemporaryDirectory() as folder:
        app = App(Scene.load(args.run), Path(folder))
        app.splats_while_moving = False
        app.start(port=0)
        soak, memory = Soak(app, args.prompts, args.seed), []
        processes = multiprocessing.get_context("spawn")
        stop, answers = processes.Event(), processes.Queue()
        browser = processes.Process(target=look_on, args=(app.port, stop, answers))
        browser.start()
        try:
            session = until(lambda: next(iter(app.sessions), None), "a browser")
            until(lambda: session.canvas.showing and session.settled(), "the first picture")
            began = noted = time.monotonic()
            while time.monotonic() - began < 60 * args.minutes:
                soak.step(session)
                if time.monotonic() - noted > EVERY:
                    noted = time.monotonic()
                    memory.append((round(noted - began), soak.rest()))
        finally:
            stop.set()
        console, page = answers.get(timeout=60)
        browser.join()
        if soak.wire is not None:
            soak.wire.close()
        app.stop()
    return {
        "minutes": args.minutes, "did": soak.did, "steps": sum(soak.did.values()),
        "memory_megabytes": [(t, round(m / 1e6)) for t, m in memory],
        "growth_of_second_half": growth(memory),
        "page_megabytes": [(t, round(m / 1e6, 1)) for t, m in page],
        "page_growth_of_second_half": growth(page),
        "log_errors": complaints.lines, "console_errors": console,
    }  # fmt: skip


def command() -> str:
    """As it was typed, without where the run lies and where the figures go."""
    words = ["python", "benchmarks/viewer_soak.py", "RUN", *sys.argv[2:]]
    return shlex.join(words[: words.index("--json")] if "--json" in words else words)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--prompts", nargs="*", default=[])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = run(args)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(
            json.dumps(
                {"run": args.run.name, "command": command(), **result, **provenance(_native.num_threads())}, indent=2
            )
            + "\n"
        )
    grown = max(result["growth_of_second_half"], result["page_growth_of_second_half"]) > GROWTH
    return 1 if grown or result["log_errors"] or result["console_errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
