"""Fixtures that every test may ask for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class SplatScene:
    """Random Gaussians in front of C cameras: what `featuresplat.rasterize` takes."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4]
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3], or [N, K, 3] spherical harmonics
    features: Tensor  # [N, D]
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]
    backgrounds: Tensor  # [C, 3]
    width: int
    height: int

    def tensors(self) -> dict[str, Tensor]:
        return {k: v for k, v in vars(self).items() if isinstance(v, Tensor)}

    def to(self, *args) -> SplatScene:
        return replace(self, **{k: v.to(*args) for k, v in self.tensors().items()})


@pytest.fixture(autouse=True, scope="session")
def _one_torch_thread():
    """Small tensors: one thread is faster than two, and much faster on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def look_at(eye: Tensor, target: Tensor) -> Tensor:
    """[4, 4] world-to-camera, OpenCV axes, at ``eye``, its y axis roughly along world +y."""
    z = torch.nn.functional.normalize(target - eye, dim=0)
    x = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0], dtype=eye.dtype), z), dim=0)
    R = torch.stack([x, torch.linalg.cross(z, x), z])
    out = torch.eye(4, dtype=eye.dtype)
    out[:3, :3], out[:3, 3] = R, -(R @ eye)
    return out


def random_scene(
    gaussians: int = 50,
    channels: int = 4,
    cameras: int = 1,
    width: int = 40,
    height: int = 33,
    sh_degree: int | None = None,
    seed: int = 0,
    size: float = 0.12,
) -> SplatScene:
    """A ball of Gaussians around the origin, cameras on a circle of radius 3 about it; float32 values."""
    g = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=g)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    poses = []
    for i in range(cameras):
        angle = 0.3 + 2 * math.pi * i / cameras
        eye = torch.tensor([3 * math.sin(angle), 0.4 * (i - 1), -3 * math.cos(angle)])
        poses.append(look_at(eye, torch.zeros(3)))
    intrinsics = [[0.9 * width, 0, width / 2 + 0.3], [0, 0.93 * width, height / 2 - 0.2], [0, 0, 1]]
    rows = 0 if sh_degree is None else (sh_degree + 1) ** 2
    return SplatScene(
        means=0.5 * randn(gaussians, 3),
        quats=randn(gaussians, 4),
        scales=size * (0.15 + rand(gaussians, 3)),
        opacities=0.05 + 0.94 * rand(gaussians),
        colors=rand(gaussians, 3) if sh_degree is None else 0.3 * randn(gaussians, rows, 3),
        features=randn(gaussians, channels),
        viewmats=torch.stack(poses),
        Ks=torch.tensor([intrinsics] * cameras, dtype=torch.float32),
        backgrounds=rand(cameras, 3),
        width=width,
        height=height,
    )


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., SplatScene]:
    """The factory `random_scene`."""
    return random_scene


@pytest.fixture(scope="session")
def shared_scene() -> Callable[[str], Path]:
    """``shared_scene("dino")`` is the folder of a development scene; skips where there is none."""

    def folder(name: str) -> Path:
        path = Path(__file__).resolve().parents[1] / "../shared/scenes" / name
        if not path.is_dir():
            pytest.skip(f"the development scene '{name}' is not beside this checkout")
        return path.resolve()

    return folder
