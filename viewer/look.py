"""What one browser shows: a frozen record, so that a render has one consistent set of wishes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Draw = Literal["auto", "splats", "render"]
Box = tuple[tuple[float, float, float], tuple[float, float, float]]

KINDS = {
    "rgb": "Colour",
    "depth": "Depth",
    "normals": "Normals",
    "alpha": "Opacity",
    "features": "Features",
    "relevancy": "Relevancy",
    "instances": "Objects",
}
"""What can be shown of every scene, and what it is called; modes add their own (``KINDS`` of their module)."""
ON_SPLATS = ("rgb", "normals", "features", "relevancy", "instances")
"""Kinds that are a colour per Gaussian, so that the browser can draw them itself."""


@dataclass(frozen=True)
class Look:
    """The wishes of one browser.

    Attributes:
        kind: of `KINDS`, or of the mode's.
        draw: ``auto``, or who draws: ``splats`` the browser, ``render`` our engine.
        detail: pixels of a full render, as a share of the window's.
        background: behind the scene, RGB in 0..1.
        size: factor on the Gaussians' scales.
        crop: lowest and highest corner of what is shown, world frame; None shows everything.
        time, light: handed to the render.
        field: the field that ``features`` shows; "" is the last one.
        prompt: place of the prompt whose heat map is shown; -1 shows all of them in their colours.
        outlines: draw the selections' outlines and tints.
        frustums: show the training cameras.
        up: which way is up, world frame; None: as the cameras were held.
        fly: the mouse turns the view on the spot, in place of about what is looked at.
        compare: name of the photograph to compare with, or "".
        split: where render and photograph meet, share of the width.
        extra: values of panels from outside; compared by identity of the dict.
    """

    kind: str = "rgb"
    draw: Draw = "auto"
    detail: float = 1.0
    background: tuple[float, float, float] = (0.0, 0.0, 0.0)
    size: float = 1.0
    crop: Box | None = None
    time: float | None = None
    light: Any = None
    field: str = ""
    prompt: int = -1
    outlines: bool = True
    frustums: bool = False
    up: tuple[float, float, float] | None = None
    fly: bool = False
    compare: str = ""
    split: float = 0.5
    extra: dict[str, Any] = dataclasses.field(default_factory=dict)
