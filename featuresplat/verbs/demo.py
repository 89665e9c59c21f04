"""Train the demo scene and look at it."""

from __future__ import annotations

from pathlib import Path

from featuresplat.verbs._shared import interactive, summary

ORDER = 90


def run(out: Path = Path("runs/demo"), config: str | None = None, data: Path | None = None) -> None:
    """Train the small demo scene, measure it and write its report; then, in a terminal, serve the viewer until Ctrl-C.
    An earlier demo run is replaced.

    Args:
        out: Run folder.
        config: Preset or YAML file; default the preset 'demo' where there is one, else 'draft'.
        data: The demo scene's folder, where it is not beside the package.
    """
    from featuresplat.demo import run_demo

    finished = run_demo(out, config, data)
    summary(finished)
    if interactive():
        from featuresplat.viewer import view  # pyright: ignore[reportMissingImports]

        view(finished)
