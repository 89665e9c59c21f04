"""Icons by name, from viser's archive, which is opened once: viser opens all of its 4,000 files anew for every icon,
and a browser's panels have dozens.
"""

from __future__ import annotations

import zipfile
from functools import cache

ARCHIVE = "tabler-icons.zip"


@cache
def _archive() -> zipfile.ZipFile:
    from viser._icons import ICONS_DIR

    return zipfile.ZipFile(ICONS_DIR / ARCHIVE)


@cache
def svg(name: str) -> str:
    """The icon as SVG.

    Raises:
        KeyError: there is none of that name.
    """
    return _archive().read(f"{name}.svg").decode("utf-8")


def known(name: str) -> str | None:
    """The name where there is such an icon, else None: a panel from outside may know others."""
    try:
        svg(name)
    except KeyError:
        return None
    return name


def quicken() -> None:
    """Let viser's controls take their icons from here, where it looks for them in the places we know."""
    from viser import _gui_api, _gui_handles

    for module in (_gui_api, _gui_handles):
        if hasattr(module, "svg_from_icon"):
            module.svg_from_icon = svg  # pyright: ignore[reportAttributeAccessIssue]
