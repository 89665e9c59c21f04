"""Materials and light of a finished run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from featuresplat.verbs._shared import Flag, Run, given, summary

ORDER = 15


def run(
    run: Run = "",
    out: Path | None = None,
    steps: int | None = None,
    config: str = "inverse",
    device: str = "auto",
    seed: int = 0,
    resume: Flag = False,
    overwrite: Flag = False,
    quiet: Flag = False,
) -> None:
    """Find the materials and the light of a finished run: progressive radiance distillation.

    Args:
        run: Folder that train made; its photographs must still be where they were.
        out: Folder of the new run; default RUN-inverse.
        steps: Optimisation steps; default the preset's.
        config: Preset, or YAML file, of mode inverse.
        device: auto, cpu, cuda or cuda:N.
        seed: Seed of everything random.
        resume: Go on from the last checkpoint in the new run's folder.
        overwrite: Start anew in a folder that already holds a run.
        quiet: No progress bar and no summary.
    """
    folder = given("inverse", run, "the folder of a finished run", "runs/NAME")
    from featuresplat import trainer
    from featuresplat.config import load_config
    from featuresplat.errors import FeaturesplatError
    from featuresplat.scene import Scene

    scene = Scene.load(folder)
    if scene.mode not in ("static", "joint"):
        raise FeaturesplatError(
            f"{folder}: expected a run of mode static, got one of mode {scene.mode}",
            "It has materials already: render, edit or export it."
            if scene.mode == "inverse"
            else "Materials are found of scenes that hold still: train --config inverse.",
        )
    source = scene.info.get("source")
    if not source or scene.config is None or not Path(source).exists():
        raise FeaturesplatError(
            f"{folder}: its photographs ({source or 'not named'}) are not there", "Put them back, or use train."
        )
    settings = load_config(config)
    if settings.mode != "inverse":
        raise FeaturesplatError(f"config: '{config}' is of mode {settings.mode}", "Use a preset of mode inverse.")
    if out is not None and out.resolve() == folder.resolve():
        raise FeaturesplatError(f"{out}: is the run itself", "Give another folder with --out.")
    settings = replace(
        settings,
        out=out or folder.resolve().with_name(folder.resolve().name + "-inverse"),
        steps=settings.steps if steps is None else steps,
        data=scene.config.data,
        model=replace(settings.model, sh_degree=scene.gaussians.sh_degree, budget=len(scene.gaussians)),
        inverse=replace(settings.inverse, start=folder.resolve()),
        device=device,
        seed=seed,
        resume=resume,
        overwrite=overwrite,
    )
    trainer.train(Path(source), settings, progress=not quiet)
    if not quiet:
        summary(Path(str(settings.out)))
