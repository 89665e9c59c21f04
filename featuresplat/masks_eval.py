"""How well a field answers text, against true masks: mIoU, accuracy, localisation; and against its own teacher.

Masks are read from ``DIR/<view>/<label>.png`` (above 127 = object; underscores read as spaces) or from the label
files of LERF-OVS (``DIR/frame_00041.json``: Kerr et al. 2023, polygons by Qin et al. 2024). The labels are the prompts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, UnidentifiedImageError
from torch import Tensor

from featuresplat.datasets import Dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts import spatial, text
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import select_text
from featuresplat.scene import Scene
from featuresplat.types import Cameras

Progress = Callable[[Iterable[int], str], Iterable[int]]


@dataclass
class TrueMask:
    """The truth on one label in one view: bool [H, W], and boxes [x0, y0, x1, y1] where the file draws them."""

    mask: Tensor
    boxes: list[list[float]] = field(default_factory=list)

    def holds(self, x: int, y: int) -> bool:
        """Whether a pixel is on the object: in a box where there are boxes (LERF's localisation), else in the mask."""
        if self.boxes:
            return any(x0 <= x + 0.5 <= x1 and y0 <= y + 0.5 <= y1 for x0, y0, x1, y1 in self.boxes)
        return bool(self.mask[y, x])


def read_masks(folder: str | Path, scene: Scene) -> dict[str, dict[str, TrueMask]]:
    """True masks by photograph's name and label.

    Raises:
        FeaturesplatError: no such folder, nothing in it for a view of the scene, a damaged mask, or one of another
            shape than its photograph.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FeaturesplatError(f"masks: there is no folder {folder}", "Give one with <view>/<label>.png in it.")
    by_stem: dict[str, list[str]] = {}
    for name in scene.cameras.names:
        by_stem.setdefault(Path(name).stem, []).append(name)
    found: dict[str, dict[str, TrueMask]] = {}
    seen = []
    for place, labels in (*_folders(folder), *_lerf(folder)):
        seen.append(place)
        names = by_stem.get(place) or [n for n in scene.cameras.names if n == place]
        if len(names) == 1:
            found[names[0]] = {label: _fitting(path, truth, names[0], scene) for label, path, truth in labels}
    if not seen:
        raise FeaturesplatError(
            f"masks: {folder} holds neither <view>/<label>.png nor LERF-OVS label files", "See docs/formats.md."
        )
    if not found:
        views = ", ".join(list(scene.cameras.names)[:3])
        raise FeaturesplatError(
            f"masks: none of {', '.join(seen[:3])} in {folder} is a view of this run",
            f"Name the folders as the photographs: {views}, ...",
        )
    order = list(scene.cameras.names)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def measure_masks(
    scene: Scene,
    truth: dict[str, dict[str, TrueMask]],
    field: str | None = None,
    *,
    gaussians: bool = False,
    objects: bool = False,
    compete: bool = False,
    dataset: Dataset | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The ``masks`` of metrics.json: ``{"miou", "accuracy", "localisation", "labels": {label: {...}}, ...}``.

    - ``labels``: for each the mean ``iou`` over the views whose truth shows it, ``localisation``, and ``views``;
    - ``miou``: the mean over labels; ``localisation``: the share of (label, view) whose best pixel is on the object;
    - ``accuracy``: the share of pixels under exactly one true mask at which that label scores highest;
    - ``agreement``: mIoU and accuracy of the field's best label against the teacher's own on its map of the
      photograph, over all pixels of these views (as Feature 3DGS reports), or null where the teacher cannot be had.

    Args:
        gaussians: render the selected Gaussians in place of scoring pixels.
        objects: render the whole objects that labels mean (`targets.select_text`).
        compete: labels have to beat each other.
        dataset: photographs, for the teacher.
    """
    labels = sorted({label for masks in truth.values() for label in masks})
    asked = text.ask(scene, labels, field, compete=compete)
    chosen = []
    if objects:
        chosen = [select_text(scene, label, asked.field) for label in labels]
    elif gaussians:
        chosen = [Selection(m) for m in asked.masks(asked.gaussians(scene))]
    tally = _Tally(labels)
    wrap: Progress = progress or (lambda numbers, word: numbers)
    names = list(truth)
    for i in wrap(range(len(names)), "masks"):
        masks = truth[names[i]]
        camera = _camera(scene, names[i], next(iter(masks.values())).mask)
        scores = asked.view(scene, camera).cpu()
        if chosen:
            found = spatial.masks_of(scene, camera, chosen).cpu()
        else:
            found = asked.masks(scores)
        tally.add(masks, scores, found)
    out = tally.result()
    out |= {"field": asked.field, "views": len(names), "gaussians": gaussians, "objects": objects}
    out["agreement"] = _agreement(scene, asked, names, dataset)
    return out


class _Tally:
    """Sums over views."""

    def __init__(self, labels: list[str]):
        self.labels = labels
        self.ious: dict[str, list[float]] = {label: [] for label in labels}
        self.hits: dict[str, list[bool]] = {label: [] for label in labels}
        self.right = self.pixels = 0

    def add(self, masks: dict[str, TrueMask], scores: Tensor, found: Tensor) -> None:
        for label, true in masks.items():
            if not bool(true.mask.any()):
                continue
            k = self.labels.index(label)
            union = int((found[k] | true.mask).sum())
            self.ious[label].append(int((found[k] & true.mask).sum()) / union)
            best = int(scores[k].argmax())
            self.hits[label].append(true.holds(best % scores.shape[2], best // scores.shape[2]))
        stacked = torch.stack([m.mask for m in masks.values()])
        rows = torch.tensor([self.labels.index(label) for label in masks])
        single = stacked.sum(0) == 1
        wanted = rows[stacked.to(torch.uint8).argmax(0)]
        self.right += int((scores.argmax(0) == wanted)[single].sum())
        self.pixels += int(single.sum())

    def result(self) -> dict[str, Any]:
        per_label = {
            label: {"iou": _mean(ious), "localisation": _mean(self.hits[label]), "views": len(ious)}
            for label, ious in self.ious.items()
            if ious
        }
        hits = [hit for label in per_label for hit in self.hits[label]]
        return {
            "miou": _mean([entry["iou"] for entry in per_label.values()]),
            "accuracy": self.right / self.pixels if self.pixels else None,
            "localisation": _mean(hits),
            "labels": per_label,
        }


def _agreement(scene: Scene, asked: text.TextQuery, names: list[str], dataset: Dataset | None) -> dict[str, Any] | None:
    """How often the field says what its teacher says of the photograph itself."""
    if dataset is None or scene.config is None or len(asked.phrases) < 2:
        return None
    from featuresplat.teachers import make_teacher

    found = scene.fields[asked.field]
    if scene.config.teacher.name != found.teacher:
        return None
    try:
        teacher = make_teacher(found.teacher, scene.config.teacher)
        counts = torch.zeros(3, len(asked.phrases), dtype=torch.int64)  # both, field, teacher
        right = total = 0
        for name in names:
            i = list(dataset.cameras.names).index(name)
            image = dataset.image(i)
            features = teacher.encode_image(image.float() / 255, name=name)
            ours = asked.view(scene, dataset.cameras[i]).argmax(0).cpu()
            theirs = _teacher_says(asked, features.float().cpu(), ours.shape)
            right, total = right + int((ours == theirs).sum()), total + ours.numel()
            for k in range(len(asked.phrases)):
                a, b = ours == k, theirs == k
                counts[:, k] += torch.stack([(a & b).sum(), a.sum(), b.sum()])
    except (FeaturesplatError, ValueError):
        return None  # no map of a held-out photograph, no weights: the figure is missing, the others stand
    union = counts[1] + counts[2] - counts[0]
    return {"miou": float((counts[0][union > 0] / union[union > 0]).mean()), "accuracy": right / total}


def _teacher_says(asked: text.TextQuery, features: Tensor, size: tuple[int, ...]) -> Tensor:
    """int64 [H, W]: the best prompt at each pixel of the teacher's map [h, w, F], enlarged bilinearly."""
    flat = features.flatten(0, 1)
    vectors = torch.cat([asked.prompts, asked.contrast])
    scores = asked._scores(flat @ vectors.T, flat.norm(dim=1)).view(-1, *features.shape[:2])
    large = torch.nn.functional.interpolate(scores[None], size, mode="bilinear", align_corners=False)
    return large[0].argmax(0)


def _camera(scene: Scene, name: str, mask: Tensor) -> Cameras:
    camera = scene.cameras[list(scene.cameras.names).index(name)]
    return camera.resized(mask.shape[1], mask.shape[0])


Found = tuple[str, list[tuple[str, Path, TrueMask]]]


def _folders(folder: Path) -> Iterator[Found]:
    """``<view>/<label>.png``."""
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        files = sorted(f for f in place.iterdir() if f.suffix.lower() == ".png")
        if files:
            yield place.name, [(f.stem.replace("_", " ").strip(), f, TrueMask(_read_mask(f))) for f in files]


def _lerf(folder: Path) -> Iterator[Found]:
    """LERF-OVS: one JSON per view with objects {category, segmentation, bbox}."""
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content, dict) or "objects" not in content or "info" not in content:
                continue
            info = content["info"]
            size = int(info["width"]), int(info["height"])
            if not (0 < size[0] <= 65536 and 0 < size[1] <= 65536):
                raise ValueError(f"an image of {size[0]} x {size[1]} pixels")
            labels: dict[str, TrueMask] = {}
            for entry in content["objects"]:
                label = str(entry["category"]).replace("_", " ").strip()
                mask = _polygon(entry["segmentation"], size)
                box = [float(v) for v in torch.tensor(entry["bbox"]).flatten()] if entry.get("bbox") else []
                known = labels.setdefault(label, TrueMask(torch.zeros_like(mask)))
                known.mask = known.mask | mask
                known.boxes += [box] if len(box) == 4 else []
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise FeaturesplatError(
                f"{path}: is no LERF-OVS label file ({error})", "Take it out of the folder."
            ) from None
        yield Path(str(info.get("name", path.stem))).stem, [(k, path, v) for k, v in labels.items()]


def _polygon(points: Any, size: tuple[int, int]) -> Tensor:
    """bool [H, W] of one polygon [[x, y], ...] or several."""
    several = points if points and isinstance(points[0][0], (list, tuple)) else [points]
    image = Image.new("L", size, 0)
    for polygon in several:
        corners = [(float(x), float(y)) for x, y in polygon]
        if len(corners) >= 3:
            ImageDraw.Draw(image).polygon(corners, fill=255, outline=255)
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size[1], size[0]) > 0


def _read_mask(path: Path) -> Tensor:
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
            return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(grey.height, grey.width) > 127
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise FeaturesplatError(f"{path}: is damaged or no PNG ({error})", "Write the mask again.") from None


def _fitting(path: Path, truth: TrueMask, name: str, scene: Scene) -> TrueMask:
    """A mask that has the shape of its photograph, at whatever size."""
    camera = scene.cameras[list(scene.cameras.names).index(name)]
    height, width = truth.mask.shape
    if abs(width * camera.height / (height * camera.width) - 1) > 0.02:
        raise FeaturesplatError(
            f"{path}: the mask is {width} x {height} pixels, its photograph {camera.width} x {camera.height} or a "
            "multiple",
            "Draw masks on the photographs themselves, or on scaled copies.",
        )
    return truth


def _mean(values: list[Any]) -> float | None:
    return float(sum(values) / len(values)) if values else None
