"""Train the demo scene."""

from __future__ import annotations

from pathlib import Path

from featuresplat.verbs._shared import summary

ORDER = 90


def run(out: Path = Path("runs/demo"), config: str | None = None, data: Path | None = None) -> None:
    """Train the small demo scene, measure it and write its report. An earlier demo run is replaced.

    Args:
        out: Run folder.
        config: Preset or YAML file; default the preset 'demo' where there is one, else 'draft'.
        data: The demo scene's folder, where it is not beside the package.
    """
    from featuresplat.demo import run_demo

    finished = run_demo(out, config, data)
    summary(finished)
