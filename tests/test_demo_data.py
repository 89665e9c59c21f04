"""The demo scene against itself: complete, small, and geometrically true. Needs no Blender."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
META = json.loads((DEMO / "meta.json").read_text())
TRANSFORMS = json.loads((DEMO / "transforms.json").read_text())
FRAMES = TRANSFORMS["frames"]
SIZE = TRANSFORMS["w"], TRANSFORMS["h"]
NAMES = {o["name"]: o["index"] for o in META["objects"]}
TEST_NAMES = (DEMO / "test.txt").read_text().split()
STEMS = [Path(f["file_path"]).stem for f in FRAMES]


@cache
def depth(stem: str) -> np.ndarray:
    """[H, W] metres along the optical axis."""
    return np.asarray(Image.open(DEMO / f"depth/{stem}.png")).astype(np.float64) / 1000


@cache
def instance(stem: str) -> np.ndarray:
    """[H, W] index of the object at the pixel centre."""
    return np.asarray(Image.open(DEMO / f"instance/{stem}.png"))


@cache
def color(stem: str) -> np.ndarray:
    """[H, W, 3] in 0..1."""
    return np.asarray(Image.open(DEMO / f"images/{stem}.jpg")).astype(np.float64) / 255


def c2w(frame: dict) -> np.ndarray:
    """OpenCV camera-to-world [4, 4] of a frame (the file has OpenGL axes)."""
    return np.asarray(frame["transform_matrix"]) @ np.diag([1.0, -1.0, -1.0, 1.0])


def unproject(frame: dict) -> np.ndarray:
    """World points [H*W, 3] of all pixel centres of a view."""
    z = depth(Path(frame["file_path"]).stem)
    u, v = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    x = (u - TRANSFORMS["cx"]) / TRANSFORMS["fl_x"] * z
    y = (v - TRANSFORMS["cy"]) / TRANSFORMS["fl_y"] * z
    pose = c2w(frame)
    return np.stack([x, y, z], -1).reshape(-1, 3) @ pose[:3, :3].T + pose[:3, 3]


def project(points: np.ndarray, frame: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixel coordinates u, v and depth [P] of world points."""
    pose = c2w(frame)
    x, y, z = ((points - pose[:3, 3]) @ pose[:3, :3]).T
    return (
        x / z * TRANSFORMS["fl_x"] + TRANSFORMS["cx"],
        y / z * TRANSFORMS["fl_y"] + TRANSFORMS["cy"],
        z,
    )


def seen_again(source: dict, target: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flat indices of the source's pixels that land in the target, target pixels, depth there."""
    u, v, z = project(unproject(source), target)
    inside = (z > 0) & (u >= 0) & (u < SIZE[0]) & (v >= 0) & (v < SIZE[1])
    flat = np.floor(v[inside]).astype(int) * SIZE[0] + np.floor(u[inside]).astype(int)
    return np.nonzero(inside)[0], flat, z[inside]


def pair(step: int) -> tuple[dict, dict]:
    """Two neighbouring views of the middle ring."""
    start = len(FRAMES) // 2
    return FRAMES[start], FRAMES[start + step]


def test_size_under_four_megabytes() -> None:
    assert sum(p.stat().st_size for p in DEMO.rglob("*") if p.is_file()) < 4 * 1024 * 1024


def test_nothing_but_the_scene() -> None:
    expected = {"transforms.json", "test.txt", "meta.json", "points3d.ply"}
    for stem in STEMS:
        expected |= {f"images/{stem}.jpg", f"depth/{stem}.png", f"instance/{stem}.png"}
    assert {p.relative_to(DEMO).as_posix() for p in DEMO.rglob("*") if p.is_file()} == expected


def test_split() -> None:
    images = [Path(f["file_path"]).name for f in FRAMES]
    assert len(images) == len(set(images)) == 40
    assert len(TEST_NAMES) == 6
    assert set(TEST_NAMES) < set(images)
    assert META["splits"] == {"train": 34, "test": 6}


@pytest.mark.parametrize("frame", FRAMES, ids=STEMS)
def test_frame(frame: dict) -> None:
    stem = Path(frame["file_path"]).stem
    image = Image.open(DEMO / frame["file_path"])
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert Image.open(DEMO / frame["depth_file_path"]).mode.startswith("I")
    assert depth(stem).shape == instance(stem).shape == SIZE[::-1]
    assert instance(stem).dtype == np.uint8
    assert set(np.unique(instance(stem))) <= set(NAMES.values())
    assert depth(stem).min() > 0.5  # every ray ends in the room: no hole in the background
    assert color(stem).std() > 0.1  # a picture, not a flat failure
    pose = np.asarray(frame["transform_matrix"])
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1, abs=1e-6)
    np.testing.assert_array_equal(pose[3], [0, 0, 0, 1])
    assert pose[2, 3] > 0.3  # above the table


def test_names() -> None:
    assert sorted(NAMES.values()) == list(range(len(NAMES)))
    kitchen = {"coffee mug", "frying pan", "mixing bowl", "teapot", "banana", "orange"}
    assert kitchen | {"soccer ball", "traffic cone", "wooden table", "room"} == set(NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "room"])
def test_object_is_seen_in_most_views(name: str) -> None:
    visible = [np.count_nonzero(instance(s) == NAMES[name]) >= 150 for s in STEMS]
    assert np.mean(visible) > 0.8


def test_table_top_is_the_plane_z_0() -> None:
    """The table's upper face is z = 0 by construction: poses and depths checked against the world."""
    for frame, stem in zip(FRAMES, STEMS, strict=True):
        points = unproject(frame)[instance(stem).ravel() == NAMES["wooden table"]]
        inner = (np.abs(points[:, 0]) < 1.32) & (np.abs(points[:, 1]) < 1.02)  # within the rounded edge
        heights = points[inner & (points[:, 2] > -0.05), 2]  # above the legs
        assert len(heights) > 25000
        assert np.abs(heights).max() < 0.0008  # depth is rounded to 0.001: at most half of it is wrong


@pytest.mark.parametrize("step", [1, 2])
def test_depth_names_and_colors_agree_between_views(step: int) -> None:
    source, target = pair(step)
    a, b, z = seen_again(source, target)
    s, t = Path(source["file_path"]).stem, Path(target["file_path"]).stem
    visible = np.abs(depth(t).ravel()[b] - z) < 0.02
    assert visible.mean() > 0.7  # the rest is hidden by something nearer
    same = instance(s).ravel()[a[visible]] == instance(t).ravel()[b[visible]]
    assert same.mean() > 0.985
    error = np.abs(color(s).reshape(-1, 3)[a[visible]] - color(t).reshape(-1, 3)[b[visible]])
    assert np.median(error) < 0.02
    wrong = np.abs(color(s).reshape(-1, 3)[a[visible]] - color(t).reshape(-1, 3)[b[visible][::-1]])
    assert error.mean() < 0.35 * wrong.mean()  # and it is the geometry that makes them agree


def test_start_points_lie_on_the_surface() -> None:
    vertex = PlyData.read(DEMO / TRANSFORMS["ply_file_path"])["vertex"]
    points = np.stack([vertex[k] for k in "xyz"], 1).astype(np.float64)
    rgb = np.stack([vertex[k] for k in ("red", "green", "blue")], 1)
    assert 8000 <= len(points) <= 12000
    assert np.isfinite(points).all()
    assert rgb.dtype == np.uint8
    assert rgb.std(0).min() > 20
    nearest = np.full(len(points), np.inf)
    for frame, stem in zip(FRAMES, STEMS, strict=True):
        if Path(frame["file_path"]).name in TEST_NAMES:
            continue
        u, v, z = project(points, frame)
        inside = np.nonzero((z > 0) & (u >= 0) & (u < SIZE[0]) & (v >= 0) & (v < SIZE[1]))[0]
        there = depth(stem)[np.floor(v[inside]).astype(int), np.floor(u[inside]).astype(int)]
        nearest[inside] = np.minimum(nearest[inside], np.abs(z[inside] - there))
    assert np.median(nearest) < 0.002
    assert np.quantile(nearest, 0.99) < 0.012  # six standard deviations of the noise
