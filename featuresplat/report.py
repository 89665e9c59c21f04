"""Pictures of a run: one HTML file that needs nothing else.

:func:`gather` reads the run folder and renders; ``to_html`` turns what it found into the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import featuresplat
from featuresplat import registry
from featuresplat._report.data import ReportData, View
from featuresplat._report.fields import field_sections
from featuresplat._report.layout import camera_layout
from featuresplat._report.page import number, to_html
from featuresplat.config import TrainConfig, to_dict
from featuresplat.datasets import Dataset
from featuresplat.errors import FeaturesplatError
from featuresplat.evaluate import dataset_of
from featuresplat.exposure import EXPOSURES
from featuresplat.io.atomic import atomic_write_text
from featuresplat.io.colormap import colorize_depth, colormap
from featuresplat.io.images import to_bytes
from featuresplat.scene import Scene

MAX_VIEWS = 6
"""Views on the page."""


def write_report(run: str | Path, dataset: Dataset | None = None, prompts: Sequence[str] = ()) -> Path:
    """Write ``report.html`` into the run folder: views, curves, numbers, cameras and configuration.

    Without the source photographs it shows renders alone, without held-out views some training views.

    Args:
        run: a run folder that train has finished.
        dataset: its photographs, when they are in memory already; None reads them where the run says they are.
        prompts: phrases to show the relevancy of; default: those that the scene's field knows by itself.

    Returns:
        The path of report.html.

    Raises:
        FeaturesplatError: no run folder, a damaged one, or the disk is full.
    """
    path = Path(run) / "report.html"
    atomic_write_text(path, to_html(gather(run, dataset=dataset, prompts=prompts)))
    return path


def gather(
    run: str | Path, max_views: int = MAX_VIEWS, dataset: Dataset | None = None, prompts: Sequence[str] = ()
) -> ReportData:
    """Read a run folder and render its views; errors as :func:`write_report`."""
    run = Path(run)
    scene = Scene.load(run)
    data = ReportData(
        title=run.resolve().name,
        source="/".join(Path(scene.info.get("source") or "").parts[-2:]),
        preset=scene.config.config if scene.config is not None else "",
        metrics=read_metrics(run / "metrics.json"),
        log=read_log(run / "log.jsonl"),
        config=changed_values(scene.config) if scene.config is not None else [],
        layout=camera_layout(scene.cameras, scene.names("test"), scene.gaussians),
        version=featuresplat.__version__,
    )
    dataset = dataset if dataset is not None else _photographs(scene, data.notes)
    chosen, test = _choose(scene, data.metrics, max_views)
    data.views_note = chosen.note
    if EXPOSURES in scene.mode_state:
        data.views_note += " Renders have the exposure predicted for the view."
    errors: list[tuple[View, Tensor]] = []
    for index, label in chosen.rows:
        view, difference = _view(scene, dataset, index, data.notes)
        view.label, view.test = label, test
        _score(view, data.metrics)
        data.views.append(view)
        if difference is not None:
            errors.append((view, difference))
    data.error_scale = _colour_errors([e for _, e in errors], [v for v, _ in errors])
    data.views.sort(key=lambda v: (v.psnr is None, v.psnr or 0.0))
    data.sections = _sections(scene, dataset, prompts, data.notes)
    return data


def _sections(scene: Scene, dataset: Dataset | None, prompts: Sequence[str], notes: list[str]) -> list[tuple[str, str]]:
    """What the fields and the mode contribute; one that cannot be made is a note, not the end of the report."""
    sources = field_sections(scene, prompts)
    module = registry.load("modes", scene.mode)
    if hasattr(module, "report"):
        sources.append(lambda: module.report(scene, dataset))
    found = []
    for source in sources:
        try:
            found += source()
        except FeaturesplatError as error:
            notes.append(f"A part of the report could not be made: {_first_line(error)}.")
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of log.jsonl; a line that a killed run left unfinished is passed over."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_metrics(path: Path) -> dict[str, Any]:
    """metrics.json, or nothing when the run was not evaluated.

    Raises:
        FeaturesplatError: it is not JSON.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FeaturesplatError(
            f"{path}: is not readable JSON ({error}).", "Run `featuresplat eval` on the run again."
        ) from error
    return content if isinstance(content, dict) else {}


def changed_values(config: TrainConfig) -> list[tuple[str, str, str]]:
    """(key, value, default) where a configuration differs from the defaults; where files lie is left out."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in values.items():
            out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return out

    mine, default = flat(to_dict(config)), flat(to_dict(TrainConfig()))
    hidden = ("config", "out", "resume", "overwrite")
    return [
        (key, _plain(value), _plain(default.get(key)))
        for key, value in mine.items()
        if key not in hidden and value != default.get(key)
    ]


@dataclass
class Choice:
    """Cameras to show, (index, label) each, and how they were chosen."""

    rows: list[tuple[int, str]]
    note: str


def choose_views(scores: Sequence[tuple[int, float | None]], most: int, what: str = "test") -> Choice:
    """Up to ``most`` of the views (index, PSNR): all of them, else the worst, the middle and the best; evenly
    spread when a score is missing.
    """
    count = len(scores)
    if count == 0:
        return Choice([], "")
    known = all(s is not None for _, s in scores)
    order = sorted(scores, key=lambda s: s[1] or 0.0) if known else list(scores)
    if count <= most:
        rows = [(i, "") for i, _ in order]
        if known and count > 1:
            rows[0], rows[-1] = (rows[0][0], "worst"), (rows[-1][0], "best")
        those = f"All {count} {what} views" if count > 1 else f"The only {what} view"
        return Choice(rows, f"{those}{', worst first' if known and count > 1 else ''}.")
    if not known:
        at = [round(k * (count - 1) / max(most - 1, 1)) for k in range(most)]
        return Choice([(order[k][0], "") for k in at], f"{most} of {count} {what} views, evenly spread.")
    ends = max(most // 3, 1)
    middle = most - 2 * ends
    first = (count - middle) // 2
    rows = [(i, "worst") for i, _ in order[:ends]]
    rows += [(i, "median") for i, _ in order[first : first + middle]]
    rows += [(i, "best") for i, _ in order[count - ends :]]
    return Choice(
        rows,
        f"{most} of {count} {what} views, worst first: the {ends} worst, {middle} in the middle and the {ends} best "
        "by PSNR.",
    )


def _choose(scene: Scene, metrics: dict[str, Any], most: int) -> tuple[Choice, bool]:
    """Test views, or a few of the training views when there are none; and which of the two."""
    index = {name: i for i, name in enumerate(scene.cameras.names)}
    scores = _scores(metrics)
    tests = [index[n] for n in scene.names("test")]
    names = scene.cameras.names
    if tests:
        return choose_views([(i, number(scores.get(names[i], {}).get("psnr"))) for i in tests], most), True
    trained = [index[n] for n in scene.names("train")] or list(range(len(names)))
    choice = choose_views([(i, None) for i in trained], min(most, 4), "training")
    choice.note = f"No views were held out, so these were trained on. {choice.note}"
    return choice, False


def _photographs(scene: Scene, notes: list[str]) -> Dataset | None:
    """The data the scene was trained from, or None with a note when it cannot be read any more."""
    try:
        return dataset_of(scene)
    except (FeaturesplatError, OSError) as error:
        notes.append(f"The photographs could not be read, so only renders are shown: {_first_line(error)}.")
        return None


def _view(scene: Scene, dataset: Dataset | None, index: int, notes: list[str]) -> tuple[View, Tensor | None]:
    """The pictures of one camera, and the error in 0..1 [H, W] with NaN where a mask leaves pixels out."""
    camera = scene.cameras[index]
    name = str(camera.names[0])
    truth, mask = _photograph(dataset, name, (camera.height, camera.width), notes)
    out = scene.render(camera, exposure=True)
    if out.rgb is None:
        raise FeaturesplatError(f"{name}: the scene has no colours to render.", "Train the scene again.")
    view = View(name, to_bytes(out.rgb[0].clamp(0, 1)))
    depth, there = out.depth[0, ..., 0].cpu(), out.alpha[0, ..., 0].cpu()
    seen = depth[(there >= 0.5) & depth.isfinite() & (depth > 0)]
    if len(seen):
        # As tensors of more than 2^24 values have no quantile in torch.
        near, far = (float(v) for v in np.percentile(seen.numpy(), [2, 98]))
        view.depth_range = (near, far)
        view.depth = colorize_depth(depth, near, far, there)
    if truth is None:
        return view, None
    view.truth = truth
    difference = (view.render.float() - truth.float()).abs().mean(dim=2) / 255
    if mask is not None and not bool(mask.all()):
        difference, view.masked = difference.masked_fill(~mask, float("nan")), True
    view.mean_error = number(float(difference.nanmean()))
    square = ((view.render.float() - truth.float()) / 255).square().mean(dim=2)[~difference.isnan()]
    if len(square):
        view.psnr = float(-10 * torch.log10(square.mean().clamp_min(1e-10)))
    return view, difference


def _photograph(dataset: Dataset | None, name: str, size: tuple[int, int], notes: list[str]):
    """(image, mask) of a camera's photograph; image None, with a note, when it cannot be had."""
    if dataset is None:
        return None, None
    names = list(dataset.cameras.names)
    try:
        if name not in names:
            raise FeaturesplatError(f"{name}: is no longer among the images.")
        i = names.index(name)
        truth, mask = dataset.image(i), dataset.mask(i)
    except (FeaturesplatError, OSError) as error:
        notes.append(f"A photograph could not be read: {_first_line(error)}.")
        return None, None
    if tuple(truth.shape[:2]) != size:
        notes.append(f"{name}: the photograph is not of the camera's size any more; only the render is shown.")
        return None, None
    return truth.cpu(), None if mask is None else mask.cpu().bool()


def _score(view: View, metrics: dict[str, Any]) -> None:
    """The evaluation's own numbers, where it has them."""
    row = _scores(metrics).get(view.name)
    if row is not None:
        view.psnr = number(row.get("psnr")) if number(row.get("psnr")) is not None else view.psnr
        view.ssim = number(row.get("ssim"))


def _scores(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    test = metrics.get("test")
    rows = test.get("images") if isinstance(test, dict) else None
    return {str(r.get("name")): r for r in rows if isinstance(r, dict)} if isinstance(rows, list) else {}


def _colour_errors(differences: Sequence[Tensor], views: Sequence[View]) -> float:
    """One scale for all views, so that rows can be compared: up to the 99th percentile, in steps of 5 %."""
    scale = 0.05
    if differences:
        high = [float(np.nanpercentile(d.numpy(), 99)) for d in differences if bool((~d.isnan()).any())]
        scale = min(max(np.ceil(20 * max(high, default=0.0)), 1), 20) / 20
    for view, difference in zip(views, differences, strict=True):
        view.error = colormap(difference / scale)
    return float(scale)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_plain(v) for v in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _first_line(error: Exception) -> str:
    return (error.message if isinstance(error, FeaturesplatError) else str(error).splitlines()[0]).rstrip(".")
