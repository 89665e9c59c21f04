"""The viewer's panels: one file, one panel, each with a function ``panel(app) -> Panel | None``.

What a panel is made of is `featuresplat.controls`, plain data that any layer may use: a mode module and the modules of
the fields' teachers contribute theirs by a function ``panel(app)`` of their own, which may answer with a list;
a package from outside by an entry point of the group ``featuresplat.viewer.panels``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from featuresplat import registry
from featuresplat.controls import Panel
from featuresplat.errors import FeaturesplatError

log = logging.getLogger("featuresplat.viewer")


def panels_of(app: Any) -> list[Panel]:
    """All panels for the app's scene, in order. One that cannot be made is left out, with a line in the log."""
    found = []
    for name, module in _modules(app.document.scene):
        try:
            panel = module.panel(app) if hasattr(module, "panel") else None
        except Exception:
            log.exception("the panel of %s cannot be made", name)
            continue
        if panel is not None:
            found += panel if isinstance(panel, list) else [panel]
    return sorted(found, key=lambda p: p.order)


def _modules(scene: Any) -> Iterator[tuple[str, ModuleType]]:
    kinds = [("viewer.panels", name) for name in registry.names("viewer.panels")]
    kinds.append(("modes", scene.mode))
    known = registry.names("teachers")
    kinds += [("teachers", t) for t in sorted({f.teacher for f in scene.fields.values()}) if t in known]
    for kind, name in kinds:
        try:
            yield f"{kind}/{name}", registry.load(kind, name)
        except (FeaturesplatError, ImportError) as error:
            log.warning("%s/%s offers no panel: %s", kind, name, error)
