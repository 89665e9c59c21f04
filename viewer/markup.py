"""Words, colour scales and legends as HTML: all that is given is plain text, nothing in it becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

import torch

from featuresplat.io.colormap import colormap

_BOX = '<div style="padding:2px 12px 4px;font-size:12px;line-height:1.5">'


def shortened(text: str, most: int) -> str:
    """At most ``most`` characters of a text; what was left out leaves dots."""
    return text if len(text) <= most else text[: most - 3].rstrip() + "..."


def paragraph(text: str, strong: bool = False) -> str:
    """Some lines, bold where ``strong``."""
    words = html.escape(text).replace("\n", "<br>")
    style = "font-weight:600" if strong else "opacity:.8"
    return f'{_BOX}<span style="{style};overflow-wrap:anywhere">{words}</span></div>'


def ramp(low: object, high: object) -> str:
    """The colour scale between what its ends mean."""
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in colormap(torch.linspace(0, 1, 16)).tolist())
    bar = f'<div style="height:10px;border-radius:4px;background:linear-gradient(to right,{stops})"></div>'
    words = "".join(f"<span>{html.escape(str(t))}</span>" for t in (low, high))
    return f'{_BOX}{bar}<div style="display:flex;justify-content:space-between;opacity:.75">{words}</div></div>'


def swatches(entries: Iterable[tuple[Sequence[float], object]]) -> str:
    """Colours, three numbers in 0..1 each, beside what they mean: two lines of it, and all of it under the mouse."""
    rows = []
    words = (
        "overflow:hidden;overflow-wrap:anywhere;display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:2"
    )
    for color, text in entries:
        r, g, b = (round(255 * float(v)) for v in color)
        dot = f"display:inline-block;width:10px;height:10px;border-radius:3px;background:rgb({r},{g},{b})"
        rows.append(
            f'<div style="display:flex;gap:7px;align-items:center"><span style="{dot};flex:none"></span>'
            f'<span style="{words}" title="{html.escape(str(text))}">{html.escape(str(text))}</span></div>'
        )
    return f"{_BOX}{''.join(rows)}</div>"
