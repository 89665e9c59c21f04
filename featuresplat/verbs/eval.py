"""Measure a run on its test views."""

from __future__ import annotations

from pathlib import Path

from featuresplat.verbs._shared import Flag, Run, given, progress

ORDER = 20


def run(
    run: Run = "",
    masks: Path | None = None,
    field: str | None = None,
    gaussians: Flag = False,
    objects: Flag = False,
    compete: Flag = False,
    device: str = "auto",
    quiet: Flag = False,
) -> None:
    """Measure a run on its test views: PSNR, SSIM and, where it is installed, LPIPS; its answers to text; and, of
    runs of mode inverse, materials and relit pictures where the data set has their truth.

    Args:
        run: Folder that train made; its metrics.json is written anew.
        masks: Folder of true masks, VIEW/LABEL.png (underscores read as spaces) or label files of LERF-OVS; the labels
            are the prompts.
        field: Which field is asked; default the last one that knows text.
        gaussians: With --masks, render the selected Gaussians in place of scoring pixels.
        objects: With --masks, render the whole objects that labels mean, as edits take them.
        compete: With --masks, labels have to beat each other.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress bar.
    """
    folder = given("eval", run, "the folder of a run", "runs/NAME")
    from featuresplat.devices import usable_device
    from featuresplat.evaluate import evaluate as measure

    how = {"masks": masks, "field": field, "gaussians": gaussians, "objects": objects, "compete": compete}
    bar = None if quiet else progress
    metrics = measure(folder, device=str(usable_device(device)), progress=bar, **how)
    _table(metrics)
    if "inverse" in metrics:
        _materials_table(metrics["inverse"])
    if masks is not None:
        _mask_table(metrics["masks"])
    print(f"written to {folder / 'metrics.json'}")


def _number(value: float | None, digits: int) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _materials_table(found: dict) -> None:
    """Materials and relit pictures against their truth."""
    rows = [
        ("albedo", found.get("albedo_psnr"), "dB", 2),
        ("normal", found.get("normal_degrees"), "degrees", 2),
        ("roughness", found.get("roughness_error"), "mean error", 3),
        ("metallic", found.get("metallic_error"), "mean error", 3),
        *((f"under {name}", r["psnr"], "dB", 2) for name, r in found.get("relit", {}).items()),
    ]
    for name, value, unit, digits in rows:
        if value is not None:
            print(f"{name}: {value:.{digits}f} {unit}")
    print(f"({found['protocol']})")


def _mask_table(masks: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("label", box=None, header_style="bold")
    for name in ("IoU", "localisation", "views"):
        table.add_column(name, justify="right")
    for label, found in masks["labels"].items():
        table.add_row(label, _number(found["iou"], 3), _number(found["localisation"], 2), str(found["views"]))
    table.add_row("mean", _number(masks["miou"], 3), _number(masks["localisation"], 2), "", style="bold")
    Console().print(table)
    print(f"accuracy {_number(masks['accuracy'], 3)} of the pixels under one true mask")
    if masks["agreement"]:
        found = masks["agreement"]
        print(f"agreement with the teacher: mIoU {found['miou']:.3f}, accuracy {found['accuracy']:.3f}")


def _table(metrics: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    test = metrics["test"]
    table = Table("image", box=None, header_style="bold")
    for name in ("PSNR dB", "SSIM", "LPIPS"):
        table.add_column(name, justify="right")
    rows = [*test["images"], {**test, "name": "mean"}]
    for i, row in enumerate(rows):
        table.add_row(
            row["name"],
            _number(row["psnr"], 2),
            _number(row["ssim"], 4),
            _number(row.get("lpips"), 4),
            style="bold" if i == len(rows) - 1 else None,
        )
    Console().print(table)
