"""How well scenes that move come out, measured against everything that is known of `moving`.

    python benchmarks/dynamic.py SCENE --out runs/moving --modes static,hexplane,nodes --priors depth,none
    python benchmarks/dynamic.py SCENE --out runs/moving --measure            only measure runs that are there
    python benchmarks/dynamic.py SCENE --out runs/moving --collect --json F   a table of what was measured before

SCENE holds, beside transforms_train.json and _test.json with times: ``meta.json`` (``objects``, ``moving_objects``),
``instance/STEM.png`` (object index per pixel), ``depth/STEM.png``, and ``tracks.npz`` (``xyz`` [P, T, 3], ``visible``,
``object_index``). Each run is a command that a user could type; it is printed.

PSNR and SSIM are means over the test views: of all pixels, and of the pixels of moving objects (those views in which
they cover at least 50). Tracks: each truth vertex starts where it is first seen and is carried by the scene to all
other times; the median distance from the truth, in centimetres, per object. With ``--fields``: maps made from the true
masks of the training frames are distilled; mIoU of text masks of the moving objects over the test views, with codes on
the Gaussians and on the nodes; one click on each object in one training frame, its IoU in all test views.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuresplat.datasets import Dataset
from featuresplat.evaluate import dataset_of, rendered_views
from featuresplat.metrics import psnr, ssim
from featuresplat.modes._motion.codes import carried_by_nodes, on_nodes
from featuresplat.modes._motion.finished import moves
from featuresplat.modes._motion.trace import carry
from featuresplat.scene import Scene

sys.path.insert(0, str(Path(__file__).parent))
from rasterize import provenance

LEAST = 50
"""Pixels of moving objects below which a view says nothing about them."""
MEASURED = "measured.json"
"""In each run folder, what was measured of it."""
MODES = {"static": "static", "hexplane": "hexplane", "nodes": "dynamic"}


class Truth:
    """What is known of a scene: objects, masks, tracks."""

    def __init__(self, folder: Path):
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_text())
        self.names = {o["index"]: o["name"] for o in meta["objects"]}
        self.moving: list[int] = meta["moving_objects"]

    def ids(self, name: str, size: tuple[int, int]) -> Tensor:
        """[H, W] object index of each pixel of an image."""
        with Image.open(self.folder / "instance" / f"{Path(name).stem}.png") as image:
            return torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.NEAREST)).astype(np.int64))

    def is_moving(self, name: str, size: tuple[int, int]) -> Tensor:
        return torch.isin(self.ids(name, size), torch.tensor(self.moving))


def training(scene: Path, out: Path, mode: str, prior: str, extra: list[str]) -> list[str]:
    """The arguments of featuresplat that train a row."""
    command = ["train", str(scene), "--config", "dynamic", "--out", str(out), "--overwrite", "--quiet", "--no-report"]
    command += [] if mode == "nodes" else ["--baseline", MODES[mode]]
    command += ["--priors.depth", str(scene / "depth")] if prior == "depth" else []
    return command + extra


def train(command: list[str], out: Path) -> None:
    print("$ featuresplat", " ".join(command), flush=True)
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "featuresplat", *command], check=True)
    (out / "wall_seconds.json").write_text(json.dumps(round(time.perf_counter() - began, 1)))


def quality(scene: Scene, dataset: Dataset, truth: Truth) -> dict[str, float]:
    found: dict[str, list[float]] = {"psnr": [], "ssim": [], "moving_psnr": [], "moving_ssim": []}
    for name, render, photograph, _ in rendered_views(scene, dataset, dataset.test):
        mask = truth.is_moving(name, (render.shape[1], render.shape[0]))
        found["psnr"].append(psnr(render, photograph))
        found["ssim"].append(ssim(render, photograph))
        if int(mask.sum()) >= LEAST:
            found["moving_psnr"].append(psnr(render, photograph, mask))
            found["moving_ssim"].append(ssim(render, photograph, mask))
    return {k: round(sum(v) / len(v), 4) for k, v in found.items()}


def track_errors(scene: Scene, truth: Truth) -> dict[str, float]:
    """Median distance in centimetres per moving object."""
    with np.load(truth.folder / "tracks.npz") as file:
        xyz, visible = torch.from_numpy(file["xyz"]), torch.from_numpy(file["visible"])
        objects, times = torch.from_numpy(file["object_index"]), [float(t) for t in file["times"]]
    first = visible.float().argmax(1)
    off = torch.zeros(xyz.shape[:2])
    for t in first.unique().tolist():
        rows = (first == t).nonzero()[:, 0]
        off[rows] = (carry(scene, xyz[rows, t], times[t], times) - xyz[rows]).norm(dim=-1)
    return {truth.names[o]: round(100 * float(off[objects == o].median()), 2) for o in truth.moving}


def oracle_maps(truth: Truth, dataset: Dataset, out: Path, dim: int = 32) -> Path:
    """Maps of the true masks of the training frames: one random direction for each object."""
    out.mkdir(parents=True, exist_ok=True)
    names = ["background", *truth.names.values()]
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(dim, dim)))[0][: len(names)].astype(np.float32)
    for i in dataset.train:
        name, size = str(dataset.cameras.names[i]), dataset.cameras.sizes[i]
        np.save(out / f"{Path(name).stem}.npy", vectors[truth.ids(name, size).numpy()].astype(np.float16))
    np.save(out / "text.npy", vectors)
    about = {"name": "true masks", "dim": dim, "phrases": {n: k for k, n in enumerate(names)}}
    (out / "teacher.json").write_text(json.dumps(about))
    return out


def text_iou(scene: Scene, dataset: Dataset, truth: Truth) -> dict[str, float]:
    """IoU of text masks over the test views, per moving object, from summed intersections and unions."""
    from featuresplat.prompts import text

    wanted = [truth.names[o] for o in truth.moving]
    query = text.ask(scene, wanted)
    both, either = torch.zeros(len(wanted)), torch.zeros(len(wanted))
    for i in dataset.test:
        camera = dataset.cameras[i]
        found = query.masks(query.view(scene, camera))
        ids = truth.ids(str(camera.names[0]), (camera.width, camera.height))
        for k, o in enumerate(truth.moving):
            both[k] += (found[k] & (ids == o)).sum()
            either[k] += (found[k] | (ids == o)).sum()
    return {n: round(float(b / e.clamp_min(1)), 4) for n, b, e in zip(wanted, both, either, strict=True)}


def click_iou(scene: Scene, dataset: Dataset, truth: Truth) -> dict[str, dict[str, float]]:
    """One click in one training frame, followed through all test views; median and range over several frames."""
    from scipy.ndimage import distance_transform_edt

    from featuresplat.prompts.spatial import select_points

    order = sorted(dataset.train, key=lambda i: float(dataset.cameras.times[i]))  # pyright: ignore
    out = {}
    for o in truth.moving:
        results = []
        for share in (0.1, 0.5, 0.9):
            camera = dataset.cameras[order[int(share * (len(order) - 1))]]
            ids = truth.ids(str(camera.names[0]), (camera.width, camera.height)).numpy()
            inside = np.asarray(distance_transform_edt(np.pad(ids == o, 1)))[1:-1, 1:-1]
            if inside.max() < 2:
                continue
            y, x = np.unravel_index(int(inside.argmax()), inside.shape)
            prompted = select_points(scene, camera, [(float(x) + 0.5, float(y) + 0.5)])
            both = either = 0
            for i in dataset.test:
                view = dataset.cameras[i]
                mask = prompted.masks(view).cpu()
                true = truth.ids(str(view.names[0]), (view.width, view.height)) == o
                both, either = both + int((mask & true).sum()), either + int((mask | true).sum())
            results.append(both / max(either, 1))
        name = truth.names[o]
        out[name] = {"median": round(float(np.median(results)), 4), "worst": round(min(results), 4)}
    return out


def measure_fields(scene: Scene, dataset: Dataset, truth: Truth) -> dict[str, Any]:
    from featuresplat.config_fields import FieldConfig, TeacherConfig
    from featuresplat.fields.distill import distill

    with tempfile.TemporaryDirectory() as folder:
        maps = oracle_maps(truth, dataset, Path(folder))
        scene = distill(scene, dataset, TeacherConfig(name="precomputed", path=maps), FieldConfig())
    name, field = scene.field()
    result: dict[str, Any] = {"text": text_iou(scene, dataset, truth), "click": click_iou(scene, dataset, truth)}
    if scene.mode == "dynamic":
        nodes = replace(scene, fields={name: carried_by_nodes(scene, field)})
        result["text_on_nodes"] = text_iou(nodes, dataset, truth)
        moving, dim = int(moves(scene).sum()), field.dim
        times = len(scene.mode_state["nodes.times"])
        result["megabytes"] = {
            "moving Gaussians, at each time": moving * dim * times * 4 / 1e6,
            "moving Gaussians": moving * dim * 4 / 1e6,
            "nodes": len(on_nodes(scene, field)) * dim * 4 / 1e6,
            "still Gaussians": (len(scene.gaussians) - moving) * dim * 4 / 1e6,
        }
    return result


def measure(folder: Path, truth: Truth, fields: bool) -> dict[str, Any]:
    scene = Scene.load(folder)
    dataset = dataset_of(scene)
    wall = folder / "wall_seconds.json"
    result: dict[str, Any] = {
        "run": folder.name,
        "seed": scene.config.seed if scene.config else None,
        "train_seconds": scene.info["training"]["seconds"],
        "wall_seconds": json.loads(wall.read_text()) if wall.is_file() else None,
        "gaussians": len(scene.gaussians),
        **quality(scene, dataset, truth),
        "tracks_cm": track_errors(scene, truth),
    }
    if scene.mode == "dynamic":
        result |= {"moving_gaussians": int(moves(scene).sum()), "nodes": len(scene.mode_state["nodes.positions"])}
        if fields:
            result["fields"] = measure_fields(scene, dataset, truth)
    (folder / MEASURED).write_text(json.dumps(result))
    return result


def table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["tracks_cm"])
    head = ["run", "all PSNR", "SSIM", "moving PSNR", "SSIM", *(f"{n}, cm" for n in names), "train s", "wall s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in rows:
        values = [
            r["run"],
            f"{r['psnr']:.2f}",
            f"{r['ssim']:.3f}",
            f"{r['moving_psnr']:.2f}",
            f"{r['moving_ssim']:.3f}",
        ]
        values += [f"{r['tracks_cm'][n]:.1f}" for n in names]
        values += [f"{r['train_seconds']:.0f}", "-" if r["wall_seconds"] is None else f"{r['wall_seconds']:.0f}"]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/moving"))
    parser.add_argument("--modes", default="static,hexplane,nodes")
    parser.add_argument("--priors", default="depth,none")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--measure", action="store_true", help="train nothing")
    parser.add_argument("--fields", action="store_true", help="features, prompts and clicks too")
    parser.add_argument("--collect", action="store_true", help="train and measure nothing: what was measured before")
    parser.add_argument("--json", type=Path)
    args, extra = parser.parse_known_args()
    truth, rows = Truth(args.scene), []
    for prior in args.priors.split(","):
        for mode in args.modes.split(","):
            for seed in args.seeds.split(","):
                folder = args.out / f"{mode}_{prior}_{seed}"
                command = training(args.scene, folder, mode, prior, ["--seed", seed, *extra])
                if not args.measure and not args.collect:
                    train(command, folder)
                if args.collect and (folder / MEASURED).is_file():
                    rows.append(json.loads((folder / MEASURED).read_text()))
                elif not args.collect and (folder / "scene.json").is_file():
                    rows.append(measure(folder, truth, args.fields))
                    print(json.dumps(rows[-1]), flush=True)
                else:
                    continue
                about = f"train SCENE --config dynamic {' '.join(command[command.index('--no-report') + 1 :])}"
                rows[-1]["command"] = f"featuresplat {about}".replace(str(args.scene), "SCENE")
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **provenance(torch.get_num_threads())}, indent=1))


if __name__ == "__main__":
    main()
