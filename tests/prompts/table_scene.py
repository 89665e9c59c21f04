"""A small scene made by hand: a brown table, and a red ball, a blue box and a green ball that stand on it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from featuresplat.paths import look_at
from featuresplat.prompts.surface import splat
from featuresplat.prompts.targets import Target
from featuresplat.scene import Scene
from featuresplat.types import SH_C0, Cameras, FeatureField, Gaussians, TextTable

NAMES = ("background", "table", "red ball", "blue box", "green ball")
COLORS = torch.tensor([[0.0, 0, 0], [0.55, 0.4, 0.25], [0.8, 0.1, 0.1], [0.1, 0.2, 0.8], [0.1, 0.7, 0.2]])
BALL, BOX = Target(text="red ball"), Target(text="blue box")


def _ball(count: int, center: tuple[float, float, float], radius: float) -> Tensor:
    """Points spread evenly over a sphere (golden spiral)."""
    i = torch.arange(count) + 0.5
    z = 1 - 2 * i / count
    angle = math.pi * (1 + 5**0.5) * i
    r = (1 - z * z).sqrt()
    return torch.stack([r * angle.cos(), r * angle.sin(), z], 1) * radius + torch.tensor(center)


def _box(
    count: int, center: tuple[float, float, float], half: tuple[float, float, float], g: torch.Generator
) -> Tensor:
    points = 2 * torch.rand(count, 3, generator=g) - 1
    face = torch.randint(3, (count,), generator=g)
    points[torch.arange(count), face] = points[torch.arange(count), face].sign()
    return points * torch.tensor(half) + torch.tensor(center)


def make_world(sh_degree: int = 1, size: tuple[int, int] = (128, 96)) -> tuple[Scene, Tensor]:
    """The scene, and int64 [N] what each Gaussian belongs to: an index into NAMES."""
    g = torch.Generator().manual_seed(0)
    line = torch.linspace(-1.6, 1.6, 41)
    table = torch.stack([*torch.meshgrid(line, line, indexing="ij"), torch.zeros(41, 41)], -1).reshape(-1, 3)
    table[:, :2] += 0.01 * torch.randn(len(table), 2, generator=g)
    parts = [
        table,
        _ball(700, (-0.6, 0.1, 0.33), 0.33),
        _box(900, (0.55, -0.3, 0.25), (0.3, 0.2, 0.25), g),
        _ball(500, (0.45, 0.75, 0.25), 0.25),
    ]
    labels = torch.cat([torch.full((len(p),), k + 1) for k, p in enumerate(parts)])
    means = torch.cat(parts)
    count = len(means)
    scales = torch.where(labels[:, None] == 1, torch.tensor([0.06, 0.06, 0.01]), torch.tensor([0.035, 0.035, 0.035]))
    colors = COLORS[labels] + 0.03 * torch.randn(count, 3, generator=g)
    rows = (sh_degree + 1) ** 2 - 1
    gaussians = Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        log_scales=scales.log(),
        logit_opacities=torch.full((count,), 3.0),
        sh0=((colors - 0.5) / SH_C0)[:, None],
        shN=0.02 * torch.randn(count, rows, 3, generator=g),
    )
    angles = torch.arange(10) * (2 * math.pi / 10)
    eyes = torch.stack([3 * angles.cos(), 3 * angles.sin(), torch.full((10,), 1.9)], 1).double()
    viewmats = look_at(eyes, torch.tensor([0.0, 0, 0.2]).double(), torch.tensor([0.0, 0, 1]).double())
    width, height = size
    K = torch.tensor([[1.1 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]]).double()
    names = [f"view_{i:02d}.png" for i in range(10)]
    cameras = Cameras(viewmats, K.repeat(10, 1, 1), width, height, names=names)
    info = {
        "split": {"train": names[2:], "test": names[:2]},
        "full_sizes": [[2 * width, 2 * height]] * 10,
        "background": [0.0, 0.0, 0.0],
    }
    return Scene(gaussians, cameras, info=info), labels


def with_field(scene: Scene, labels: Tensor, channels: int = 8) -> Scene:
    """The scene with a field of vectors at right angles, one per name, and their table."""
    g = torch.Generator().manual_seed(1)
    vectors = torch.linalg.qr(torch.randn(channels, len(NAMES), generator=g))[0].T.contiguous()
    found = FeatureField(vectors[labels].clone(), "precomputed", text=TextTable(NAMES, vectors))
    return replace(scene, fields={"truth": found})


def true_mask(scene: Scene, labels: Tensor, camera: Cameras, label: int) -> Tensor:
    """bool [H, W]: where a label is most of what is seen."""
    shares = splat(scene.gaussians, camera, torch.nn.functional.one_hot(labels).float(), scene.raster_settings())
    return (shares[..., :-1].argmax(-1) == label) & (shares[..., -1] > 0.5)


def iou(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum())


def same_scene(a: Scene, b: Scene) -> bool:
    """Bit-identical Gaussians, fields and state."""
    tensors = [(x, y) for x, y in zip(a.gaussians.tensors().values(), b.gaussians.tensors().values(), strict=True)]
    tensors += [(a.fields[k].codes, b.fields[k].codes) for k in a.fields]
    return all(torch.equal(x, y) for x, y in tensors)
