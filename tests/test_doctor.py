"""The doctor finds what is there, explains what is not, and survives everything."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from featuresplat import FeaturesplatError, doctor
from featuresplat.cli import main
from featuresplat.raster import _nvrtc, _nvrtc_compile


@pytest.fixture(scope="module")
def findings() -> dict[str, doctor.Finding]:
    return {f.name: f for f in doctor.examine()}


def test_this_machine_can_train(findings):
    for name in ("Python", "torch", "packages", "rasterizer"):
        assert findings[name].state == "ok", findings[name]
        assert findings[name].core
    assert torch.__version__ in findings["torch"].detail
    assert findings["memory"].detail.endswith("GiB free") or "unknown" in findings["memory"].detail


def test_what_is_missing_comes_with_its_remedy(findings):
    for name in ("pycolmap", "lpips", "gsplat", "mp4 out"):
        assert findings[name].state == "ok" or findings[name].remedy


def test_the_report_prints_each_finding_and_exits_0(monkeypatch, capsys, findings):
    monkeypatch.setattr(doctor, "examine", lambda: list(findings.values()))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for f in findings.values():
        assert f.name in out
        assert f.remedy in out
    assert out.endswith("Training works here.\n")


def test_a_broken_core_exits_1_and_an_option_does_not(monkeypatch, capsys):
    option = doctor.Finding("gsplat", "broken", "odd", "mend it")
    monkeypatch.setattr(doctor, "examine", lambda: [option])
    assert doctor.main() == 0
    monkeypatch.setattr(doctor, "examine", lambda: [option, doctor.Finding("torch", "broken", "old", "new", core=True)])
    assert doctor.main() == 1
    assert "Training cannot run here: torch." in capsys.readouterr().out


def test_a_check_that_fails_is_a_finding():
    def check() -> doctor.Finding:
        raise OSError("library not found\nmore")

    found = doctor._guarded("thing", True, check)
    assert (found.state, found.detail, found.core) == ("broken", "OSError: library not found", True)


def test_torchvision_of_another_torch_is_explained(monkeypatch, tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    found = doctor._torchvision()
    assert found.state == "broken"
    assert "built for another torch" in found.detail
    assert found.remedy == doctor.torchvision_remedy(torch.__version__)


@pytest.mark.parametrize("name", ["offline", "clip", "sam", "dino", "lseg"])
def test_a_teacher_without_its_package_gets_its_extra(monkeypatch, name):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: None)
    found = doctor._teacher(name, lambda: doctor.Finding("torchvision", "ok", "1"))
    assert (found.state, found.remedy) == ("missing", f"pip install 'featuresplat[{name}]'")


def test_a_broken_torchvision_breaks_the_teachers_on_it_alone(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda module: module)
    broken = doctor.Finding("torchvision", "broken", "odd", "mend it")
    assert doctor._teacher("clip", lambda: broken).remedy == "mend it"
    assert doctor._teacher("clip", lambda: broken).state == "broken"
    assert doctor._teacher("offline", lambda: broken).state == "ok"


def test_the_torchvision_that_belongs_to_a_torch():
    line = "pip install --no-deps --force-reinstall torchvision==0.19.1"
    assert doctor.torchvision_remedy("2.4.1") == line
    assert doctor.torchvision_remedy("2.13.0+cpu").endswith(
        "torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu"
    )
    assert "pytorch.org" in doctor.torchvision_remedy("nightly")


def test_a_library_that_takes_its_process_with_it_is_survived(monkeypatch, tmp_path):
    (tmp_path / "crashing.py").write_text("import os; os._exit(139)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "code 139" in (doctor._import_failure("crashing") or "")
    assert doctor._import_failure("json") is None


def test_an_engine_that_is_missing_is_told(monkeypatch):
    from featuresplat.raster import _native

    monkeypatch.setattr(_native, "unavailable", lambda: "the native library is not there")
    found = doctor._engine()
    assert found.state == "missing"
    assert "C++17" in found.remedy


@pytest.fixture
def gpu(monkeypatch):
    """torch believes in a GPU."""
    properties = SimpleNamespace(name="Fake GPU", total_memory=24 * 2**30, major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


def test_a_gpu_whose_engine_lacks_something_gets_the_pip_line(monkeypatch, gpu):
    problem = FeaturesplatError("the package cuda-bindings cannot be imported", "pip install 'featuresplat[cuda13]'")
    monkeypatch.setattr(_nvrtc, "diagnose", lambda: problem)
    found = doctor._gpu()
    assert (found.state, found.remedy) == ("missing", "pip install 'featuresplat[cuda13]'")
    assert found.detail.startswith("Fake GPU, 24 GiB, compute capability 8.9; the CUDA engine cannot run: the package")


@pytest.mark.parametrize(("worst", "state"), [(3e-7, "ok"), (0.2, "broken"), (math.inf, "broken")])
def test_a_gpu_has_to_draw_what_the_reference_draws(monkeypatch, gpu, worst, state):
    monkeypatch.setattr(_nvrtc, "diagnose", lambda: None)
    monkeypatch.setattr(_nvrtc_compile, "version", lambda: (13, 0))
    monkeypatch.setattr(doctor, "_two_gaussians", lambda device: ("cuda", worst))
    found = doctor._gpu()
    assert found.state == state
    assert ("NVRTC 13.0" in found.detail) == (state == "ok")
    assert bool(found.remedy) == (state == "broken")
