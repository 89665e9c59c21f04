"""Makes torchvision import beside a torch that it was not built for, so that open_clip, timm and SAM can be tested.

The registry's torchvision belongs to a CUDA build; next to a CPU torch its compiled operators do not load, and its
import ends with "operator torchvision::nms does not exist". Of those operators the tests need one, which is written
here in Python. Where torchvision works, nothing happens. The product never does this: it tells the user to install
torchvision's right build.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

_kept = []


def ensure_torchvision() -> None:
    """Import torchvision, with stand-ins for its operators where its own do not load."""
    if "torchvision" in sys.modules or _imports():
        return
    library = torch.library.Library("torchvision", "DEF")
    _kept.append(library)  # a library that is collected takes its operators with it
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.impl("nms", non_maximum_suppression, "CPU")
    import torchvision
    from torchvision import extension

    extension._has_ops = lambda: True
    assert torchvision.__version__


def _imports() -> bool:
    """Whether torchvision imports; a failed import leaves half a package behind, so another process tries."""
    return (
        subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False).returncode == 0
    )


def non_maximum_suppression(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes [N, 4] that no better box overlaps by more than the threshold, best first."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = scores.argsort(descending=True), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[left, :2])
        high = torch.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = (high - low).clamp_min(0).prod(1)
        left = left[shared / (area[best] + area[left] - shared) <= iou_threshold]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)
