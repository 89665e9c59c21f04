"""Charts as SVG text, without a plotting library: lines over steps, and where the cameras stand.

Colours are classes that ``report.css`` fills in, so that one drawing serves the light and the dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

Points = Sequence[tuple[float, float | None]]
"""(step, value); None where there is no number."""

_WIDTH, _HEIGHT = 380, 216
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 28


def line_chart(title: str, series: Sequence[tuple[str, Points, bool]], *, log: bool = False, zero: bool = False) -> str:
    """Lines over training steps.

    Args:
        title: said to those who cannot see the drawing.
        series: (label, points, dotted: mark each point); drawn in the classes s1, s2, ...
        log: logarithmic y axis; values of zero and below are left out.
        zero: the y axis starts at zero.

    Returns:
        An ``<svg>`` element, or "" when no series has a number.
    """
    kept = [(label, _finite(points, log), dotted) for label, points, dotted in series]
    flat = [p for _, runs, _ in kept for run in runs for p in run]
    if not flat:
        return ""
    last = max(x for x, _ in flat) or 1.0
    transform = math.log10 if log else float
    low, high = min(transform(y) for _, y in flat), max(transform(y) for _, y in flat)
    if zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(abs(high), 1e-9):
        low, high = (low - 0.5, high + 0.5) if not zero or high <= 0 else (low, high * 1.1)
    pad = 0.06 * (high - low)
    low, high = (low if zero else low - pad), high + pad

    def at(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (transform(y) - low) / (high - low)

    ends = []
    for label, runs, _ in kept:
        if runs:
            ends.append(f"{label or 'value'} from {short(runs[0][0][1])} to {short(runs[-1][-1][1])}")
    parts = [_open(_WIDTH, _HEIGHT, f"{title}: {'; '.join(ends)} over {short(last)} steps")]
    ticks = log_ticks(10.0**low, 10.0**high, 4) if log else nice_ticks(low, high, 4)
    for value in ticks:
        y = at(0.0, value)[1]
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{y + 3.5:.1f}">{short(value)}</text>')
    for step in nice_ticks(0.0, last, 4):
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / last
        parts.append(f'<text class="mid" x="{x:.1f}" y="{_HEIGHT - 9}">{short(step)}</text>')
    for number, (_, runs, dotted) in enumerate(kept, 1):
        lines = ["M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in (at(*p) for p in run)) for run in runs]
        parts.append(f'<path class="line s{number}" d="{"".join(lines)}"/>')
        shown = [p for run in runs for p in run]
        if not dotted or len(shown) > 60:
            shown = [run[0] for run in runs if len(run) == 1]  # a lone point has no line
        for x, y in (at(*p) for p in shown):
            parts.append(f'<circle class="dot s{number}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>')
    return "".join([*parts, "</svg>"])


def layout_chart(
    title: str,
    axes: tuple[int, int],
    positions: np.ndarray,
    corners: np.ndarray,
    names: Sequence[str],
    test: Sequence[bool],
    points: np.ndarray,
) -> str:
    """Cameras and points seen along one axis.

    Args:
        title: said to those who cannot see the drawing.
        axes: which of the three coordinates go right and up.
        positions: [C, 3] camera centres.
        corners: [C, 4, 3] directions from the centre to the image's corners at depth 1, in turn.
        names, test: C names and whether each is a test camera.
        points: [M, 3] a sample of the Gaussians.

    Returns:
        An ``<svg>`` element, or "" when there is nothing to draw.
    """
    pick = list(axes)
    # Far points (walls, skies) would shrink the rest to a dot: they fall outside of the picture.
    box = (
        [positions[:, pick], np.percentile(points[:, pick], [15, 85], axis=0)] if len(points) else [positions[:, pick]]
    )
    around = np.concatenate(box)
    if not len(around):
        return ""
    low, high = around.min(axis=0), around.max(axis=0)
    extent = max(float((high - low).max()), 1e-9)
    low, high = low - 0.09 * extent, high + 0.09 * extent
    width = 560.0
    scale = min(width / (high[0] - low[0]), 420.0 / (high[1] - low[1]))
    height = float(np.clip((high[1] - low[1]) * scale, 150.0, 420.0))
    middle = (low + high) / 2

    def at(values: np.ndarray) -> np.ndarray:
        moved = (values[..., pick] - middle) * scale
        return np.stack([width / 2 + moved[..., 0], height / 2 - moved[..., 1]], axis=-1)

    parts = [_open(width, height, f"{title}: {len(test) - sum(test)} training and {sum(test)} test cameras")]
    dots = at(points)
    dots = dots[((dots > 0) & (dots < (width, height))).all(axis=-1)]
    parts.append(f'<path class="points" d="{"".join(f"M{x:.0f} {y:.0f}h0" for x, y in dots)}"/>')
    size = 0.05 * extent * (1.0 if len(names) <= 60 else (60 / len(names)) ** 0.35)
    for i in sorted(range(len(names)), key=lambda i: test[i]):  # test cameras lie on top
        eye = at(positions[i])
        ends = at(positions[i] + size * corners[i])
        rim = "L".join(f"{x:.1f} {y:.1f}" for x, y in ends)
        rays = "".join(f"M{eye[0]:.1f} {eye[1]:.1f}L{x:.1f} {y:.1f}" for x, y in ends)
        label = f"<title>{escape(names[i])} ({'test' if test[i] else 'training'})</title>"
        parts.append(f'<path class="camera {"s2" if test[i] else "s1"}" d="M{rim}Z{rays}">{label}</path>')
    parts.append(_scale_bar(extent, scale, height))
    return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers (1, 2 or 5 times a power of ten apart) from low to high."""
    if not high > low:
        return [low]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """About ``count`` round numbers between low and high, both above zero, for a logarithmic axis."""
    if high / low < 3:  # less than that holds too few of 1, 2, 5; linear steps are still nearly even there
        return [t for t in nice_ticks(low, high, count) if t > 0]
    powers = [10.0**p for p in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    ticks: list[float] = []
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [round(m * p, 12) for p in powers for m in steps if low <= m * p <= high]
        if len(ticks) <= count + 2:
            return ticks
    return ticks[:: math.ceil(len(ticks) / count)]


def short(value: float) -> str:
    """A number for an axis: 3 significant digits at most, thousands as k and millions as M."""
    for limit, letter in ((1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else 1e6):.3g}{letter}"
    if value == round(value):
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.1f}"


def _open(width: float, height: float, label: str) -> str:
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">'


def _finite(points: Points, positive: bool) -> list[list[tuple[float, float]]]:
    """Runs of neighbouring numbers; a gap wherever the value is none or not finite."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y) and math.isfinite(x) and (y > 0 or not positive):
            runs[-1].append((float(x), float(y)))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _scale_bar(extent: float, scale: float, height: float) -> str:
    """A line of a round length in scene units, lower left."""
    length = max(t for t in (m * 10.0 ** math.floor(math.log10(extent)) for m in (0.1, 0.2, 0.5)) if t <= extent)
    end = 14 + length * scale
    return (
        f'<path class="bar" d="M14 {height - 12:.0f}H{end:.1f}"/>'
        f'<text x="14" y="{height - 19:.0f}">{short(length)} scene units</text>'
    )
