"""Make data/demo: a table-top of everyday objects, rendered with exact truth. Nothing in it was downloaded.

Needs Blender as a Python module in an environment of its own (Python 3.11):

    python3.11 -m venv .venv-bpy && .venv-bpy/bin/pip install bpy==5.0.1 pillow
    .venv-bpy/bin/python data/make_demo.py

The scene is in ``demo_scene.py``, its objects in ``demo_objects.py``, their meshes and materials in
``demo_shapes.py``. The same seed gives the same scene; pixels may differ by noise between Blender versions.
What is written is described in data/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import tempfile
import time
from pathlib import Path

import bpy
import numpy as np
from demo_scene import NAMES, build
from mathutils import Matrix, Vector
from PIL import Image

HERE = Path(__file__).resolve().parent
SIZE = (320, 240)
FOCAL = 330.0
SEED = 7
RINGS = ((31.0, 15), (43.0, 14), (56.0, 11))  # elevation in degrees, number of cameras
TEST_EVERY, TEST_FIRST = 7, 3
POINTS = {"objects": 5000, "table": 3000, "room": 2500}
POINT_NOISE = 0.002  # metres


# --- cameras


def camera_poses() -> list[np.ndarray]:
    """OpenGL camera-to-world matrices [4, 4] on a dome: three rings, mild variation of all that can vary."""
    rng = np.random.default_rng(SEED)
    poses = []
    for ring, (elevation, count) in enumerate(RINGS):
        for k in range(count):
            a = 2 * math.pi * (k + 0.5 * (ring % 2) + rng.uniform(-0.15, 0.15)) / count
            e = math.radians(elevation + rng.uniform(-3, 3))
            distance = rng.uniform(2.25, 2.5) + 0.05 * ring
            near = 0.09 * np.array([math.cos(a), math.sin(a), 0])  # what is near looms larger: look a little lower
            target = np.array([0.04, 0.0, 0.05]) + near + rng.uniform(-1, 1, 3) * (0.07, 0.07, 0.03)
            back = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
            right = np.cross([0, 0, 1.0], back)
            right /= np.linalg.norm(right)
            pose = np.eye(4)
            pose[:3] = np.stack([right, np.cross(back, right), back, target + distance * back], 1)
            poses.append(pose)
    return poses


def set_up_render(size: tuple[int, int], samples: int, threads: int) -> None:
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.cycles.device = "CPU"
    scene.cycles.samples = samples
    scene.cycles.seed = SEED
    scene.cycles.use_denoising = True
    scene.cycles.denoiser = "OPENIMAGEDENOISE"
    scene.cycles.max_bounces = 6
    scene.cycles.caustics_reflective = scene.cycles.caustics_refractive = False
    scene.cycles.sample_clamp_indirect = 4.0
    scene.render.threads_mode, scene.render.threads = "FIXED", threads
    scene.render.use_persistent_data = True
    scene.render.resolution_x, scene.render.resolution_y = size
    scene.render.image_settings.file_format = "PNG"
    scene.view_settings.view_transform = "Standard"
    scene.view_settings.exposure = 0.0
    camera = bpy.data.cameras.new("camera")
    camera.sensor_fit = "HORIZONTAL"
    camera.sensor_width = 36.0
    camera.lens = FOCAL / SIZE[0] * 36.0
    camera.clip_start = 0.02
    scene.camera = bpy.data.objects.new("camera", camera)
    scene.collection.objects.link(scene.camera)


def render(pose: np.ndarray, path: Path) -> None:
    scene = bpy.context.scene
    scene.camera.matrix_world = Matrix(pose.tolist())
    scene.render.filepath = str(path)
    bpy.ops.render.render(write_still=True)


def truth(pose: np.ndarray, size: tuple[int, int], focal: float) -> tuple[np.ndarray, np.ndarray]:
    """Rays through the pixel centres: z-depth [H, W] in metres and index into NAMES [H, W]."""
    scene, graph = bpy.context.scene, bpy.context.evaluated_depsgraph_get()
    w, h = size
    x, y = np.meshgrid((np.arange(w) + 0.5 - w / 2) / focal, -(np.arange(h) + 0.5 - h / 2) / focal)
    rays = np.stack([x, y, -np.ones_like(x)], -1) @ pose[:3, :3].T  # unit step along the optical axis
    origin, forward = Vector(pose[:3, 3]), Vector(-pose[:3, 2])
    depth, index = np.zeros((h, w)), np.zeros((h, w), np.uint8)
    for v in range(h):
        for u in range(w):
            hit, at, _, _, obj, _ = scene.ray_cast(graph, origin, Vector(rays[v, u]))
            if hit:
                depth[v, u] = (at - origin).dot(forward)
                index[v, u] = NAMES.index(obj.name) if obj.name in NAMES else 0
    return depth, index


# --- files


def start_points(frames: list[dict], folder: Path) -> np.ndarray:
    """Points and colours [P, 6] from the training depths: as many for each kind of surface as POINTS says."""
    rng = np.random.default_rng(SEED)
    rows, kinds = [], []
    for f in frames:
        pose, depth, index = f["pose"], f["depth"], f["index"]
        rgb = np.asarray(Image.open(folder / f["image"]).convert("RGB"))
        h, w = depth.shape
        v, u = np.nonzero(depth > 0)
        z = depth[v, u]
        focal = FOCAL * w / SIZE[0]
        local = np.stack([(u + 0.5 - w / 2) / focal * z, -(v + 0.5 - h / 2) / focal * z, -z], 1)
        rows.append(np.concatenate([local @ pose[:3, :3].T + pose[:3, 3], rgb[v, u]], 1))
        kinds.append(np.minimum(index[v, u], 2))
    points, kind = np.concatenate(rows), np.concatenate(kinds)
    picked = [
        rng.choice(np.nonzero(kind == code)[0], POINTS[name], replace=False)
        for code, name in ((2, "objects"), (1, "table"), (0, "room"))
    ]
    points = points[np.concatenate(picked)]
    points[:, :3] += rng.normal(0, POINT_NOISE, (len(points), 3))
    return points


def write_ply(path: Path, points: np.ndarray) -> None:
    kinds = [(n, "<f4") for n in "xyz"] + [(n, "u1") for n in ("red", "green", "blue")]
    table = np.zeros(len(points), dtype=kinds)
    for k, (name, _) in enumerate(kinds):
        table[name] = points[:, k]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {'float' if t == '<f4' else 'uchar'} {n}" for n, t in kinds]
    path.write_bytes(("\n".join([*header, "end_header"]) + "\n").encode() + table.tobytes())


def write_json(folder: Path, frames: list[dict], size: tuple[int, int], samples: int) -> None:
    w, h = size
    focal = FOCAL * w / SIZE[0]
    rows = [
        {
            "file_path": f["image"],
            "depth_file_path": f["image"].replace("images", "depth").replace(".jpg", ".png"),
            "transform_matrix": [[round(float(c), 9) for c in row] for row in f["pose"]],
        }
        for f in frames
    ]
    camera = {
        "camera_model": "PINHOLE",
        "fl_x": focal,
        "fl_y": focal,
        "cx": w / 2,
        "cy": h / 2,
        "w": w,
        "h": h,
    }
    text = json.dumps({**camera, "ply_file_path": "points3d.ply", "frames": rows}, indent=1)
    (folder / "transforms.json").write_text(text + "\n")
    (folder / "test.txt").write_text("".join(Path(f["image"]).name + "\n" for f in frames if f["test"]))
    meta = {
        "name": "demo",
        "units": "metres (objects are drawn about 3x life size)",
        "world": "right handed, z up, the table's top is z = 0",
        "camera": "transform_matrix = OpenGL camera-to-world (x right, y up, looks down -z); "
        "exact pinhole; pixel centres at +0.5",
        "image": f"8-bit sRGB JPEG; Blender {bpy.app.version_string} Cycles, {samples} samples, denoised",
        "instance": "instance/*.png: 8-bit object index at the pixel centre",
        "depth": "depth/*.png: 16-bit, millimetres along the optical axis at the pixel centre",
        "points": f"points3d.ply: back-projected from the training depths, {POINT_NOISE * 1000:g} mm noise",
        "objects": [{"index": i, "name": n} for i, n in enumerate(NAMES)],
        "splits": {"train": sum(not f["test"] for f in frames), "test": sum(f["test"] for f in frames)},
        "licence": "Apache-2.0, as the project: every mesh, texture and light comes from data/make_demo.py",
    }
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")


def make(folder: Path, args: argparse.Namespace) -> None:
    size = (args.width, args.width * SIZE[1] // SIZE[0])
    focal = FOCAL * size[0] / SIZE[0]
    for name in ("images", "depth", "instance"):
        (folder / name).mkdir(parents=True)
    build()
    set_up_render(size, args.samples, args.threads)
    frames = []
    for i, pose in list(enumerate(camera_poses()))[:: args.every]:
        start, stem = time.time(), f"view_{i:03d}"
        render(pose, folder / "frame.png")
        Image.open(folder / "frame.png").convert("RGB").save(
            folder / f"images/{stem}.jpg", quality=args.quality, subsampling=0, optimize=True
        )
        depth, index = truth(pose, size, focal)
        depth = np.round(depth * 1000).astype(np.uint16)
        Image.fromarray(depth).save(folder / f"depth/{stem}.png", optimize=True)
        Image.fromarray(index).save(folder / f"instance/{stem}.png", optimize=True)
        test = i % TEST_EVERY == TEST_FIRST
        frames.append(
            {"image": f"images/{stem}.jpg", "pose": pose, "depth": depth / 1000, "index": index, "test": test}
        )
        print(f"{stem} {time.time() - start:.1f} s", flush=True)
    (folder / "frame.png").unlink()
    write_ply(folder / "points3d.ply", start_points([f for f in frames if not f["test"]], folder))
    write_json(folder, frames, size, args.samples)


def main() -> None:
    parser = argparse.ArgumentParser(description="Render the demo scene.")
    parser.add_argument("--out", type=Path, default=HERE / "demo", help="replaced as a whole when all is rendered")
    parser.add_argument("--width", type=int, default=SIZE[0], help="pixels; the height follows (4:3)")
    parser.add_argument("--samples", type=int, default=64, help="paths a pixel, before denoising")
    parser.add_argument("--quality", type=int, default=92, help="of the JPEGs")
    parser.add_argument("--every", type=int, default=1, help="only every n-th view, for a quick look")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".demo-", dir=args.out.parent))
    try:
        make(work / "new", args)
        if args.out.exists():
            args.out.rename(work / "old")
        (work / "new").rename(args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
