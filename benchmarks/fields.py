"""How good feature fields are, and what they cost. RUN is a finished run, SCENE the data with true instance masks.

    python benchmarks/fields.py truth RUN SCENE      every lifting method, clean and mislabelled masks, several seeds
    python benchmarks/fields.py trained RUN SCENE    codes with decoders and codebooks against the lift
    python benchmarks/fields.py joint SCENE          Feature 3DGS's joint training against lifting, at a small size
    python benchmarks/fields.py maps SCENE DIR       the same teacher as a folder for --teacher precomputed
    python benchmarks/fields.py speed RUN            seconds and peak memory of a 384-channel lift, 50,000 Gaussians
    python benchmarks/fields.py decoder RUN --teacher offline      reconstruction against the bound of the SVD

The teacher of the first three is the truth itself: every pixel of a training view has the sentence embedding of its
object's name (all-MiniLM-L6-v2, 384 channels; extra `offline`). "Mislabelled" gives each mask of each view, with a
chance of 30 %, the vector of another object; nothing else is random. Text queries over all objects are scored on the
held-out views by `featuresplat.masks_eval`: mIoU of pixels ("rendered"), and of the Gaussians whose own codes say so,
rendered ("Gaussians"). Results go to benchmarks/results/fields-cpu.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
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

from featuresplat import memory
from featuresplat.config import load_config
from featuresplat.config_fields import FieldConfig, TeacherConfig
from featuresplat.fields import distill
from featuresplat.fields.compact import low_rank
from featuresplat.fields.lift import METHODS, lift
from featuresplat.fields.maps import Maps, principal_axes, second_moment
from featuresplat.masks_eval import TrueMask, measure_masks
from featuresplat.scene import Scene
from featuresplat.teachers._sentences import SentenceEncoder
from featuresplat.trainer import train
from featuresplat.types import FeatureField, TextTable

sys.path.insert(0, str(Path(__file__).parent))
from command import MACHINE, command
from rasterize import provenance

RESULTS = Path(__file__).parent / "results" / "fields-cpu.json"
NOISE = 0.3


class Clock:
    """Wall and CPU seconds since it was made (on a busy machine the latter say more), and the peak of memory."""

    def __init__(self):
        with contextlib.suppress(OSError):  # Linux forgets the peak so far
            Path("/proc/self/clear_refs").write_text("5")
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        cost = {"seconds": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}
        return {**cost, "peak_memory_bytes": memory.peak()}


class Truth:
    """The instance masks of a scene, and the sentence embedding of each object's name."""

    def __init__(self, folder: Path, seed: int = 0):
        self.folder = folder
        objects = json.loads((folder / "meta.json").read_text())["objects"]
        names = {o["index"]: o["name"] for o in objects}
        self.names = ["background", *(names[i] for i in range(1, max(names) + 1))]
        self.generator = torch.Generator().manual_seed(seed)
        self.vectors = SentenceEncoder().encode(self.names)

    def labels(self, name: str, size: tuple[int, int] | None = None) -> Tensor:
        image = Image.open(self.folder / "instance" / f"{Path(name).stem}.png")
        if size is not None:
            image = image.resize(size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(image)).long()

    def mislabelled(self, labels: Tensor, share: float) -> Tensor:
        out = labels.clone()
        for k in labels.unique().tolist():
            if k and float(torch.rand((), generator=self.generator)) < share:
                other = int(torch.randint(1, len(self.names) - 1, (), generator=self.generator))
                out[labels == k] = other + (other >= k)
        return out

    def maps(self, scene: Scene, share: float, basis: Tensor | None = None, shrink: int = 1) -> Maps:
        """Of the training views, at a fraction of their size; on a basis [F, K], if one is given."""
        cameras = scene.part("train")
        sizes = [(w // shrink, h // shrink) for w, h in cameras.sizes]
        labels = [self.labels(str(n), size) for n, size in zip(cameras.names, sizes, strict=True)]
        labels = [self.mislabelled(one, share).to(torch.uint8) for one in labels]
        vectors = self.vectors if basis is None else self.vectors @ basis
        return Maps(cameras, vectors.shape[1], lambda i: vectors[labels[i].long()])

    def masks(self, scene: Scene) -> dict[str, dict[str, TrueMask]]:
        out = {}
        for camera in (scene.part("test")[i] for i in range(len(scene.part("test")))):
            labels = self.labels(str(camera.names[0]), (camera.width, camera.height))
            there = [k for k in range(1, len(self.names)) if bool((labels == k).any())]
            out[str(camera.names[0])] = {self.names[k]: TrueMask(labels == k) for k in there}
        return out

    def write(self, folder: Path, shrink: int, share: float = 0.0) -> None:
        """As a folder that `precomputed` reads: of every image, at a fraction of its size."""
        folder.mkdir(parents=True, exist_ok=True)
        phrases = {name: row for row, name in enumerate(self.names)}
        described = {"name": "truth", "dim": self.vectors.shape[1], "phrases": phrases}
        (folder / "teacher.json").write_text(json.dumps(described))
        np.save(folder / "text.npy", self.vectors.numpy())
        for path in sorted((self.folder / "instance").glob("*.png")):
            with Image.open(path) as image:
                size = image.width // shrink, image.height // shrink
            labels = self.mislabelled(self.labels(path.name, size), share)
            np.save(folder / f"{path.stem}.npy", self.vectors[labels].half().numpy())

    def score(self, scene: Scene, field: FeatureField) -> dict[str, float]:
        """mIoU rendered and of Gaussians."""
        field.text = TextTable(tuple(self.names), self.vectors)
        field.teacher = "precomputed"
        asked = replace(scene, fields={"truth": field})
        masks = self.masks(scene)
        rendered, gaussians = (measure_masks(asked, masks, gaussians=g) for g in (False, True))
        return {"rendered": rendered["miou"], "gaussians": gaussians["miou"]}


class TruthTeacher:
    """What `distill.make_fields` asks of a teacher beside its maps."""

    name = "precomputed"

    def __init__(self, truth: Truth):
        self.settings: dict[str, Any] = {}
        self.dim = truth.vectors.shape[1]
        self.table = TextTable(tuple(truth.names), truth.vectors)


def truth_table(args: argparse.Namespace) -> dict[str, Any]:
    scene = Scene.load(args.run)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for share, seed in [(n, s) for n in args.noise for s in (args.seeds if n else [0])]:  # clean masks know no chance
        truth = Truth(args.scene, seed)
        # Ten vectors span ten dimensions, and every method commutes with a rotation: on an orthonormal basis of their
        # span the codes are the same, for a fraction of the time.
        basis = None if args.whole else torch.linalg.qr(truth.vectors.T)[0]
        maps = truth.maps(scene, share, basis)
        for method in args.methods:
            clock = Clock()
            lifted = lift(scene, maps, method)
            found = clock.read()
            codes = lifted.codes if basis is None else lifted.codes @ basis.T
            found |= truth.score(scene, FeatureField(codes, confidence=lifted.confidence))
            kind = "mislabelled" if share else "clean, 384 channels" if args.whole else "clean"
            row = rows.setdefault(f"{method}, {kind}", {})
            for key, value in found.items():
                row.setdefault(key, {})[str(seed)] = value
            _say(f"seed {seed} noise {share} {method:8s}", found)
    return {"channels": truth.vectors.shape[1], "noise": NOISE, "rows": rows}


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Seeds and methods measured one after the other make one table."""
    out = {**old, **new}
    for key in old.keys() & new.keys():
        if isinstance(old[key], dict) and isinstance(new[key], dict) and key not in ("machine", "versions"):
            out[key] = merged(old[key], new[key])
    return out


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """Means over the seeds, and the least."""
    lines = [f"{'method':24s} {'rendered':>17s} {'Gaussians':>17s} {'CPU s':>8s}  seeds"]
    for name, row in rows.items():
        cells = [
            f"{statistics.mean(v := list(row[k].values())):.3f} (>= {min(v):.3f})" for k in ("rendered", "gaussians")
        ]
        cpu = statistics.median(row["cpu"].values())
        lines.append(f"{name:24s} {cells[0]:>17s} {cells[1]:>17s} {cpu:8.1f}  {len(row['cpu'])}")
    return "\n".join(lines)


def _say(what: str, found: dict[str, float]) -> None:
    cost = f"{found['seconds']:6.1f} s, CPU {found['cpu']:.1f} s, {found['peak_memory_bytes'] / 2**20:.0f} MiB"
    print(f"{what} rendered {found['rendered']:.4f} Gaussians {found['gaussians']:.4f} {cost}", flush=True)


def trained(args: argparse.Namespace) -> dict[str, Any]:
    scene, truth = Scene.load(args.run), Truth(args.scene)
    out: dict[str, Any] = {"channels": truth.vectors.shape[1], "maps_shrunk_by": args.shrink, "rows": {}}
    ways = {
        "384 channels, lift": FieldConfig(),
        "8 channels, linear, lift": FieldConfig(dim=8),
        "8 channels, linear, trained": FieldConfig(dim=8, steps=args.steps),
        "8 channels, MLP, trained": FieldConfig(dim=8, steps=args.steps, decoder="mlp"),
        "32 channels, linear, lift": FieldConfig(dim=32),
        "32 channels, linear, trained": FieldConfig(dim=32, steps=args.steps),
        "codebook of 64, top 4": FieldConfig(dim=32, codebook=64),
    }
    rows = [(0.0, name) for name in ways] + [(NOISE, name) for name in list(ways)[3:6]]
    for share, name in rows[slice(*args.rows)]:
        truth.generator.manual_seed(0)  # all are taught the same mistakes
        maps, config = truth.maps(scene, share, shrink=args.shrink), ways[name]
        clock = Clock()
        field = distill.make_fields(scene, [maps], [TruthTeacher(truth)], config)["precomputed"]  # pyright: ignore
        found = {**clock.read(), **truth.score(scene, field), "steps": config.steps}
        out["rows"][f"{name}, {'mislabelled' if share else 'clean'}"] = found
        _say(f"noise {share} {name:30s}", found)
    return out


def joint(args: argparse.Namespace) -> dict[str, Any]:
    """Both from scratch on the same reduced images, the same steps."""
    truth = Truth(args.scene)
    out: dict[str, Any] = {"channels": truth.vectors.shape[1], "steps": args.steps, "downscale": 4, "rows": {}}
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder) / "maps"
        truth.write(maps, 4)
        ways = (
            ("geometry, then lift", "static", 0),
            ("joint, 384 channels", "joint", 0),
            ("joint, 96 channels and a decoder", "joint", 96),
        )
        for name, mode, dim in ways[slice(*args.rows)]:
            config = load_config("fast")
            config.out, config.mode, config.steps = Path(folder) / f"{mode}{dim}", mode, args.steps
            config.data.downscale, config.model.budget, config.report, config.eval_views = 4, 20_000, False, 0
            config.teacher, config.field.dim = TeacherConfig("precomputed", maps), dim
            clock = Clock()
            scene = train(args.scene, config, progress=False)
            found = clock.read()
            metrics = json.loads((config.out / "metrics.json").read_text())
            found |= {**truth.score(scene, scene.field()[1]), "psnr": metrics["test"]["psnr"]}
            out["rows"][name] = {**found, "gaussian_count": len(scene.gaussians)}
            _say(f"{name} {metrics['test']['psnr']:.2f} dB", found)
    return out


def write_maps(args: argparse.Namespace) -> dict[str, Any]:
    Truth(args.scene).write(args.folder, args.shrink)
    return {}


def speed(args: argparse.Namespace) -> dict[str, Any]:
    scene = Scene.load(args.run)
    count = min(args.count, len(scene.gaussians))
    scene = scene.rows(torch.randperm(len(scene.gaussians), generator=torch.Generator().manual_seed(0))[:count])
    cameras = scene.part("train")
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(cameras[0].height, cameras[0].width, args.channels, generator=generator).half()
    patch = torch.randn(24, 32, args.channels, generator=generator).half()
    out: dict[str, Any] = {"gaussians": count, "views": len(cameras), "channels": args.channels}
    for name, one in (("map of every pixel", full), ("map of 32x24 cells", patch)):
        maps = Maps(cameras, args.channels, lambda i, one=one: one)
        found = []
        for _ in range(args.repeat):
            clock = Clock()
            lift(scene, maps)
            found.append(clock.read())
        row: dict[str, Any] = {key: [one[key] for one in found] for key in ("seconds", "cpu")}
        row |= {"median_seconds": statistics.median(row["seconds"])}
        row |= {"peak_memory_bytes": found[-1]["peak_memory_bytes"]}
        out[name] = row
        peak = f"{row['peak_memory_bytes'] / 2**20:.0f} MiB"
        print(f"{name}: median {row['median_seconds']:.2f} s, CPU {min(row['cpu']):.2f} s, {peak}", flush=True)
    return out


def decoder(args: argparse.Namespace) -> dict[str, Any]:
    from featuresplat import teachers
    from featuresplat.evaluate import dataset_of

    scene = Scene.load(args.run)
    teacher = teachers.make_teacher(args.teacher, TeacherConfig(args.teacher, path=args.path))
    maps = distill.maps_of(scene, dataset_of(scene), teacher, FieldConfig())
    held = list(range(0, len(maps), 5))
    kept = [i for i in range(len(maps)) if i not in held]
    some = Maps(maps.cameras[kept], maps.dim, lambda k: maps[kept[k]])
    every = 1 << 30
    moment, all_cells = second_moment(some), second_moment(some, every)
    unseen = second_moment(Maps(maps.cameras[held], maps.dim, lambda k: maps[held[k]]), every)
    lifted = lift(scene, some)
    field = FeatureField(lifted.codes, teacher.name, confidence=lifted.confidence)
    out: dict[str, Any] = {"teacher": args.teacher, "channels": maps.dim, "maps": len(maps), "rows": {}}
    weights = lifted.confidence.clamp_min(0).double()
    gram = (lifted.codes.double() * weights[:, None]).T @ lifted.codes.double()
    codes_energy = torch.linalg.eigvalsh(gram).flip(0).clamp_min(0)
    for dim in (8, 16, 32, 64, 128):
        if dim >= maps.dim:
            break
        axes = principal_axes(moment, dim)[0].double()
        small = low_rank(field, dim)
        rest = (small.decode(small.codes) - field.codes).double().square().sum(1)
        row = {}
        for name, cells in (("maps", all_cells), ("held_out_maps", unseen)):
            energies = principal_axes(cells, 1)[1]
            row[name] = (1 - float((axes.T @ cells @ axes).trace() / cells.trace())) ** 0.5
            row[f"{name}_bound"] = float(energies[dim:].sum() / energies.sum()) ** 0.5
        row |= {
            "codes": float((weights * rest).sum() / gram.trace()) ** 0.5,
            "codes_bound": float(codes_energy[dim:].sum() / codes_energy.sum()) ** 0.5,
        }
        out["rows"][dim] = row
        print(dim, "  ".join(f"{k} {v:.4f}" for k, v in row.items()), flush=True)
    return out


PARTS = {
    "truth": truth_table, "trained": trained, "joint": joint, "maps": write_maps, "speed": speed, "decoder": decoder
}  # fmt: skip


MERGED = ("truth", "trained", "joint")
"""Rows that are measured one after the other."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        if name not in ("joint", "maps"):
            part.add_argument("run", type=Path)
        if name in ("truth", "trained", "joint", "maps"):
            part.add_argument("scene", type=Path)
        if name == "maps":
            part.add_argument("folder", type=Path)
        if name in ("maps", "trained"):
            part.add_argument("--shrink", type=int, default=4, help="divide the size of the maps by this")
        if name in ("trained", "joint"):
            part.add_argument("--rows", type=int, nargs=2, default=[None, None], help="of the table, from and to")
        if name == "truth":
            part.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
            part.add_argument("--whole", action="store_true", help="lift all channels: for the cost of it")
            part.add_argument("--noise", type=float, nargs="+", default=[0.0, NOISE])
            part.add_argument("--methods", nargs="+", default=list(METHODS))
        if name in ("trained", "joint"):
            part.add_argument("--steps", type=int, default=150 if name == "trained" else 1000)
        if name == "speed":
            part.add_argument("--channels", type=int, default=384)
            part.add_argument("--count", type=int, default=50_000)
            part.add_argument("--repeat", type=int, default=5)
        if name == "decoder":
            part.add_argument("--teacher", default="offline")
            part.add_argument("--path", type=Path)
        part.add_argument("--threads", type=int, default=1, help="of torch beside the engine's own")
        part.add_argument("--json", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    found = PARTS[args.part](args)
    if not found:
        return
    everything = json.loads(args.json.read_text()) if args.json.is_file() else {}
    found = {**provenance(args.threads), "shared": MACHINE, "command": command(), **found}
    everything[args.part] = merged(everything.get(args.part, {}), found) if args.part in MERGED else found
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(everything, indent=1) + "\n")
    if args.part == "truth":
        print(table(everything["truth"]["rows"]))
    print(f"written to {args.json}")


if __name__ == "__main__":
    main()
