"""What the viewer makes one wait for, as a browser on the same machine sees it; and what a large scene takes.

    python benchmarks/viewer.py RUN --name demo --prompt "soccer ball" --click 0.7 0.5 --json viewer-cpu.json
    python benchmarks/viewer.py RUN --name million --gaussians 1000000 --json viewer-cpu.json

A client that speaks viser's protocol takes the browser's place (`tests/viewer/wire.py`): the times are those until a
picture or a selection has arrived, without the time a browser takes to put it on the screen. "while moving" turns the
camera for some seconds and counts the pictures that arrive. "cold" is a question or a click before anything was
prepared, as right after the start; `featuresplat view` prepares both in the background ("warm_seconds"). ``--gaussians
N`` shows N Gaussians, the scene's own repeated with a little jitter. Each scene is one entry of the file of results.
Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "viewer"))
from rasterize import provenance
from viewer_soak import resident
from wire import WireBrowser, until

from featuresplat import memory
from featuresplat.raster import _native
from featuresplat.scene import Scene
from featuresplat.viewer.app import App
from featuresplat.viewer.cameras import fitting_fov

SIZE = (960, 540)


def enlarged(scene: Scene, count: int) -> Scene:
    """The scene's Gaussians repeated to ``count``, each copy a little beside the first."""
    n = len(scene.gaussians)
    out = scene.rows(torch.arange(count) % n)
    g, noise = out.gaussians, torch.Generator().manual_seed(0)
    means = g.means + 0.5 * g.scales.mean(1, keepdim=True) * torch.randn(g.means.shape, generator=noise)
    scales = g.log_scales - math.log(max(count / n, 1.0)) / 3
    return replace(out, gaussians=replace(g, means=means, log_scales=scales))


def arrival(browser: WireBrowser, session: Any, act: Any) -> float:
    """Seconds from an act until all that it leads to has arrived."""
    began = time.perf_counter()
    images = browser.images
    act()
    until(lambda: browser.images > images and session.settled(), "a picture")
    return time.perf_counter() - began


def moving(browser: WireBrowser, seconds: float, radius: float) -> dict[str, float]:
    """Pictures a second while the camera sways, and the mean time from one to the next."""
    start, began, images = browser.position.copy(), time.perf_counter(), browser.images
    while (t := time.perf_counter() - began) < seconds:
        browser.move(position=start + radius * np.array([math.sin(3 * t), 0.3 * math.sin(2 * t), 0.0]))
        time.sleep(1 / 60)
    count = browser.images - images
    browser.move(position=start)
    return {"pictures_per_second": count / seconds, "milliseconds": 1000 * seconds / max(count, 1)}


def measure(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    scene = Scene.load(source)
    if args.gaussians:
        scene = enlarged(scene, args.gaussians)
    loaded = time.perf_counter() - began
    before = resident()
    began = time.perf_counter()
    app = App(scene, None)
    app.splats_while_moving = False
    app.start(port=0)
    served = time.perf_counter() - began
    camera = scene.cameras[0]
    eye, forward = camera.positions[0].numpy(), camera.viewmats[0, 2, :3].double().numpy()
    began = time.perf_counter()
    browser = WireBrowser(
        app.port, position=eye, look_at=eye + forward * app.reach(camera), up=app.home.up, size=SIZE,
        fov=fitting_fov(camera, *SIZE),
    )  # fmt: skip
    until(lambda: browser.images and app.settled(), "the first picture")
    first = time.perf_counter() - began
    session = app.sessions[0]
    out: dict[str, Any] = {
        "gaussians": len(scene.gaussians), "load_seconds": loaded, "serve_seconds": served,
        "first_picture_seconds": first,
        "still_picture_seconds": min(arrival(browser, session, lambda: session.show(size=1.0)) for _ in range(3)),
        "moving": moving(browser, args.seconds, 0.05 * app.extent),
    }  # fmt: skip
    until(app.settled)
    session.show(draw="splats")
    began = time.perf_counter()
    until(lambda: "/splats" in browser.nodes and app.settled(), "splats")
    out["splats"] = {
        "seconds": time.perf_counter() - began, "sent": len(browser.nodes["/splats"]["buffer"]) // 32,
        "megabytes": len(browser.nodes["/splats"]["buffer"]) / 1e6,
    }  # fmt: skip
    session.show(draw="auto")
    until(app.settled)
    if args.prompt:
        out["prompt_seconds"] = prompts(browser, session, args.prompt)
    if args.click:
        out["click_seconds"] = clicks(browser, session, *args.click)
    out["memory_bytes"] = {"viewer": resident() - before, "peak_of_process": memory.peak()}
    if args.click:
        began = time.perf_counter()
        App(replace(scene, gaussians=scene.gaussians.map(torch.clone)), None).warm().join()
        out["warm_seconds"] = time.perf_counter() - began
    browser.close()
    app.stop()
    return out


def prompts(browser: WireBrowser, session: Any, text: str) -> dict[str, float]:
    """Of asking, without the half second for which typing has to pause."""
    from featuresplat.viewer.panels import ask

    found = {}
    for name in ("cold", "again", "other words"):
        words = text if name != "other words" else "thing"
        began = time.perf_counter()
        ask.ask(session, words)
        until(lambda words=words: [p.text for p in session.state.prompts] == [words] and session.app.settled())
        found[name] = time.perf_counter() - began
        ask.clear(session)
        until(session.app.settled)
    return found


def clicks(browser: WireBrowser, session: Any, u: float, v: float) -> dict[str, float]:
    found = {}
    for name in ("cold", "again"):
        session.document.select(None)
        session.pointer.forget_points()
        until(session.app.settled)
        began = time.perf_counter()
        session.pointer.click(u, v, True)
        until(lambda: session.state.selected is not None, "a selection")
        found[name] = time.perf_counter() - began
        until(session.app.settled)
        found[f"{name}, with picture"] = time.perf_counter() - began
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="of the entry; default the run's")
    parser.add_argument("--prompt", default="")
    parser.add_argument("--click", type=float, nargs=2, metavar=("U", "V"), help="place in the window, 0..1")
    parser.add_argument("--gaussians", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0, help="of moving")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = measure(args.run, args)
    print(json.dumps(result, indent=2))
    if args.json:
        found = json.loads(args.json.read_text()) if args.json.exists() else {}
        words = ["python", "benchmarks/viewer.py", "RUN", *sys.argv[2:]]
        found[args.name or args.run.name] = {
            "command": shlex.join(words[: words.index("--json")] if "--json" in words else words),
            "window": SIZE, **result, **provenance(_native.num_threads()),
        }  # fmt: skip
        args.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
