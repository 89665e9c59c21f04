"""Imports go downward only, and the package itself imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "featuresplat"

LAYERS = {
    0: "errors types geometry config config_fields config_dynamic config_inverse config_ranges registry paths "
    "normalization poses exposure memory devices decoders controls",
    1: "raster shading io datasets teachers priors losses metrics densify points sweep _ssim",
    2: "fields prompts modes scene",
    3: "query edit affinity_run masks_eval trainer _training _photographs _checkpoints trainlog evaluate report "
    "_report render export",
    4: "cli verbs __main__ doctor demo viewer integrations",
}
LAYER = {name: layer for layer, names in LAYERS.items() for name in names.split()}
LEAVES = {"cli", "viewer", "integrations"}
FACES = {"__main__", "verbs"}  # what a person starts may start the viewer


def imported_modules(path: Path) -> set[str]:
    """First-level modules of ours that a file imports, anywhere in it."""
    return modules_in(path.read_text(encoding="utf-8"))


def modules_in(source: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("featuresplat.")}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            assert node.level == 0, f"relative import of {node.module}"
            if module == ["featuresplat"]:
                found |= {a.name for a in node.names if a.name in LAYER or not hasattr_lazily(a.name)}
            elif module[0] == "featuresplat":
                found.add(module[1])
    return found


def hasattr_lazily(name: str) -> bool:
    """Names such as ``Cameras`` and ``__version__`` that the package offers without being modules."""
    import featuresplat

    return name in featuresplat.__all__


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES])
def test_imports_go_downward(path):
    here = module_of(path)
    assert here in LAYER, f"{here}: say in this test which layer it belongs to"
    for other in imported_modules(path) - {here}:
        assert other in LAYER, f"{path.name} imports {other}, which has no layer"
        assert LAYER[other] <= LAYER[here], f"{path.name} (layer {LAYER[here]}) imports {other} ({LAYER[other]})"
        assert other not in LEAVES or here in FACES, f"{path.name} imports {other}, which nobody may import"


def test_the_checker_sees_every_form_of_import():
    source = (
        "from featuresplat.trainer import train\nimport featuresplat.cli\nfrom featuresplat import scene, Cameras\n"
    )
    assert modules_in(source) == {"trainer", "cli", "scene"}
    assert modules_in("def f():\n    from featuresplat.io.ply import x") == {"io"}


HEAVY = "torch scipy viser plyfile numpy PIL rich.progress"


@pytest.mark.parametrize("module", ["featuresplat", "featuresplat.cli"])
def test_nothing_heavy_is_imported_before_it_is_used(module):
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r}.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
