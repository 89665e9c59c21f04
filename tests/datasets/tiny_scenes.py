"""Tiny scenes written to disk by code that shares nothing with the readers."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

SHARED = Path(__file__).resolve().parents[2] / "../shared/scenes"
MODEL_IDS = {
    "SIMPLE_PINHOLE": 0, "PINHOLE": 1, "SIMPLE_RADIAL": 2, "RADIAL": 3, "OPENCV": 4, "OPENCV_FISHEYE": 5,
    "FULL_OPENCV": 6, "FOV": 7, "SIMPLE_RADIAL_FISHEYE": 8, "RADIAL_FISHEYE": 9, "THIN_PRISM_FISHEYE": 10,
}  # fmt: skip
POINTS = [((0.1, -0.2, 1.5), (255, 0, 51), 3), ((1.0, 2.0, 3.0), (0, 102, 255), 0)]


def picture(width: int = 24, height: int = 16, seed: int = 0) -> np.ndarray:
    """uint8 [H, W, 3], noise."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pose(k: int) -> np.ndarray:
    """World-to-camera [4, 4], another one for each k."""
    out = np.eye(4)
    out[:3, :3] = Rotation.from_euler("xyz", [0.1 * k, 0.3 - 0.2 * k, 0.05 * k]).as_matrix()
    out[:3, 3] = [0.1 * k, -0.2, 2.0 + k]
    return out


def opengl_c2w(viewmat: np.ndarray) -> list[list[float]]:
    """As transforms.json has it."""
    return (np.linalg.inv(viewmat) @ np.diag([1.0, -1.0, -1.0, 1.0])).tolist()


def wxyz(viewmat: np.ndarray) -> np.ndarray:
    return np.roll(Rotation.from_matrix(viewmat[:3, :3]).as_quat(), 1)


def colmap_scene(
    root: Path, count: int = 9, model: str = "PINHOLE", params=(20.0, 21.0, 12.0, 8.0), size=(24, 16), binary=True,
    folder: str = "sparse/0", image_size=None, poses=None,
) -> Path:  # fmt: skip
    """``count`` images img_0.png ..., written in reverse order of name; two points."""
    where = root / folder
    where.mkdir(parents=True, exist_ok=True)
    poses = poses or [pose(k) for k in range(count)]
    for k in range(count):
        save(root / "images" / f"img_{k}.png", picture(*(image_size or size), seed=k))
    (_colmap_binary if binary else _colmap_text)(where, count, model, params, size, poses)
    return root


def _colmap_binary(where: Path, count: int, model: str, params, size, poses) -> None:
    camera = struct.pack("<QiiQQ", 1, 7, MODEL_IDS[model], *size) + struct.pack(f"<{len(params)}d", *params)
    (where / "cameras.bin").write_bytes(camera)
    data = struct.pack("<Q", count)
    for k in reversed(range(count)):
        data += struct.pack("<i4d3di", k + 1, *wxyz(poses[k]), *poses[k][:3, 3], 7) + f"img_{k}.png\0".encode()
        data += struct.pack("<Q", k) + b"".join(struct.pack("<ddq", 1.0, 2.0, -1) for _ in range(k))
    (where / "images.bin").write_bytes(data)
    data = struct.pack("<Q", len(POINTS))
    for k, (xyz, rgb, track) in enumerate(POINTS):
        data += struct.pack("<Q3d3BdQ", k, *xyz, *rgb, 0.5, track) + struct.pack("<ii", 1, 2) * track
    (where / "points3D.bin").write_bytes(data)


def _colmap_text(where: Path, count: int, model: str, params, size, poses) -> None:
    numbers = " ".join(repr(float(p)) for p in params)
    (where / "cameras.txt").write_text(f"# a comment\n7 {model} {size[0]} {size[1]} {numbers}\n")
    lines = ["# two lines an image"]
    for k in reversed(range(count)):
        values = " ".join(repr(float(v)) for v in [*wxyz(poses[k]), *poses[k][:3, 3]])
        lines += [f"{k + 1} {values} 7 img_{k}.png", " ".join(["1.0 2.0 -1"] * k)]  # no features: an empty line
    (where / "images.txt").write_text("\n".join(lines) + "\n")
    rows = [f"{k} {' '.join(map(str, xyz + rgb))} 0.5" + " 1 2" * track for k, (xyz, rgb, track) in enumerate(POINTS)]
    (where / "points3D.txt").write_text("# points\n" + "\n".join(rows) + "\n")


def frame(file_path: str, k: int, **more) -> dict:
    return {"file_path": file_path, "transform_matrix": opengl_c2w(pose(k)), **more}


def transforms_scene(root: Path, count: int = 9, name: str = "transforms.json", frames=None, **meta) -> Path:
    """A json with images of 24x16; ``meta`` overrides the intrinsics."""
    values = {"fl_x": 20.0, "fl_y": 21.0, "cx": 12.0, "cy": 8.0, "w": 24, "h": 16, **meta}
    if frames is None:
        frames = [frame(f"images/img_{k}.png", k) for k in range(count)]
        for k in range(count):
            save(root / "images" / f"img_{k}.png", picture(seed=k))
    values = {k: v for k, v in values.items() if v is not None}
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps({**values, "frames": frames}))
    return root


def blender_scene(root: Path, parts=("train", "val", "test"), angle: float = 0.8) -> Path:
    """RGBA images of 20x20 without endings in the json, left half transparent."""
    for p, part in enumerate(parts):
        frames = []
        for k in range(3):
            rgba = np.concatenate([picture(20, 20, seed=10 * p + k), np.full((20, 20, 1), 255, np.uint8)], axis=-1)
            rgba[:, :10, 3] = 0
            rgba[:, 10, 3] = 102
            save(root / part / f"r_{k}.png", rgba)
            frames.append({"rotation": 0.01, **frame(f"./{part}/r_{k}", 3 * p + k)})
        (root / f"transforms_{part}.json").write_text(json.dumps({"camera_angle_x": angle, "frames": frames}))
    return root


def project(model: str, p, points: np.ndarray) -> np.ndarray:
    """Pixels [M, 2] of camera-space points [M, 3], as COLMAP's and OpenCV's documentation write each model."""
    out = []
    for X, Y, Z in points:
        x, y = X / Z, Y / Z
        r = math.hypot(x, y)
        if model in ("SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
            k = [*p[3:], 0.0, 0.0]
            g = 1 + k[0] * r**2 + k[1] * r**4
            out.append((p[0] * x * g + p[1], p[0] * y * g + p[2]))
        elif model in ("PINHOLE", "OPENCV", "FULL_OPENCV"):
            k1, k2, p1, p2, k3, k4, k5, k6 = [*p[4:], *[0.0] * (12 - len(p))]
            g = (1 + k1 * r**2 + k2 * r**4 + k3 * r**6) / (1 + k4 * r**2 + k5 * r**4 + k6 * r**6)
            xd = x * g + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2)
            yd = y * g + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y
            out.append((p[0] * xd + p[2], p[1] * yd + p[3]))
        else:  # fisheye: the angle from the axis, bent by the polynomial, along the direction in the image
            fx, fy, cx, cy, k = (*p[:4], p[4:]) if model == "OPENCV_FISHEYE" else (p[0], p[0], p[1], p[2], p[3:])
            theta = math.atan2(math.hypot(X, Y), Z)
            bent = theta + sum(c * theta ** (2 * n + 3) for n, c in enumerate(k))
            phi = math.atan2(Y, X)
            out.append((fx * bent * math.cos(phi) + cx, fy * bent * math.sin(phi) + cy))
    return np.array(out)
