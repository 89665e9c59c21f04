"""From photographs to materials in one command: the run that comes first, whose Gaussians become the radiance field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from featuresplat.config import DensifyConfig, TeacherConfig, TrainConfig
from featuresplat.modes import _inverse_radiance
from featuresplat.modes._inverse_input import check_photographs
from featuresplat.modes._inverse_start import check_stages

if TYPE_CHECKING:
    from featuresplat.datasets import Dataset
    from featuresplat.scene import Scene

FOLDER = "radiance"
"""Of that run, within the folder of the whole."""


def begun(config: TrainConfig, first: Callable[[TrainConfig, Callable[[Dataset], None]], None]) -> TrainConfig:
    """The configuration with a run to start from; a static one is trained where it names none and asks for one.

    Poses that are refined along leave no run to start from: its Gaussians would stand in other places.

    Args:
        first: trains a run, or goes on with it, or leaves it as it is where it is finished already.
    """
    c = config.inverse
    check_stages(c)
    if c.start is not None or not c.radiance_run or not c.progress or config.pose.enabled:
        return config
    assert config.out is not None
    folder = config.out / FOLDER
    static = replace(
        config,
        mode="static",
        out=folder,
        steps=max(1, round(c.radiance_run * config.steps)),
        densify=replace(DensifyConfig(), strategy=config.densify.strategy),
        teacher=TeacherConfig(),
        report=False,
    )
    first(static, check_photographs)
    return replace(config, inverse=replace(c, start=folder.resolve()))


def has_begun(config: TrainConfig) -> bool:
    """Whether the run to start from was trained for this one, from the same photographs."""
    return config.out is not None and config.inverse.start == (config.out / FOLDER).resolve()


def settled(scene: Scene, dataset: Dataset) -> Scene:
    """The last word on a scene whose training has ended: `_inverse_radiance.settled`.

    Its configuration no longer names the run that came first, so that it repeats the whole where it is given back.
    """
    config, scene = scene.config, _inverse_radiance.settled(scene, dataset)
    if config is None or not has_begun(config):
        return scene
    return replace(scene, config=replace(config, inverse=replace(config.inverse, start=None)))
