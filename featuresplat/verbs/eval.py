"""Measure a run on its test views."""

from __future__ import annotations

from featuresplat.verbs._shared import Run, given

ORDER = 20


def run(run: Run = "", device: str = "auto") -> None:
    """Measure a run on its test views: PSNR, SSIM and, where it is installed, LPIPS.

    Args:
        run: Folder that train made; its metrics.json is written anew.
        device: auto, cpu, cuda or cuda:N.
    """
    folder = given("eval", run, "the folder of a run", "runs/NAME")
    from featuresplat.evaluate import evaluate as measure
    from featuresplat.render import usable_device

    metrics = measure(folder, device=str(usable_device(device)))
    _table(metrics)
    print(f"written to {folder / 'metrics.json'}")


def _table(metrics: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    def number(value: float | None, digits: int) -> str:
        return "n/a" if value is None else f"{value:.{digits}f}"

    test = metrics["test"]
    table = Table("image", box=None, header_style="bold")
    for name in ("PSNR dB", "SSIM", "LPIPS"):
        table.add_column(name, justify="right")
    rows = [*test["images"], {**test, "name": "mean"}]
    for i, row in enumerate(rows):
        table.add_row(
            row["name"],
            number(row["psnr"], 2),
            number(row["ssim"], 4),
            number(row.get("lpips"), 4),
            style="bold" if i == len(rows) - 1 else None,
        )
    Console().print(table)
