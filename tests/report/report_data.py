"""What the tests of the report share: a ring of cameras, a cloud, pictures, and a page taken apart."""

from __future__ import annotations

import math
from html.parser import HTMLParser

import torch

from featuresplat._report.data import ReportData, View
from featuresplat._report.layout import camera_layout
from featuresplat.paths import look_at
from featuresplat.types import Cameras, Gaussians


def ring(count: int = 12, radius: float = 2.0, height: float = 1.0) -> Cameras:
    """Cameras on a circle around the origin in the x-z plane; y is down, as look_at has it."""
    target = torch.zeros(3, dtype=torch.float64)
    turns = [2 * math.pi * k / count for k in range(count)]
    eyes = torch.tensor([[radius * math.cos(a), -height, radius * math.sin(a)] for a in turns], dtype=torch.float64)
    K = torch.tensor([[50.0, 0, 32], [0, 50.0, 24], [0, 0, 1]], dtype=torch.float64)
    names = [f"view_{k:02d}.jpg" for k in range(count)]
    return Cameras(
        look_at(eyes, target, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)),
        K.repeat(count, 1, 1),
        64,
        48,
        None,
        names,
    )


def cloud(count: int = 300) -> Gaussians:
    g = torch.Generator().manual_seed(0)
    return Gaussians(
        means=0.4 * torch.randn(count, 3, generator=g),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        log_scales=torch.full((count, 3), -3.0),
        logit_opacities=torch.full((count,), 2.0),
        sh0=torch.randn(count, 1, 3, generator=g),
        shN=torch.zeros(count, 0, 3),
    )


def picture(seed: int, height: int = 48, width: int = 64) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=g, dtype=torch.uint8)


def full_data() -> ReportData:
    views = [
        View(f"view_{k}.jpg", picture(k), label, True, picture(k + 9), picture(k + 20), 0.031, k == 1, picture(k + 30),
             (0.51, 4.2), 20.0 + k, 0.7 + 0.1 * k)
        for k, label in enumerate(("worst", "median", "best"))
    ]  # fmt: skip
    log = [
        {"step": s, "loss": 0.3 / (1 + s / 100), "psnr": 15 + s / 300, "gaussians": 1000 + s, "seconds": s / 50}
        | ({"test_psnr": 14 + s / 300} if s % 500 == 0 else {})
        for s in range(0, 3001, 10)
    ]
    images = [{"name": v.name, "psnr": v.psnr, "ssim": v.ssim} for v in views]
    metrics = {
        "format": 1,
        "test": {"psnr": 21.0, "ssim": 0.8, "lpips": None, "images": images},
        "train_seconds": 61.0,
        "gaussians": 4000,
        "peak_memory_bytes": 600 * 2**20,
        "backend": "cpu",
        "versions": {"featuresplat": "0.1.0", "torch": "2.13.0"},
    }
    layout = camera_layout(ring(), ["view_03.jpg"], cloud())
    config = [("steps", "3000", "7000")]
    return ReportData(
        "garden", "photos/garden", "fast", metrics, log, config, views, "All 3.", 0.25, layout, version="0.1.0"
    )


class Page(HTMLParser):
    """Tags, attributes and texts; checks that tags nest."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]
