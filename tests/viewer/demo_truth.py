"""The demo scene without training: its true depths as Gaussians, its true objects as a field.

Good enough to look at and exactly labelled, in about a second.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from featuresplat.config import DataConfig
from featuresplat.datasets import Dataset, load_dataset
from featuresplat.scene import Scene
from featuresplat.types import SH_C0, FeatureField, Gaussians, TextTable

DEMO = Path(__file__).resolve().parents[2] / "data" / "demo"
VOXEL = 0.02
STRIDE = 3


@cache
def dataset() -> Dataset:
    return load_dataset(DEMO, DataConfig())


@cache
def names() -> tuple[str, ...]:
    """Object names by index; 0 is the room."""
    return tuple(o["name"] for o in json.loads((DEMO / "meta.json").read_text())["objects"])


def true_mask(view: int, name: str) -> Tensor:
    """bool [H, W]: an object in a photograph."""
    stem = Path(dataset().cameras.names[view]).stem
    return torch.from_numpy(np.asarray(Image.open(DEMO / "instance" / f"{stem}.png")) == names().index(name))


def truth_scene() -> Scene:
    """Gaussians at the true surface points, one per voxel; the field ``objects`` answers to the objects' names."""
    data = dataset()
    points, colors, labels, sizes = [], [], [], []
    for view in data.train[::2]:
        camera = data.cameras[view]
        stem = Path(camera.names[0]).stem
        depth = torch.from_numpy(np.asarray(Image.open(DEMO / "depth" / f"{stem}.png")).astype(np.float64)) / 1000
        label = torch.from_numpy(np.asarray(Image.open(DEMO / "instance" / f"{stem}.png")).astype(np.int64))
        image = data.image(view).float() / 255
        K, c2w = camera.Ks[0].double(), camera.c2w[0].double()
        ys, xs = torch.meshgrid(
            torch.arange(0, depth.shape[0], STRIDE), torch.arange(0, depth.shape[1], STRIDE), indexing="ij"
        )
        ys, xs = ys.reshape(-1), xs.reshape(-1)
        z = depth[ys, xs]
        there = (z > 0) & (z < 8)
        ys, xs, z = ys[there], xs[there], z[there]
        local = torch.stack([(xs + 0.5 - K[0, 2]) / K[0, 0] * z, (ys + 0.5 - K[1, 2]) / K[1, 1] * z, z], dim=1)
        points.append(local @ c2w[:3, :3].T + c2w[:3, 3])
        colors.append(image[ys, xs])
        labels.append(label[ys, xs])
        sizes.append(z / K[0, 0] * STRIDE)
    xyz, rgb, which, size = torch.cat(points), torch.cat(colors), torch.cat(labels), torch.cat(sizes)
    size = size.clamp_min(VOXEL)
    cells = torch.cat([(xyz / size.log2().ceil().exp2()[:, None]).floor(), which[:, None].double()], dim=1)
    _, inverse = torch.unique(cells, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(xyz), dtype=torch.long)
    first = first.scatter_reduce(0, inverse, torch.arange(len(xyz)), "amin")
    xyz, rgb, which, size = xyz[first], rgb[first], which[first], size[first]
    n = len(xyz)
    gaussians = Gaussians(
        xyz.float(),
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(n, 1),
        (0.5 * size.float()).log()[:, None].repeat(1, 3),
        torch.full((n,), 4.0),
        ((rgb.float() - 0.5) / SH_C0)[:, None],
        torch.zeros(n, 0, 3),
    )
    codes = torch.nn.functional.one_hot(which, len(names())).float()
    table = TextTable(("background", *names()[1:]), torch.eye(len(names())))
    field = FeatureField(codes, "precomputed", text=table, confidence=torch.ones(n))
    split = {
        "train": [data.cameras.names[i] for i in data.train],
        "test": [data.cameras.names[i] for i in data.test],
    }
    return Scene(gaussians, data.cameras, {"objects": field}, info={"split": split, "source": str(DEMO)})
