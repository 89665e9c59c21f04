"""Folders of Nerfies and HyperNeRF, and of DyCheck, which goes by the same conventions.

``dataset.json`` lists the ids of the frames, ``metadata.json`` their times, ``camera/ID.json`` the cameras,
``rgb/1x/ID.png`` (``2x``, ``4x`` ... are reduced by that) the pictures. DyCheck adds ``splits/train.json`` and
``val.json``, and ``depth/1x/ID.npy``. A camera is a world-to-camera rotation with OpenCV axes and a position.
Park et al., "Nerfies" (2021) and "HyperNeRF" (2021); Gao et al., "Monocular Dynamic View Synthesis" (2022).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from featuresplat.config import DataConfig
from featuresplat.datasets._recording import Frame, Lens, Recording, check_images, rigid
from featuresplat.errors import FeaturesplatError
from featuresplat.types import PointCloud

ORDER = 25
LAYOUT = "Nerfies, HyperNeRF and DyCheck: dataset.json, metadata.json, camera/ and rgb/1x"


def detect(path: Path) -> bool:
    """Whether there is a dataset.json beside a folder of cameras."""
    return (path / "dataset.json").is_file() and (path / "camera").is_dir()


def read(path: Path, config: DataConfig, progress: Any = None) -> Recording:
    """All frames that the split lists, with their times.

    Raises:
        FeaturesplatError: missing or broken files, entries that are not what they should be.
    """
    dataset, metadata = _object(path / "dataset.json"), _object(path / "metadata.json")
    train, held = _split(path, dataset)
    ids = list(dict.fromkeys([*train, *held]))
    if not ids:
        raise FeaturesplatError(f"{path / 'dataset.json'}: lists no ids.", f"Expected {LAYOUT}.")
    for name in ids:
        if Path(name).name != name or name in (".", ".."):
            raise FeaturesplatError(f"{path}: '{name}' is no id of a frame.", "Ids are names without folders.")
    pictures = _pictures(path)
    times = {i: _time(metadata, i, path / "metadata.json") for i in ids}
    last = max(times.values())
    frames = []
    for i in ids:
        frame = _frame(path, pictures, i)
        frame.time = times[i] / last if last > 0 else 0.0
        frame.split = "train" if i in train else "test"
        frames.append(frame)
    check_images(frames, str(path))
    return Recording(frames, _points(path), bool(held), pictures)


def _split(path: Path, dataset: dict) -> tuple[list[str], list[str]]:
    """Ids to train on and to hold out: of DyCheck's splits where there are some."""
    if (path / "splits" / "train.json").is_file():
        parts = []
        for name in ("train", "val"):
            file = path / "splits" / f"{name}.json"
            parts.append([str(i) for i in _object(file).get("frame_names", [])] if file.is_file() else [])
        return parts[0], [i for i in parts[1] if i not in set(parts[0])]
    everything = [str(i) for i in dataset.get("ids", [])]
    held = [str(i) for i in dataset.get("val_ids", [])]
    train = [str(i) for i in dataset.get("train_ids", [])] or [i for i in everything if i not in set(held)]
    return train, [i for i in held if i not in set(train)]


def _pictures(path: Path) -> Path:
    """The folder of the largest pictures."""
    found = [f for f in (path / "rgb").glob("*x") if f.is_dir() and f.name[:-1].isdigit()]
    if not found:
        raise FeaturesplatError(f"{path / 'rgb'}: holds no folder 1x, 2x, ... of pictures.", f"Expected {LAYOUT}.")
    return min(found, key=lambda f: int(f.name[:-1]))


def _frame(path: Path, pictures: Path, name: str) -> Frame:
    file = path / "camera" / f"{name}.json"
    camera = _object(file)
    R = _numbers(camera, "orientation", (3, 3), file)
    position = _numbers(camera, "position", (3,), file)
    viewmat = np.eye(4)
    viewmat[:3, :3] = R
    viewmat = rigid(viewmat, str(file))
    viewmat[:3, 3] = -viewmat[:3, :3] @ position
    focal = float(_numbers(camera, "focal_length", (), file))
    aspect = float(_numbers(camera, "pixel_aspect_ratio", (), file)) if "pixel_aspect_ratio" in camera else 1.0
    size, centre = _numbers(camera, "image_size", (2,), file), _numbers(camera, "principal_point", (2,), file)
    radial = _numbers(camera, "radial_distortion", (3,), file) if camera.get("radial_distortion") else np.zeros(3)
    bent = _numbers(camera, "tangential_distortion", (2,), file) if camera.get("tangential_distortion") else np.zeros(2)
    lens = Lens(
        round(size[0]), round(size[1]), focal, focal * aspect, float(centre[0]), float(centre[1]),
        (float(radial[0]), float(radial[1]), float(radial[2]), 0.0), tangential=(float(bent[0]), float(bent[1])),
    )  # fmt: skip
    image = next((f for e in (".png", ".jpg") if (f := pictures / f"{name}{e}").is_file()), pictures / f"{name}.png")
    frame = Frame(image, image.name, viewmat, lens.check(str(file)))
    depth = path / "depth" / pictures.name / f"{name}.npy"
    frame.depth_path = depth if depth.is_file() else None
    return frame


def _time(metadata: dict, name: str, file: Path) -> float:
    entry = metadata.get(name)
    value = entry.get("time_id", entry.get("warp_id")) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise FeaturesplatError(f"{file}: frame {name} has no `time_id` or `warp_id`.", "Add it, counted from 0.")
    return float(value)


def _points(path: Path) -> PointCloud | None:
    import torch

    file = path / "points.npy"
    if not file.is_file():
        return None
    try:
        xyz = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeaturesplatError(f"{file}: is no array ({error}).", "Write [M, 3] numbers, or remove it.") from None
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind not in "fiu":
        raise FeaturesplatError(f"{file}: expected [M, 3], got {list(xyz.shape)}.", "Write one row per point.")
    xyz = np.asarray(xyz, np.float64)
    xyz = xyz[np.isfinite(xyz).all(1)]
    return PointCloud(torch.from_numpy(xyz), torch.full((len(xyz), 3), 0.5)) if len(xyz) else None


def _numbers(values: dict, key: str, shape: tuple[int, ...], file: Path) -> np.ndarray:
    try:
        out = np.array(values.get(key), np.float64)
    except (TypeError, ValueError):
        out = np.array(np.nan)
    if out.shape != shape or not np.isfinite(out).all():
        raise FeaturesplatError(
            f"{file}: `{key}`: expected {list(shape) or 'one'} finite numbers, got {values.get(key)!r:.60}.",
            "Mend that entry.",
        )
    return out


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise FeaturesplatError(f"{file}: is not valid JSON ({error}).", f"Expected {LAYOUT}.") from None
    if not isinstance(found, dict):
        raise FeaturesplatError(f"{file}: expected an object.", f"Expected {LAYOUT}.")
    return found
