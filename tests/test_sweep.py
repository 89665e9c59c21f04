"""Start points by plane sweep, against the demo scene's true depths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.spatial import KDTree

from featuresplat.config import DataConfig
from featuresplat.datasets import Dataset, load_dataset
from featuresplat.normalization import Normalization
from featuresplat.sweep import sweep
from featuresplat.types import Cameras, PointCloud

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
VIEWS = list(range(0, 40, 4))


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset(DEMO, DataConfig(downscale=2))


@pytest.fixture(scope="module")
def frame(data) -> Normalization:
    return Normalization.of(data.cameras, None)


@pytest.fixture(scope="module")
def found(data, frame) -> PointCloud:
    cameras = frame.cameras(data.cameras[VIEWS])
    return sweep(lambda i: data.image(VIEWS[i]), cameras, 2000, torch.Generator().manual_seed(0))


def true_points(data: Dataset, frame: Normalization) -> torch.Tensor:
    """All surfaces that the depth maps show, [M, 3] in the training frame."""
    out = []
    for i in VIEWS:
        depth = data.depth(i)
        assert depth is not None
        rows, cols = (depth > 0).nonzero(as_tuple=True)
        z, K = depth[rows, cols].double(), data.cameras.Ks[i].double()
        local = torch.stack([(cols + 0.5 - K[0, 2]) / K[0, 0] * z, (rows + 0.5 - K[1, 2]) / K[1, 1] * z, z], 1)
        c2w = data.cameras.c2w[i].double()
        out.append((local @ c2w[:3, :3].T + c2w[:3, 3] - frame.center) * frame.scale)
    return torch.cat(out)


def test_points_lie_on_the_surfaces(data, frame, found):
    distance, _ = KDTree(true_points(data, frame).numpy()).query(found.xyz.double().numpy())
    distance = torch.from_numpy(distance)
    assert len(found) > 200
    assert float(distance.median()) < 0.02  # of the camera extent
    assert float((distance < 0.1).double().mean()) > 0.8


def test_points_have_the_colours_of_the_photographs(data, frame, found):
    assert found.rgb.shape == found.xyz.shape
    assert 0 <= float(found.rgb.min()) <= float(found.rgb.max()) <= 1
    truth = data.points
    assert truth is not None
    near, index = KDTree(frame.points(truth).xyz.numpy()).query(found.xyz.numpy())
    close = torch.from_numpy(near) < 0.02
    difference = (found.rgb - truth.rgb.float()[torch.from_numpy(index)])[close].abs().mean()
    shuffled = (found.rgb.flip(0) - truth.rgb.float()[torch.from_numpy(index)])[close].abs().mean()
    assert float(difference) < 0.15
    assert float(difference) < 0.6 * float(shuffled)


def test_the_generator_decides(data, frame):
    few = [0, 2, 4, 6]
    cameras = frame.cameras(data.cameras[few])
    a, b, c = (
        sweep(lambda i: data.image(few[i]), cameras, 300, torch.Generator().manual_seed(seed)).xyz for seed in (1, 1, 2)
    )
    assert torch.equal(a, b)
    assert a.shape != c.shape or not torch.equal(a, c)


def test_photographs_of_nothing_give_no_points(data, frame):
    few = [0, 2, 4, 6]
    cameras = frame.cameras(data.cameras[few])
    flat = torch.full((60, 80, 3), 128, dtype=torch.uint8)
    assert len(sweep(lambda _: flat, cameras, 300, torch.Generator().manual_seed(0))) == 0


def test_unrelated_photographs_give_hardly_any(data, frame):
    few = [0, 2, 4, 6]
    cameras, g = frame.cameras(data.cameras[few]), torch.Generator().manual_seed(0)
    noise = [torch.randint(256, (120, 160, 3), generator=g).to(torch.uint8) for _ in few]
    assert len(sweep(lambda i: noise[i], cameras, 400, g)) < 20


def test_one_view_is_too_few(data, frame):
    one: Cameras = frame.cameras(data.cameras[[0]])
    assert len(sweep(lambda _: data.image(0), one, 100, torch.Generator())) == 0


def test_tiny_images_are_passed_over(data, frame):
    cameras = frame.cameras(data.cameras[[0, 2]]).resized([5, 5], [4, 4])
    tiny = torch.zeros(4, 5, 3, dtype=torch.uint8)
    assert len(sweep(lambda _: tiny, cameras, 100, torch.Generator())) == 0
