"""featuresplat: Gaussian splatting with feature fields. The public names, loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_HOMES = {
    "FeaturesplatError": "errors",
    "Cameras": "types",
    "FeatureField": "types",
    "Gaussians": "types",
    "PointCloud": "types",
    "RasterMeta": "types",
    "RenderOutput": "types",
    "RasterSettings": "raster",
    "Scene": "scene",
    "contributions": "raster",
    "lift": "raster",
    "rasterize": "raster",
    "topk": "raster",
    "train": "trainer",
    "view": "viewer",
    "weight_matrix": "raster",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name in _HOMES:
        found = globals()[name] = getattr(importlib.import_module(f"featuresplat.{_HOMES[name]}"), name)
        return found
    raise AttributeError(f"module 'featuresplat' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from featuresplat.errors import FeaturesplatError as FeaturesplatError
    from featuresplat.raster import RasterSettings as RasterSettings
    from featuresplat.raster import contributions as contributions
    from featuresplat.raster import lift as lift
    from featuresplat.raster import rasterize as rasterize
    from featuresplat.raster import topk as topk
    from featuresplat.raster import weight_matrix as weight_matrix
    from featuresplat.scene import Scene as Scene
    from featuresplat.trainer import train as train
    from featuresplat.types import Cameras as Cameras
    from featuresplat.types import FeatureField as FeatureField
    from featuresplat.types import Gaussians as Gaussians
    from featuresplat.types import PointCloud as PointCloud
    from featuresplat.types import RasterMeta as RasterMeta
    from featuresplat.types import RenderOutput as RenderOutput
    from featuresplat.viewer import view as view  # pyright: ignore[reportMissingImports]
