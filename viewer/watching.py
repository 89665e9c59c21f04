"""A training with browsers looking on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from featuresplat import trainer
from featuresplat.config import TrainConfig

from .app import App
from .live import Live, copied

if TYPE_CHECKING:
    from featuresplat.trainer import Trainer


def train_and_watch(
    source: Path, config: TrainConfig, *, host: str = "127.0.0.1", port: int = 8080, progress: bool = True
) -> App:
    """Train as `featuresplat.train` does, with a viewer from the first step on.

    Returns:
        The viewer, still serving, with the finished scene.

    Raises:
        FeaturesplatError, Interrupted: as training does; the viewer is stopped then.
    """
    live = Live(config.steps)
    app: App | None = None

    def watch(running: Trainer) -> None:
        nonlocal app
        if app is None:
            folder = config.out or running.folder
            app = App(copied(running.scene()), folder, title=f"training {folder.name}")
            live.attach(app)
            print("\n".join(app.start(host, port)), flush=True)
        live.watch(running)

    try:
        scene = trainer.train(source, config, progress=progress, watch=watch)
        if app is None:  # a resumed run that had no steps left
            app = App(scene, config.out, title=config.out.name if config.out else "featuresplat")
            print("\n".join(app.start(host, port)), flush=True)
        else:
            live.finish()
            app.document.replace_base(scene)
        return app
    except BaseException:
        if app is not None:
            live.close()
            app.stop()
        raise
