"""The training that is watched: where it is, pause, resume, step."""

from __future__ import annotations

import math
from typing import Any

from featuresplat.controls import Button, Buttons, Curve, Note, Panel


def panel(app: Any) -> Panel | None:
    if app.live is None:
        return None
    return Panel(
        "Training",
        [
            Note(_progress, strong=True),
            Note(_state),
            Button("Pause", lambda s: s.app.live.pause(), icon="player-pause", color="orange",
                   when=lambda s: not s.app.live.paused),
            Button("Resume", lambda s: s.app.live.resume(), icon="player-play", color="green",
                   when=lambda s: s.app.live.paused and not s.app.live.finished),
            Buttons("Do steps", ("1", "10", "100"), lambda s, n: s.app.live.advance(int(n)),
                    when=lambda s: s.app.live.paused and not s.app.live.finished),
            Curve(_psnr, "PSNR of training views, dB"),
            Curve(_loss, "Loss"),
        ],
        icon="chart-line",
        order=5,
    )  # fmt: skip


def _progress(s: Any) -> str:
    live = s.app.live
    words = f"Step {live.step:,} of {live.steps:,}, {live.gaussians:,} Gaussians"
    return words if math.isnan(live.psnr) else f"{words}, {live.psnr:.2f} dB"


def _state(s: Any) -> str:
    live, waiting = s.app.live, len(s.state.waiting)
    if live.finished:
        return "Finished. Edits are possible; they are not part of the training."
    if live.paused:
        return "Paused. Edits are done now, and the training goes on with what they leave."
    words = f"Running, {live.speed:.0f} steps a second. Edits wait for a pause."
    return words + (f" {waiting} are waiting." if waiting else "")


def _psnr(s: Any) -> tuple[list, dict]:
    rows = [r for r in s.app.live.curve if not math.isnan(r[2])]
    return [r[0] for r in rows], {"PSNR": [r[2] for r in rows]}


def _loss(s: Any) -> tuple[list, dict]:
    rows = [r for r in s.app.live.curve if not math.isnan(r[1])]
    return [r[0] for r in rows], {"loss": [r[1] for r in rows]}
