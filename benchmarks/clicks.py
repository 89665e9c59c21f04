"""One click or one box in one photograph, without a network: how well `segment_from_prompt` cuts the object out.

    python benchmarks/clicks.py SCENE [SCENE ...]

A scene has either masks/<image stem>/<label>.png or instance/<image stem>.png with meta.json. The click is the pixel
farthest from the mask's outline, the box the mask's own. Photographs are reduced to 340 pixels on the longer side.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from featuresplat.teachers._segments import segment_from_prompt

LONGEST = 340


def cases(scene: Path, views: int = 2) -> Iterator[tuple[torch.Tensor, np.ndarray]]:
    """Photographs [H, W, 3] in 0..1 with masks: all that were drawn, or those of the things of a few views."""
    if (scene / "masks").is_dir():
        for folder in sorted((scene / "masks").iterdir()):
            for label in sorted(folder.glob("toy*.png")):
                yield shown(scene, folder.name), np.array(reduced(Image.open(label).convert("L"))) > 127
        return
    objects = [o["index"] for o in json.loads((scene / "meta.json").read_text())["objects"] if "table" not in o["name"]]
    found = sorted((scene / "instance").glob("*.png"))
    for path in found[:: max(1, len(found) // views)][:views]:
        labels = np.array(reduced(Image.open(path), Image.Resampling.NEAREST))
        for k in objects:
            if k and int((labels == k).sum()) > 200:
                yield shown(scene, path.stem), labels == k


def shown(scene: Path, stem: str) -> torch.Tensor:
    path = next((scene / "images").glob(f"{stem}.*"))
    return torch.from_numpy(np.array(reduced(Image.open(path).convert("RGB")))).float() / 255


def reduced(image: Image.Image, how: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    scale = min(1.0, LONGEST / max(image.size))
    return image.resize((round(image.width * scale), round(image.height * scale)), how)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def main() -> None:
    torch.set_num_threads(1)
    for scene in map(Path, sys.argv[1:]):
        clicks, boxes, began = [], [], time.process_time()
        for image, mask in cases(scene):
            depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(depth.argmax(), depth.shape)
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            box = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).float()
            clicks.append(iou(segment_from_prompt(image, torch.tensor([[x + 0.5, y + 0.5]])).numpy() > 0.5, mask))
            boxes.append(iou(segment_from_prompt(image, box=box).numpy() > 0.5, mask))
        seconds = (time.process_time() - began) / max(1, 2 * len(clicks))
        print(f"{scene.name:12s} {len(clicks):3d} objects  click {np.mean(clicks):.3f}  box {np.mean(boxes):.3f}"
              f"  {seconds:.2f} CPU s each")  # fmt: skip


if __name__ == "__main__":
    main()
