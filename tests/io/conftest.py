"""What the tests of files share: random Gaussians, and PLY files made by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from featuresplat.types import Gaussians


def random_gaussians(count: int, degree: int = 0, seed: int = 0) -> Gaussians:
    gen = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=gen)

    return Gaussians(
        means=normal(count, 3) * 3,
        quats=normal(count, 4),
        log_scales=normal(count, 3) - 4,
        logit_opacities=normal(count) * 2,
        sh0=normal(count, 1, 3) * 0.8,
        shN=normal(count, (degree + 1) ** 2 - 1, 3) * 0.2,
    )


def ply_bytes(
    names: Sequence[str],
    rows: np.ndarray,
    kind: str = "float",
    order: str = "<",
    comments: Sequence[str] = (),
    count: int | None = None,
    newline: str = "\n",
) -> bytes:
    """A one-element PLY of one column type, put together without the writer under test."""
    form = "binary_little_endian" if order == "<" else "binary_big_endian"
    lines = ["ply", f"format {form} 1.0", *(f"comment {c}" for c in comments)]
    lines += [f"element vertex {len(rows) if count is None else count}"]
    lines += [f"property {kind} {name}" for name in names] + ["end_header"]
    code = {"float": "f4", "double": "f8"}[kind]
    return (newline.join(lines) + newline).encode() + np.asarray(rows).astype(order + code).tobytes()


@pytest.fixture
def gaussians():
    return random_gaussians


@pytest.fixture
def make_ply():
    return ply_bytes


@pytest.fixture
def same():
    def check(a: Gaussians, b: Gaussians) -> None:
        """Bit for bit."""
        for name, value in a.tensors().items():
            assert torch.equal(value, getattr(b, name)), name

    return check
