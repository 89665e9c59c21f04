"""How well clicks, boxes and the list of objects find things, and how fast text is answered.

    python benchmarks/prompts.py clicks RUN --masks DIR           <view>/<label>.png, as featuresplat eval takes them
    python benchmarks/prompts.py clicks RUN --instances SCENE     a scene with instance/*.png and meta.json
    python benchmarks/prompts.py objects RUN --instances SCENE    all objects at once, no prompt
    python benchmarks/prompts.py speed                            100 k Gaussians, 512 channels, 10 prompts

Clicks: one point in one view, the rest is found alone; measured against the truth of all other views, at the
photographs' size. Of each object: the innermost pixel and random ones (seeded), in several views; and the box around
it. All of them count: mean, median and worst over prompts are given. --without-pieces leaves out the scene's pieces,
so that views are segmented by GrabCut and vote. Figures are merged into --json by scene and kind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import distance_transform_edt

from featuresplat.masks_eval import TrueMask, read_masks
from featuresplat.prompts import instances, pieces, spatial, text
from featuresplat.scene import Scene
from featuresplat.types import Cameras, FeatureField, Gaussians, TextTable

sys.path.insert(0, str(Path(__file__).parent))
from command import MACHINE, command
from rasterize import provenance

RESULTS = Path(__file__).parent / "results" / "prompts-cpu.json"
SMALLEST = 400  # pixels of an object in a view, for it to count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("clicks", "objects", "speed"))
    parser.add_argument("run", nargs="?")
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--instances", type=Path)
    parser.add_argument("--views", type=int, default=4, help="views to prompt in, of each object")
    parser.add_argument("--points", type=int, default=2, help="clicks in each of them")
    parser.add_argument("--without-pieces", action="store_true")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.what == "speed":
        record(args.json, "text", speed())
        return
    scene = Scene.load(args.run)
    truth = read_masks(args.masks, scene) if args.masks else read_instances(args.instances, scene)
    name = Path(scene.info.get("source", args.run)).name
    torch.set_num_threads(1)
    if args.without_pieces:
        spatial._by_pieces = lambda *_: None
        name += "-without-pieces"
    found = clicks(scene, truth, args.views, args.points) if args.what == "clicks" else objects(scene, truth)
    record(args.json, f"{args.what}-{name}", {"gaussians": len(scene.gaussians), **found})


def read_instances(folder: Path, scene: Scene) -> dict[str, dict[str, TrueMask]]:
    """True masks of the test views of a scene with instance images and names in its meta.json."""
    names = {o["index"]: o["name"] for o in json.loads((folder / "meta.json").read_text())["objects"] if o["index"]}
    out = {}
    for view in scene.names("test"):
        image = np.asarray(Image.open(folder / "instance" / f"{Path(view).stem}.png"))
        out[view] = {n: TrueMask(torch.from_numpy(image == i)) for i, n in names.items() if (image == i).any()}
    return out


def camera_of(scene: Scene, view: str, mask: torch.Tensor) -> Cameras:
    camera = scene.cameras[list(scene.cameras.names).index(view)]
    return camera.resized(mask.shape[1], mask.shape[0])


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def clicks(scene: Scene, truth: dict[str, dict[str, TrueMask]], views: int, points: int) -> dict:
    """Per object and kind of prompt: mean, median and worst over prompts of the mean IoU over all other views."""
    rng = np.random.default_rng(0)
    began = time.perf_counter(), time.process_time()
    pieces.pieces_of(scene, scene.gaussians)
    first, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
    out: dict = {"seconds_first": round(first, 2), "cpu_seconds_first": round(cpu, 2), "objects": {}}
    for label in sorted({name for masks in truth.values() for name in masks}):
        shown = [(v, m[label].mask) for v, m in truth.items() if label in m and int(m[label].mask.sum()) >= SMALLEST]
        if len(shown) < 2:
            continue
        chosen = [shown[i] for i in np.unique(np.linspace(0, len(shown) - 1, views).round().astype(int))]
        entry = {}
        for kind in ("click", "box"):
            scores, worst, seconds, cpu = [], [], [], []
            for view, mask in chosen:
                camera = camera_of(scene, view, mask)
                prompts: list[dict[str, Any]] = (
                    points_in(mask, points, rng) if kind == "click" else [{"box": box_of(mask)}]
                )
                for prompt in prompts:
                    began = time.perf_counter(), time.process_time()
                    found = spatial.select_points(scene, camera, **prompt)
                    seconds.append(time.perf_counter() - began[0])
                    cpu.append(time.process_time() - began[1])
                    others = [
                        iou(spatial.mask_of(scene, camera_of(scene, v, m), found.selection), m)
                        for v, m in shown
                        if v != view
                    ]
                    scores.append(statistics.mean(others))
                    worst.append(min(others))
            entry[kind] = {
                "prompts": len(scores),
                "mean": round(statistics.mean(scores), 4),
                "median": round(statistics.median(scores), 4),
                "worst_prompt": round(min(scores), 4),
                "worst_view": round(min(worst), 4),
                "seconds_median": round(statistics.median(seconds), 3),
                "cpu_seconds_median": round(statistics.median(cpu), 3),
            }
            print(f"{label:22} {kind:5}", *(f"{k} {v}" for k, v in entry[kind].items()), flush=True)
        out["objects"][label] = entry
    for kind in ("click", "box"):
        means = [e[kind]["mean"] for e in out["objects"].values()]
        out[kind] = {"median_object": round(statistics.median(means), 4), "worst_object": round(min(means), 4)}
        print(f"over objects, {kind}: median {out[kind]['median_object']}, worst {out[kind]['worst_object']}")
    return out


def points_in(mask: torch.Tensor, count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The innermost pixel, and random ones a few pixels inside."""
    depth = np.asarray(distance_transform_edt(mask.numpy()))
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    out = [(float(x) + 0.5, float(y) + 0.5)]
    ys, xs = np.nonzero(depth > min(4.0, 0.6 * depth.max()))
    for k in rng.integers(len(ys), size=count - 1):
        out.append((float(xs[k]) + 0.5, float(ys[k]) + 0.5))
    return [{"points": [p]} for p in out]


def box_of(mask: torch.Tensor) -> tuple[float, float, float, float]:
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    return float(cols[0]), float(rows[0]), float(cols[-1]) + 1, float(rows[-1]) + 1


def objects(scene: Scene, truth: dict[str, dict[str, TrueMask]]) -> dict:
    """All objects at once: of each true one, the mean IoU over views of the found one that fits it best overall."""
    began = time.perf_counter()
    found = instances.find(scene)
    seconds = time.perf_counter() - began
    shares: dict[str, list[list[float]]] = {}
    for view, masks in truth.items():
        camera = camera_of(scene, view, next(iter(masks.values())).mask)
        shown = spatial.masks_of(scene, camera, [found.selection(k) for k in range(len(found))])
        for label, true in masks.items():
            if int(true.mask.sum()) >= SMALLEST:
                shares.setdefault(label, []).append([iou(s, true.mask) for s in shown])
    result = {}
    for label, rows in sorted(shares.items()):
        mean = np.array(rows).mean(0)
        result[label] = {"iou": round(float(mean.max()), 4), "found_as": found.names[int(mean.argmax())]}
        print(f"{label:22} IoU {result[label]['iou']:.3f} as {result[label]['found_as']}")
    values = [r["iou"] for r in result.values()]
    return {
        "found": len(found),
        "seconds": round(seconds, 2),
        "objects": result,
        "median": round(statistics.median(values), 4),
        "worst": round(min(values), 4),
    }


def speed(count: int = 100_000, channels: int = 512, prompts: int = 10, repeats: int = 20) -> dict:
    """Seconds for the scores of all Gaussians."""
    g = torch.Generator().manual_seed(0)
    table = TextTable(tuple(f"thing {i}" for i in range(prompts + 4)), torch.randn(prompts + 4, channels, generator=g))
    gaussians = Gaussians(
        torch.randn(count, 3, generator=g), torch.randn(count, 4, generator=g), torch.zeros(count, 3),
        torch.zeros(count), torch.zeros(count, 1, 3), torch.zeros(count, 0, 3),
    )  # fmt: skip
    field = FeatureField(torch.randn(count, channels, generator=g), "precomputed", text=table)
    scene = Scene(gaussians, Cameras(torch.eye(4)[None], torch.eye(3)[None], 4, 4), {"f": field})
    seconds, cpu = [], []
    for _ in range(repeats):
        began = time.perf_counter(), time.process_time()
        text.score(scene, table.phrases[:prompts])
        seconds.append(time.perf_counter() - began[0])
        cpu.append(time.process_time() - began[1])
    out = {"gaussians": count, "channels": channels, "prompts": prompts, "threads": torch.get_num_threads()}
    out |= {"seconds_median": round(statistics.median(seconds), 4), "seconds_min": round(min(seconds), 4)}
    out |= {"cpu_seconds_median": round(statistics.median(cpu), 4)}
    print(out)
    return out


def record(path: Path, name: str, values: dict) -> None:
    """Merge one table into the file."""
    known = json.loads(path.read_text()) if path.is_file() else {}
    said = {**provenance(torch.get_num_threads()), "shared": MACHINE, "command": command()}
    known[name] = {**said, **values}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
