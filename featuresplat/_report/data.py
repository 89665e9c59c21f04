"""What a report says: everything that was gathered of a run, before it is a page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from featuresplat._report.layout import Layout


@dataclass
class View:
    """One row of pictures.

    Attributes:
        name: file name of the photograph.
        label: why it is shown: "worst", "median", "best" or "".
        test: held out, not trained on.
        render: uint8 [H, W, 3].
        truth: uint8 [H, W, 3], None without the photograph.
        error: uint8 [H, W, 3], coloured absolute difference, None without the photograph.
        mean_error: mean absolute difference in 0..1.
        masked: parts of the error are left out by a mask.
        depth: uint8 [H, W, 3], coloured.
        depth_range: the depths of the two ends of the colours, scene units; None when nothing is there.
        psnr, ssim: dB and 0..1, when known.
    """

    name: str
    render: Tensor
    label: str = ""
    test: bool = True
    truth: Tensor | None = None
    error: Tensor | None = None
    mean_error: float | None = None
    masked: bool = False
    depth: Tensor | None = None
    depth_range: tuple[float, float] | None = None
    psnr: float | None = None
    ssim: float | None = None


@dataclass
class ReportData:
    """All that the page says; every part may be missing.

    Attributes:
        title: name of the run.
        source: what it was trained from: the last two parts of the path, as reports are passed on to others.
        preset: name of the configuration.
        metrics: metrics.json.
        log: rows of log.jsonl.
        config: (key, value, default) of the values that differ from the defaults.
        views, views_note: rows of pictures, worst first, and how they were chosen.
        error_scale: the error, in 0..1, at the upper end of the colours.
        layout: cameras and points.
        sections: (title, HTML) that fields and the mode contribute.
        notes: what the reader should know first, such as missing photographs.
        version: of featuresplat.
    """

    title: str
    source: str = ""
    preset: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    config: list[tuple[str, str, str]] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    views_note: str = ""
    error_scale: float = 0.2
    layout: Layout | None = None
    sections: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    version: str = ""
