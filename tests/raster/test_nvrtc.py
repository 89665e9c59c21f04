"""Run-time compilation, its cache and the launcher, where there is no GPU: what is missing, broken or too old."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import HERE

import featuresplat as fs
from featuresplat import FeaturesplatError
from featuresplat.raster import _nvrtc
from featuresplat.raster import _nvrtc_compile as compiler
from featuresplat.raster._nvrtc_sources import Parameter, Sources, engine_sources, parse

SOURCES = Sources(HERE / "kernels", (HERE.parents[1] / "cuda/gpu",))
needs_nvrtc = pytest.mark.skipif(
    importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None,
    reason="cuda-bindings is not installed",
)
ELF, SM = b"\x7fELF", (9, 0)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No stand-in for the GPU, nothing remembered, and a cache of this test's own."""
    monkeypatch.setattr(_nvrtc, "stand_ins", {})
    monkeypatch.setattr(compiler, "_announced", False)
    monkeypatch.setenv("FEATURESPLAT_CACHE", str(tmp_path / "cache"))
    remembered = (_nvrtc._diagnose, _nvrtc._device_launcher, _nvrtc.driver, compiler.nvrtc, compiler.version)
    remembered += (compiler.targets,)
    for function in remembered:
        function.cache_clear()
    yield
    for function in remembered:
        function.cache_clear()


# ---- reading the sources --------------------------------------------------------------------------------------


def test_kernels_are_read_from_their_sources():
    text = """
    // FS_KERNEL(32, not_this, int a) in a comment
    #define OTHER FS_KERNEL
    FS_KERNEL(256, one, const float* __restrict__ in, float *out, int64_t n, unsigned int k,
              const Args a /* by value */) { }
    FS_KERNEL_OCCUPANCY(8 * (16), 2, two, const Args a, bool b, double d) { }
    """
    one, two = parse(text, "x.cu")
    assert (one.name, two.name, one.file) == ("one", "two", "x.cu")
    assert one.parameters == (
        Parameter("in", "P"), Parameter("out", "P"), Parameter("n", "q"), Parameter("k", "I"), Parameter("a", "*"),
    )  # fmt: skip
    assert [p.format for p in two.parameters] == ["*", "?", "d"]


def test_the_engine_has_its_kernels_and_they_share_the_device_header():
    sources = engine_sources()
    assert {"project.cu", "blend.cu", "backward.cu", "lift.cu"} <= set(sources.files)
    for file in sources.files:
        assert "device.cuh" in {p.name for p in sources.closure(file)}


def test_digest_covers_what_is_included(tmp_path):
    (tmp_path / "a.cu").write_text('#include "b.cuh"\nFS_KERNEL(32, k, int n) { f(n); }\n')
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "c.cuh"\n#include "a.cu"\n')
    digests = set()
    for text in ("inline void f(int) {}\n", "inline void f(int) { }\n"):
        (tmp_path / "c.cuh").write_text(text)
        digests.add(Sources(tmp_path).digest("a.cu"))
    assert len(digests) == 2
    assert [p.name for p in Sources(tmp_path).closure("a.cu")] == ["a.cu", "b.cuh", "c.cuh"]


def test_two_kernels_of_one_name_are_refused(tmp_path):
    for name in ("a.cu", "b.cu"):
        (tmp_path / name).write_text("FS_KERNEL(32, k, int n) { }\n")
    with pytest.raises(ValueError, match=r"kernel k stands in a.cu and in b.cu"):
        _ = Sources(tmp_path).kernels


# ---- compiling --------------------------------------------------------------------------------------------------


@needs_nvrtc
def test_compiles_once_and_then_reads_the_cache(capsys, monkeypatch):
    first = compiler.cached(SOURCES, "emulator.cu", SM)
    assert first.code[:4] == ELF
    said = capsys.readouterr().err
    assert said.startswith("featuresplat: compiling CUDA kernels for sm_90 (once; kept in ")
    assert said.count("\n") == 1
    compiler.cached(SOURCES, "emulator.cu", SM, (("SCALE", 2),))
    assert capsys.readouterr().err == ""  # one line a program
    monkeypatch.setattr(compiler, "compile_file", lambda *a: pytest.fail("compiled again"))
    assert compiler.cached(SOURCES, "emulator.cu", SM).code == first.code
    names = sorted(p.name for p in compiler.cache_folder().iterdir())
    assert len(names) == 2
    assert all(n.startswith("emulator-sm_90-") and n.endswith(".bin") for n in names)


@needs_nvrtc
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_cache_entries_are_compiled_again(damage):
    good = compiler.cached(SOURCES, "emulator.cu", SM).code
    (entry,) = compiler.cache_folder().iterdir()
    blob = entry.read_bytes()
    flipped = bytearray(blob)
    flipped[-5] ^= 1
    entry.write_bytes({"truncated": blob[:-100], "flipped": bytes(flipped), "empty": b"", "foreign": good}[damage])
    assert compiler.cached(SOURCES, "emulator.cu", SM).code == good
    assert entry.read_bytes() == blob
    assert list(compiler.cache_folder().iterdir()) == [entry]  # and no left-overs


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FEATURESPLAT_CACHE", str(tmp_path / "file"))
    assert compiler.cached(SOURCES, "emulator.cu", SM).code[:4] == ELF


def test_where_the_cache_lies(monkeypatch):
    monkeypatch.setenv("FEATURESPLAT_CACHE", "/somewhere")
    assert compiler.cache_folder() == Path("/somewhere/kernels")
    monkeypatch.delenv("FEATURESPLAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert compiler.cache_folder() == Path("/xdg/featuresplat/kernels")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert compiler.cache_folder() == Path.home() / ".cache/featuresplat/kernels"


@needs_nvrtc
def test_a_source_that_does_not_compile_shows_the_log(tmp_path):
    (tmp_path / "wrong.cu").write_text('#include "device.cuh"\nFS_KERNEL(32, wrong, int* p) { *p = undeclared; }\n')
    with pytest.raises(FeaturesplatError, match=r"wrong.cu \(K=3\) does not compile for sm_90:(?s:.*)undeclared") as e:
        compiler.compile_file(Sources(tmp_path, SOURCES.include), "wrong.cu", 90, (("K", 3),))
    assert "report" in e.value.hint


@needs_nvrtc
def test_ptx_for_a_gpu_newer_than_nvrtc():
    done = compiler.compile_file(SOURCES, "emulator.cu", 90, ptx=True)
    assert b".target sm_90" in done.code
    assert ord(bytes([32])) == 32, "NVRTC wrote its log into a bytes object that all of Python shares"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((7, 5), (75, False)), ((8, 6), (86, False)), ((8, 7), (86, False)), ((9, 0), (90, False)), ((11, 0), (90, True))],
)
def test_what_is_compiled_for_a_device(monkeypatch, capability, expected):
    monkeypatch.setattr(compiler, "targets", lambda: (75, 80, 86, 90))
    assert compiler.target_for(capability) == expected


def test_a_gpu_that_is_too_old(monkeypatch):
    with pytest.raises(FeaturesplatError, match=r"compute capability 7\.0, the kernels need 7\.5"):
        compiler.target_for((7, 0))
    monkeypatch.setattr(compiler, "targets", lambda: (80, 90))
    monkeypatch.setattr(compiler, "version", lambda: (14, 0))
    with pytest.raises(FeaturesplatError, match=r"NVRTC 14\.0 no longer compiles for compute capability 7\.5") as e:
        compiler.target_for((7, 5))
    assert "cuda12" in e.value.hint


# ---- what is missing ----------------------------------------------------------------------------------------------


def believe_in_gpu(monkeypatch, capability=(9, 0), cuda="13.0"):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=None: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)


def answer_imports(monkeypatch, modules: dict):
    """Modules (or the exceptions their import raises) by name."""
    real = importlib.import_module

    def fake(name, package=None):
        found = modules.get(name)
        if isinstance(found, Exception):
            raise found
        return found or real(name, package)

    monkeypatch.setattr(importlib, "import_module", fake)


def status(value: int, name: str = "CUDA_ERROR_NO_DEVICE"):
    class Status(int):
        pass

    out = Status(value)
    out.name = name  # pyright: ignore[reportAttributeAccessIssue]
    return out


DRIVER = SimpleNamespace(cuInit=lambda flags: (status(0),))


def raising(error: Exception):
    def call(*_):
        raise error

    return call


def test_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert _nvrtc.unavailable() == "torch sees no NVIDIA GPU"
    with pytest.raises(FeaturesplatError, match="backend 'cuda' cannot run here: torch sees no NVIDIA GPU"):
        fs.rasterize(*[torch.zeros(1, n) for n in (3, 4, 3)], torch.zeros(1), torch.zeros(1, 3), torch.eye(4)[None],
                     torch.eye(3)[None], 8, 8, backend="cuda")  # fmt: skip


def test_torch_for_other_gpus(monkeypatch):
    believe_in_gpu(monkeypatch, cuda=None)
    assert "another maker's GPUs" in (_nvrtc.unavailable() or "")


@pytest.mark.parametrize(("cuda", "extra"), [("12.6", "cuda12"), ("13.0", "cuda13")])
def test_bindings_missing(monkeypatch, cuda, extra):
    believe_in_gpu(monkeypatch, cuda=cuda)
    answer_imports(monkeypatch, {"cuda.bindings.driver": ModuleNotFoundError("No module named 'cuda'")})
    problem = _nvrtc.diagnose()
    assert problem is not None
    assert problem.message == "the package cuda-bindings cannot be imported (No module named 'cuda')"
    assert problem.hint == f"pip install 'featuresplat[{extra}]'"


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (raising(RuntimeError("Failed to dlopen libcuda.so.1\nmore")), r"does not open \(Failed to dlopen libcuda"),
        (lambda flags: (status(100),), r"the NVIDIA driver does not start \(CUDA_ERROR_NO_DEVICE\)"),
    ],
)
def test_driver_missing_or_broken(monkeypatch, init, words):
    believe_in_gpu(monkeypatch)
    answer_imports(monkeypatch, {"cuda.bindings.driver": SimpleNamespace(cuInit=init)})
    with pytest.raises(FeaturesplatError, match=words):
        _nvrtc.launcher(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (ModuleNotFoundError("No module named 'cuda.bindings.nvrtc'"), "the package cuda-bindings cannot be imported"),
        (SimpleNamespace(nvrtcVersion=raising(RuntimeError("libnvrtc.so.13 not found"))), "libnvrtc.so.13 not found"),
        (SimpleNamespace(nvrtcVersion=lambda: (status(5), 0, 0)), "does not answer"),
    ],
)
def test_nvrtc_missing_or_broken(monkeypatch, module, words):
    believe_in_gpu(monkeypatch)
    answer_imports(monkeypatch, {"cuda.bindings.driver": DRIVER, "cuda.bindings.nvrtc": module})
    problem = _nvrtc.diagnose()
    assert problem is not None
    assert words in problem.message
    assert problem.hint == "pip install 'featuresplat[cuda13]'"
    assert _nvrtc.unavailable() == problem.message


@needs_nvrtc
def test_old_gpu_is_told_before_anything_runs(monkeypatch):
    believe_in_gpu(monkeypatch, capability=(6, 1))
    answer_imports(monkeypatch, {"cuda.bindings.driver": DRIVER})
    assert "compute capability 6.1" in (_nvrtc.unavailable() or "")


def test_tensors_elsewhere(monkeypatch):
    with pytest.raises(FeaturesplatError, match="backend 'cuda' got tensors on meta"):
        _nvrtc.launcher(torch.device("meta"))


# ---- launching, with a driver that only takes notes ------------------------------------------------------------------


@pytest.fixture(scope="module")
def noted(tmp_path_factory) -> dict:
    """What a process saw that believes in a GPU (fake_cuda.py)."""
    if importlib.util.find_spec("cuda") is None or sys.platform != "linux":
        pytest.skip("cuda-bindings is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a real driver")
    folder = tmp_path_factory.mktemp("fake")
    library = folder / "libfake.so"
    command = ["g++", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(HERE / "kernels/fake_driver.cpp")]
    try:
        subprocess.run([*command, "-o", str(library)], check=True, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("the fake driver needs g++")
    env = {**os.environ, "FEATURESPLAT_CACHE": str(folder)}
    done = subprocess.run(
        [sys.executable, str(HERE / "fake_cuda.py"), str(library)], capture_output=True, text=True, env=env, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


def test_device_is_read(noted):
    assert noted["unavailable"] is None
    assert noted["device"] == [90, 132, 232448, "Fake GPU"]


def test_arguments_reach_the_driver(noted):
    assert noted["arguments"] == [True, True, -7, 5, -(2**40), 2**53, 0.5, 0.25, 0]
    assert noted["first"] == ["mixed_arguments", [3, 2, 1], [32, 1, 1], 100, 77, 1]
    assert noted["elf"] == int.from_bytes(ELF, "little")


def test_modules_are_loaded_once(noted):
    assert noted["same file is one module"] == [1, 2]
    assert noted["other constants are another module"] == [2, 3]
    assert noted["packed"]
    assert noted["empty grid"] == 0
    assert noted["threads"] == 200


def test_shared_memory_beyond_48_KiB_is_asked_for(noted):
    assert noted["shared allowed"] == 60000
    message, _ = noted["too much shared"]
    assert message == "kernel early_return needs 300000 bytes of shared memory a block; Fake GPU has 232448"


def test_another_context_is_put_right(noted):
    assert noted["context"] == [2, 1, 0]  # launched twice, one push, popped again


def test_failures_name_kernel_and_cause(noted):
    message, hint = noted["failing launch"]
    assert message.startswith("kernel early_return failed on Fake GPU (CUDA_ERROR_ILLEGAL_ADDRESS; grid 1 x 1 x 1")
    assert "FEATURESPLAT_CUDA_SYNC=1" in hint
    assert "CUDA_ERROR_LAUNCH_FAILED" in noted["synchronous"][0]
    message, hint = noted["failing load"]
    assert "CUDA_ERROR_NO_BINARY_FOR_GPU" in message
    assert "update the driver" in hint


def test_resources(noted):
    assert noted["resources"] == {"registers": 14, "local": 13, "shared": 11}


# ---- every kernel, every architecture -----------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 120])
def test_every_kernel_compiles_and_none_spills(arch, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "scripts"))
    cubins = importlib.import_module("cubins")
    usages = cubins.examine((arch,), threads=2)
    # Without matrix units lifting has kernels of its own.
    assert {u.kernel for u in usages} >= {"project", "blend", "blend_backward", "lift" if arch >= 80 else "lift_pixels"}
    assert [f"{u.kernel} {dict(u.constants)}" for u in cubins.spilling(usages)] == []
    assert all(1 <= u.registers <= 255 for u in usages)


def test_cubins_log_is_read(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parents[1] / "scripts"))
    cubins = importlib.import_module("cubins")
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90'
ptxas info    : Function properties for a
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 8 bytes cumulative stack size, 1024 bytes smem
ptxas info    : Compiling entry function 'b' for 'sm_90'
ptxas info    : Function properties for b
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers
"""
    a, b = cubins.parse(log, "x.cu", 90, ())
    assert (a.kernel, a.registers, a.stack, a.spills, a.shared) == ("a", 64, 8, 16, 1024)
    assert (b.kernel, b.registers, b.stack, b.spills, b.shared) == ("b", 10, 0, 0, 0)
    assert cubins.spilling([a, b]) == [a]
    assert "x:a" in cubins.table([a, b], False)
    assert "!64 / 1024" in cubins.table([a, b], False)
