"""How well materials and light are found: against path-traced truth, with and without the progress map.

    python benchmarks/inverse.py ../shared/scenes/glossy --out runs/glossy --json glossy.json
    python benchmarks/inverse.py SCENE --out DIR --static runs/SCENE --rows ours --steps 2000 --downscale 2
    python benchmarks/inverse.py SCENE --out DIR --measure-only --swaps

Trains the static mode once (or takes a finished run of it); from that run the radiance stage of the mode ``inverse``
("surface"), once; and from there its other stages: as they are (ours); without the progress map under L1, and under L2,
with the same search for a first guess; and all three without that search (plain), from half bright, half rough
dielectrics under an even light. All share the surface and whatever the configuration says beside that.

What is compared, on the test views at the size that was trained:
- novel view: PSNR of the whole image under the light of the photographs, sRGB, clipped, mean over views.
- relit: PSNR under each other light, over the pixels of objects alone, sRGB of linear radiance, clipped. Before the
  curve the render is multiplied by one factor per channel, the least-squares one over all test views of that light:
  of all values ("relit"), where a lamp's reflection beside its place, forty times as bright as what is around it, has
  most of the say; and of those that neither image clips ("shown").
- albedo: PSNR of linear base colour over the pixels of objects, after one factor per channel over all test views.
- normal: mean angle in degrees. roughness, metallic: mean absolute error. Pixels of objects alone.
Pixels of objects are those that show one and the same object at all of their corners.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config import load_config
from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of
from featuresplat.io.envmap import read_environment, read_exr
from featuresplat.io.images import read_image
from featuresplat.metrics import psnr
from featuresplat.modes import _inverse_scene as finished
from featuresplat.scene import RenderRequest, Scene
from featuresplat.shading import tone
from featuresplat.shading.deferred import shade
from featuresplat.shading.light import Light

sys.path.insert(0, str(Path(__file__).parent))
from rasterize import provenance

ROWS = {
    "plain L2": {"progress": False, "fit": "l2", "search": False},
    "plain L1": {"progress": False, "fit": "l1", "search": False},
    "L2 without progress": {"progress": False, "fit": "l2"},
    "L1 without progress": {"progress": False, "fit": "l1"},
    "ours without search": {"progress": True, "fit": "l1", "search": False},
    "ours": {"progress": True, "fit": "l1"},
}
FACTORS = {"relit": "relit_psnr", "shown": "relit_shown_psnr"}
SWAPS = ("normal", "albedo", "roughness, metallic", "all of these")


@dataclass
class Truth:
    """What is known of a test view, [H, W, C] at the size of the render; ``objects`` [H, W] bool."""

    objects: Tensor
    albedo: Tensor
    normal: Tensor
    roughness: Tensor
    metallic: Tensor
    relit: dict[str, Tensor]


def lights_of(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Environment map and folder of linear images of each other light of a scene."""
    found = {}
    for root in (folder / "relit", folder.with_name(folder.name + "_relit")):
        for images in sorted(root.glob("*/linear")):
            name = images.parent.name
            maps = [p / "env" / f"{name}.npy" for p in (folder, root)]
            found[name] = (next(p for p in maps if p.exists()), images)
    return found


def shrunk(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[H, W, C] reduced by averaging to width, height."""
    factor = image.shape[1] // size[0]
    if factor == 1:
        return image
    return F.avg_pool2d(image.permute(2, 0, 1)[None], factor)[0].permute(1, 2, 0)


def truth_of(folder: Path, name: str, size: tuple[int, int]) -> Truth:
    """What the folder knows of the test view ``name`` (with its ending) at width, height."""
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    ids = np.array(Image.open(folder / "instance" / name))
    ids = torch.from_numpy(ids.reshape(*ids.shape[:2], -1)[..., 0].astype(np.int64))
    values = torch.zeros(256, 2)
    for thing in meta["objects"]:
        values[thing["index"]] = torch.tensor([float(thing["roughness"]), float(thing["metallic"])])
    wide = ids[None, None].float()
    inner = (-F.max_pool2d(-wide, 3, 1, 1) == F.max_pool2d(wide, 3, 1, 1))[0, 0] & (ids > 0)
    objects = shrunk(inner.float()[..., None], size)[..., 0] > 0.999
    maps = shrunk(values[ids], size)
    albedo = tone.linear(read_image(folder / "albedo" / name)[0].float() / 255)
    normal = read_image(folder / "normal" / name)[0].float() / 127.5 - 1
    relit = {
        light: shrunk(torch.from_numpy(read_exr(images / f"{Path(name).stem}.exr")), size)
        for light, (_, images) in lights_of(folder).items()
    }
    return Truth(
        objects, shrunk(albedo, size), F.normalize(shrunk(normal, size), dim=-1), maps[..., :1], maps[..., 1:], relit
    )


def factor(render: Tensor, truth: Tensor) -> Tensor:
    """[3] by which the channels of render [P, 3] come nearest to truth [P, 3]."""
    return (render * truth).sum(0) / render.square().sum(0).clamp_min(1e-12)


def shown_factor(render: Tensor, truth: Tensor) -> Tensor:
    """[3] as `factor`, of the values that are below 1 in truth and in the render times that factor."""
    found = factor(render, truth)
    for _ in range(10):
        below = ((render * found < 1) & (truth < 1)).to(render)
        found = (below * render * truth).sum(0) / (below * render.square()).sum(0).clamp_min(1e-12)
    return found


def decibels(a: Tensor, b: Tensor) -> float:
    return psnr(a[None], b[None])


def relit_psnr(renders: list[Tensor], truths: list[Tensor], by=factor) -> float:
    """Mean over views of [P, 3] linear radiances, after one factor per channel."""
    scale = by(torch.cat(renders), torch.cat(truths))
    return mean(decibels(tone.display(r * scale), tone.display(t)) for r, t in zip(renders, truths, strict=True))


def mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


@torch.no_grad()
def measure(scene: Scene, folder: Path, swaps: bool = False) -> dict[str, Any]:
    """All figures of a scene of the mode inverse."""
    data = dataset_of(scene)
    cameras = [data.cameras[i] for i in data.test]
    truths = [truth_of(folder, Path(c.names[0]).name, c.sizes[0]) for c in cameras]
    out: dict[str, Any] = {"novel_view_psnr": 0.0, "relit_psnr": {}, "relit_shown_psnr": {}}
    views = [scene.render(c).rgb for c in cameras]
    seen = [data.image(i).float() / 255 for i in data.test]
    out["novel_view_psnr"] = mean(psnr(v[0], t) for v, t in zip(views, seen, strict=True) if v is not None)
    found = {k: [] for k in ("albedo", "normal", "roughness", "metallic")}
    for camera, t in zip(cameras, truths, strict=True):
        for kind, parts in found.items():
            values = finished.picture(scene, camera, kind, RenderRequest(linear=True))[0]
            parts.append((values[t.objects], getattr(t, kind)[t.objects]))
    joined = {k: [torch.cat(side) for side in zip(*parts, strict=True)] for k, parts in found.items()}
    albedo, given = joined["albedo"]
    scale = factor(albedo, given)
    out["albedo_psnr"] = mean(decibels(a * scale, b) for a, b in found["albedo"])
    out["albedo_factor"] = scale.tolist()
    cosine = (F.normalize(joined["normal"][0], dim=-1) * joined["normal"][1]).sum(-1).clamp(-1, 1)
    out["normal_degrees"] = float(torch.rad2deg(torch.acos(cosine)).mean())
    for kind in ("roughness", "metallic"):
        out[f"{kind}_error"] = float((joined[kind][0] - joined[kind][1]).abs().mean())
    for name, (light, _) in lights_of(folder).items():
        sky = Light.of(read_environment(light))
        renders = []
        for camera, t in zip(cameras, truths, strict=True):
            rgb = scene.render(camera, light=sky, linear=True).rgb
            assert rgb is not None
            renders.append(rgb[0][t.objects])
        given = [t.relit[name][t.objects] for t in truths]
        out["relit_psnr"][name] = relit_psnr(renders, given)
        out["relit_shown_psnr"][name] = relit_psnr(renders, given, shown_factor)
    if swaps:
        out["swaps"] = {swap: swapped(scene, folder, cameras, truths, swap) for swap in SWAPS}
    return out


def swapped(scene: Scene, folder: Path, cameras: list, truths: list[Truth], what: str) -> dict[str, float]:
    """Relighting PSNR when some of what was estimated is replaced, pixel by pixel, by the truth: what it costs."""
    out = {}
    for name, (light, _) in lights_of(folder).items():
        stage = finished.staged(scene, read_environment(light))
        renders = []
        for camera, t in zip(cameras, truths, strict=True):
            f = finished.frame(scene, stage, camera, RenderRequest())
            s, rows = f.pixels.surface, f.pixels.rows
            true = {k: getattr(t, k).reshape(-1, getattr(t, k).shape[-1])[rows] for k in ("normal", "albedo")}
            rough, metal = (v.reshape(-1)[rows] for v in (t.roughness, t.metallic))
            if what in ("normal", "all of these"):
                s = replace(s, normal=true["normal"])
            if what in ("albedo", "all of these"):
                s = replace(s, base_color=true["albedo"])
            if what in ("roughness, metallic", "all of these"):
                s = replace(s, roughness=rough, metallic=metal)
            inside = t.objects.reshape(-1)[rows]
            diffuse, specular = shade(s, f.pixels.received, stage.lighting)
            full = torch.zeros(camera.height * camera.width, 3)
            full[rows[inside]] = (diffuse + specular)[inside]
            renders.append(full[t.objects.reshape(-1)])
        out[name] = relit_psnr(renders, [t.relit[name][t.objects] for t in truths])
    return out


STAGES = (0.0, 0.2, 0.6)
"""Of the rows: the radiance stage is behind them."""


def train_row(folder: Path, a: argparse.Namespace, steps: int, start: Path, out: Path, options: dict[str, Any]) -> None:
    from featuresplat.trainer import train

    scene, config = Scene.load(start), load_config(a.config)
    config.steps, config.seed, config.coarse_to_fine = steps, a.seed, ()
    config.data.downscale = a.downscale
    inverse = replace(config.inverse, start=start.resolve(), **options)
    model = replace(config.model, sh_degree=scene.gaussians.sh_degree, budget=a.surfels or len(scene.gaussians))
    config = replace(config, out=out, inverse=inverse, model=model, overwrite=True, report=False, eval_every=10**9)
    train(folder, config, progress=False)


def used(run: Path) -> dict[str, Any]:
    """What a run took."""
    training = Scene.load(run).info.get("training", {})
    return {
        "train_seconds": training.get("seconds"),
        "peak_memory_bytes": training.get("peak_memory_bytes"),
        "steps": training.get("steps"),
        "gaussians": len(Scene.load(run).gaussians),
    }


def static_row(folder: Path, a: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """A finished static run and its figures; trained here unless one was named."""
    from featuresplat.trainer import train

    run = a.static or a.out / "static"
    if not (run / "scene.json").exists():
        config = load_config("fast")
        config.exposure.enabled, config.report = False, False
        config.steps, config.model.budget = a.static_steps, a.budget
        config.data.downscale = a.downscale
        config.out, config.overwrite, config.seed = run, True, a.seed
        train(folder, config, progress=False)
    return run, {"novel_view_psnr": novel_view(Scene.load(run), a.downscale), **used(run)}


@torch.no_grad()
def novel_view(scene: Scene, downscale: int) -> float:
    """Mean PSNR of the test views at a size that need not be the one that was trained."""
    assert scene.config is not None
    scene.config.data.downscale = downscale
    data, scores = dataset_of(scene), []
    for i in data.test:
        rgb = scene.render(data.cameras[i]).rgb
        assert rgb is not None
        scores.append(psnr(rgb[0], data.image(i).float() / 255))
    return mean(scores)


def table(rows: dict[str, dict[str, Any]]) -> str:
    lights = sorted({k for r in rows.values() for k in r.get("relit_psnr", {})})
    both = [(title, key, k) for title, key in FACTORS.items() for k in lights]
    head = ["novel view", *(f"{title} {k}" for title, _, k in both), "albedo", "normal", "rough.", "metal", "s", "MiB"]
    lines = [f"{'':<20}" + "".join(f"{h:>{max(10, len(h) + 2)}}" for h in head)]
    for name, r in rows.items():
        relit = [r.get(key, {}).get(k) for _, key, k in both]
        cells = [r.get("novel_view_psnr"), *relit, r.get("albedo_psnr"), r.get("normal_degrees")]
        texts = ["" if v is None else f"{v:.2f}" for v in cells]
        texts += ["" if r.get(k) is None else f"{r[k]:.3f}" for k in ("roughness_error", "metallic_error")]
        texts += [f"{r['train_seconds'] or 0:.0f}", f"{(r['peak_memory_bytes'] or 0) / 2**20:.0f}"]
        lines.append(f"{name:<20}" + "".join(f"{v:>{max(10, len(h) + 2)}}" for v, h in zip(texts, head, strict=True)))
        for swap, values in r.get("swaps", {}).items():
            lines.append(f"    true {swap:<22}" + "  ".join(f"relit {k} {v:.2f}" for k, v in values.items()))
    return "\n".join(lines)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scene", type=Path, help="folder with truth, as ../shared/scenes/glossy")
    parser.add_argument("--out", type=Path, help="runs are made here, and kept; default: a temporary folder")
    parser.add_argument("--static", type=Path, metavar="RUN", help="a finished static run to start from")
    parser.add_argument("--static-steps", type=int, default=5000)
    parser.add_argument("--budget", type=int, default=40000, help="most Gaussians of the static run")
    parser.add_argument("--surfels", type=int, metavar="N", help="budget of the rows; default: the static run's number")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--config", default="inverse", help="preset or YAML file")
    parser.add_argument("--steps", type=int, default=1500, help="of each row, after the surface")
    parser.add_argument("--surface-steps", type=int, default=800, help="of the radiance stage that all rows share")
    parser.add_argument("--downscale", type=int, default=1, help="divide the image size by this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--measure-only", action="store_true", help="of runs that are there")
    parser.add_argument("--swaps", action="store_true", help="also relight with parts of the truth in place")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers here")
    return parser.parse_args(argv)


def write(a: argparse.Namespace, rows: dict[str, Any]) -> None:
    asked = {"scene": a.scene.name, "config": a.config, "downscale": a.downscale, "seed": a.seed}
    asked |= {"steps": a.steps, "surface_steps": a.surface_steps}
    report = {**provenance(torch.get_num_threads()), "command": " ".join(sys.argv), "asked": asked, "rows": rows}
    a.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    a = arguments(argv)
    try:
        with tempfile.TemporaryDirectory() as temporary:
            a.out = a.out or Path(temporary)
            run, static = static_row(a.scene, a)
            rows, surface = {"static mode": static}, a.out / "surface"
            if not (surface / "scene.json").exists():
                train_row(a.scene, a, a.surface_steps, run, surface, {"stages": (1.0, 1.0, 1.0)})
            rows["surface"] = {"novel_view_psnr": novel_view(Scene.load(surface), a.downscale), **used(surface)}
            for name in a.rows:
                out = a.out / name.replace(" ", "-")
                if not a.measure_only:
                    train_row(a.scene, a, a.steps, surface, out, {**ROWS[name], "stages": STAGES})
                rows[name] = measure(Scene.load(out), a.scene, a.swaps) | used(out)
                print(table({name: rows[name]}), flush=True)
                if a.json:
                    write(a, rows)
    except FeaturesplatError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
