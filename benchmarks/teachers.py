"""How well a teacher finds what it is asked for: RUN is a finished run, SCENE its data with true masks.

    python benchmarks/teachers.py RUN SCENE                      the offline teacher
    python benchmarks/teachers.py RUN SCENE --teacher clip --path WEIGHTS
    python benchmarks/teachers.py RUN SCENE --masks DIR --ask "toy_dinosaur=teddy bear"

The prompts are the names of the scene's objects (meta.json and instance/*.png), or the labels of <view>/<label>.png in
--masks; --ask asks for a label in other words. Nothing else is known. For each object, over the held-out views: the IoU
of its mask (LangSplat's rule on the relevancy) and the localisation (is the best pixel on it), from

- "photo": the teacher's own map of the held-out photograph;
- "field": the maps of the training views lifted onto the Gaussians and rendered;
- "Gaussians": the Gaussians selected by their own codes, rendered;
- "objects": the whole objects that edits would take (`targets.select_text`), rendered.

CPU seconds per image are of one thread. Results go to benchmarks/results/teachers-cpu.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.datasets import load_dataset
from featuresplat.fields.distill import distill
from featuresplat.masks_eval import TrueMask, _Tally, measure_masks, read_masks
from featuresplat.prompts import text
from featuresplat.prompts.photographs import full_size_views
from featuresplat.query import Prompt, query_scene
from featuresplat.scene import Scene
from featuresplat.teachers import make_teacher

sys.path.insert(0, str(Path(__file__).parent))
from command import MACHINE, command
from rasterize import provenance

RESULTS = Path(__file__).parent / "results" / "teachers-cpu.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("scene", type=Path)
    parser.add_argument("--teacher", default="offline")
    parser.add_argument("--path", type=Path, default=None, help="weights, or the folder of maps")
    parser.add_argument("--model", default="")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--lift", default="mean")
    parser.add_argument("--masks", type=Path, help="folder of true masks, as featuresplat eval takes them")
    parser.add_argument("--ask", nargs="+", default=[], metavar="LABEL=PHRASE")
    parser.add_argument("--cache", type=Path, help="keep the maps there; default: nowhere")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of what was found in the held-out views")
    parser.add_argument("--keep", action="store_true", help="write the row to the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    row = measured(args)
    print(table(row))
    if args.keep:
        found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"rows": {}}
        asked = f", {', '.join(args.ask)}" if args.ask else ""
        row |= {"shared": MACHINE, "command": command(), "commit": provenance(1)["commit"]}
        found["rows"][f"{args.scene.name} {args.teacher}{asked}"] = row
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**provenance(1), **found}, indent=1) + "\n")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    config = TeacherConfig(name=args.teacher, path=args.path, model=args.model, size=args.size)
    scene, dataset = Scene.load(args.run), load_dataset(args.scene)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache:
        scene = distill(scene, dataset, config, FieldConfig(lift=args.lift, cache=args.cache or Path(cache)))
    seconds = time.perf_counter() - began
    masks = true_masks(args.scene, scene) if args.masks is None else read_masks(args.masks, scene)
    words = dict(pair.replace("_", " ").split("=", 1) for pair in args.ask)
    masks = {view: {words.get(word, word): mask for word, mask in found.items()} for view, found in masks.items()}
    if args.pictures is not None:
        prompts = tuple(sorted({word for found in masks.values() for word in found}))
        views = full_size_views(scene, list(masks))
        query_scene(scene, Prompt(prompts), views, overlays=args.pictures)
    photo, cpu = of_photographs(scene, dataset, config, masks)
    out = {
        "photo": photo,
        "field": measure_masks(scene, masks),
        "gaussians": measure_masks(scene, masks, gaussians=True),
        "objects": measure_masks(scene, masks, objects=True),
    }
    count = len(scene.part("train"))
    return {**out, "cpu_seconds_per_image": cpu, "seconds": seconds, "views": count, "settings": settings(scene)}


def true_masks(folder: Path, scene: Scene) -> dict[str, dict[str, TrueMask]]:
    """Masks of the named objects in the held-out views."""
    objects = {o["index"]: o["name"] for o in json.loads((folder / "meta.json").read_text())["objects"]}
    out = {}
    cameras = scene.part("test")
    for i in range(len(cameras)):
        name, (width, height) = str(cameras.names[i]), cameras.sizes[i]
        image = Image.open(folder / "instance" / f"{Path(name).stem}.png")
        labels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.NEAREST)))
        seen = {word: labels == k for k, word in objects.items() if k}
        out[name] = {word: TrueMask(mask) for word, mask in seen.items() if int(mask.sum()) > 50}
    return out


def of_photographs(scene: Scene, dataset: Any, config: TeacherConfig, masks: dict) -> tuple[dict[str, Any], float]:
    """The measure of the teacher's own maps, and its CPU seconds per image."""
    teacher = make_teacher(config.name, config)
    labels = sorted({word for found in masks.values() for word in found})
    asked = text.ask(scene, labels)
    tally, seconds = _Tally(labels), []
    for name, truth in masks.items():
        image = dataset.image(list(dataset.cameras.names).index(name)).float() / 255
        began = time.process_time()
        features = teacher.encode_image(image, name=name)
        seconds.append(time.process_time() - began)
        scores = scored(asked, features, next(iter(truth.values())).mask.shape)
        tally.add(truth, scores, asked.masks(scores))
    return tally.result(), sum(seconds) / len(seconds)


def scored(asked: text.TextQuery, features: Tensor, size: tuple[int, ...]) -> Tensor:
    """[P, H, W] scores of a map, enlarged bilinearly."""
    flat = features.flatten(0, 1)
    vectors = torch.cat([asked.prompts, asked.contrast])
    scores = asked._scores(flat @ vectors.T, flat.norm(dim=1)).view(-1, *features.shape[:2])
    return torch.nn.functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]


def settings(scene: Scene) -> dict[str, Any]:
    return next(iter(scene.fields.values())).info.get("teacher", {})


def table(row: dict[str, Any]) -> str:
    kinds = ("photo", "field", "gaussians", "objects")
    lines = [f"{'':22s}" + "".join(f"{k + ' IoU':>16s}{'loc':>6s}" for k in kinds)]
    for word in row["field"]["labels"]:
        cells = [row[k]["labels"].get(word, {"iou": float("nan"), "localisation": float("nan")}) for k in kinds]
        lines.append(f"{word:22s}" + "".join(f"{c['iou']:16.2f}{c['localisation']:6.2f}" for c in cells))
    lines.append(f"{'mean':22s}" + "".join(f"{row[k]['miou']:16.2f}{row[k]['localisation']:6.2f}" for k in kinds))
    lines.append(
        f"{row['cpu_seconds_per_image']:.2f} CPU s an image; {row['views']} views distilled in {row['seconds']:.0f} s"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
