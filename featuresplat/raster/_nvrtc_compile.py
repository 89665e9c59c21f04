"""CUDA sources to machine code by NVRTC, and the cache of it on disk. Needs no GPU.

An entry of the cache is one file with its own SHA-256 in front, named by a hash of everything the machine code depends
on: sources, constants, architecture, options, NVRTC's version. It is written beside its place and renamed into it; one
that is damaged is compiled again.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from featuresplat.errors import FeaturesplatError
from featuresplat.raster._nvrtc_sources import Sources, defines

MAGIC = b"fscubin1"
OLDEST = (7, 5)
"""The oldest compute capability the kernels compile for."""


@dataclass(frozen=True)
class Compiled:
    """Machine code of one file. ``ptx``: text that the driver finishes, for a GPU newer than this NVRTC."""

    code: bytes
    log: str = ""
    ptx: bool = False


@cache
def nvrtc() -> Any:
    """The bindings of NVRTC, with the library itself opened.

    Raises:
        FeaturesplatError: one of them is missing or does not open.
    """
    try:
        module = importlib.import_module("cuda.bindings.nvrtc")
    except ImportError as error:
        raise FeaturesplatError(f"the package cuda-bindings cannot be imported ({error})", install_hint()) from error
    try:
        status, _, _ = module.nvrtcVersion()
        working = not int(status)
    except Exception as error:  # the bindings raise several kinds when the library is not found
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise FeaturesplatError(
            f"NVRTC, CUDA's run-time compiler, does not open ({said[0]})", install_hint()
        ) from error
    if not working:
        raise FeaturesplatError(f"NVRTC, CUDA's run-time compiler, does not answer ({status})", install_hint())
    return module


def install_hint() -> str:
    """The pip line for the CUDA that torch was built with; 13 where that is unknown."""
    import torch

    major = (torch.version.cuda or "13").split(".")[0]
    return f"pip install 'featuresplat[cuda{'12' if major == '12' else '13'}]'"


@cache
def version() -> tuple[int, int]:
    """NVRTC's (major, minor)."""
    _, major, minor = nvrtc().nvrtcVersion()
    return int(major), int(minor)


@cache
def targets() -> tuple[int, ...]:
    """The architectures this NVRTC makes machine code for: 75 is sm_75."""
    status, found = nvrtc().nvrtcGetSupportedArchs()
    _check(status, "nvrtcGetSupportedArchs")
    return tuple(sorted(int(a) for a in found))


def target_for(capability: tuple[int, int]) -> tuple[int, bool]:
    """(architecture, PTX?) to compile for a device.

    Its own where NVRTC knows it; else the newest of the same major version, whose machine code it runs; else PTX of the
    newest that is older, which the driver compiles on.

    Raises:
        FeaturesplatError: the device is too old for the kernels, or for this NVRTC.
    """
    own = 10 * capability[0] + capability[1]
    if capability < OLDEST:
        raise FeaturesplatError(
            f"the GPU has compute capability {capability[0]}.{capability[1]}, the kernels need "
            f"{OLDEST[0]}.{OLDEST[1]} (Turing, 2018) or newer",
            "Use another GPU, or --device cpu.",
        )
    older = [a for a in targets() if a <= own]
    if not older:
        major, minor = version()
        raise FeaturesplatError(
            f"NVRTC {major}.{minor} no longer compiles for compute capability {capability[0]}.{capability[1]}",
            "pip install 'featuresplat[cuda12]'",
        )
    return older[-1], older[-1] // 10 != capability[0]


def options(sources: Sources, arch: int, ptx: bool, constants: tuple[tuple[str, int], ...]) -> list[str]:
    """NVRTC's command line."""
    found = [f"--gpu-architecture={'compute' if ptx else 'sm'}_{arch}", "--std=c++17", "--ptxas-options=-v"]
    # Formulas shared with the CPU engine carry no __device__; division and square root stay exact.
    found += ["--device-as-default-execution-space", "--fmad=true"]
    if os.environ.get("FEATURESPLAT_CUDA_LINEINFO"):  # source lines in ncu and compute-sanitizer
        found.append("--generate-line-info")
    return found + defines(constants) + [f"-I{folder}" for folder in sources.include]


def compile_file(
    sources: Sources, file: str, arch: int, constants: tuple[tuple[str, int], ...] = (), ptx: bool = False
) -> Compiled:
    """Compile one file, without the cache.

    Raises:
        FeaturesplatError: NVRTC is missing, or the source does not compile (the log is in the message).
    """
    module = nvrtc()
    text = (sources.folder / file).read_bytes()
    status, program = module.nvrtcCreateProgram(text, file.encode(), 0, [], [])
    _check(status, "nvrtcCreateProgram")
    try:
        arguments = [o.encode() for o in options(sources, arch, ptx, constants)]
        (status,) = module.nvrtcCompileProgram(program, len(arguments), arguments)
        log = _read(module, program, "nvrtcGetProgramLog", "nvrtcGetProgramLogSize").rstrip(b"\0").decode().strip()
        if int(status):
            what = " ".join(f"{n}={v}" for n, v in constants)
            raise FeaturesplatError(
                f"{file} ({what or 'no constants'}) does not compile for {'compute' if ptx else 'sm'}_{arch}:\n"
                f"{log[-4000:]}",
                "This is a fault of featuresplat or a mismatch with NVRTC "
                f"{'.'.join(map(str, version()))}: please report it; --device cpu works meanwhile.",
            )
        kind = "PTX" if ptx else "CUBIN"
        return Compiled(_read(module, program, f"nvrtcGet{kind}", f"nvrtcGet{kind}Size"), log, ptx)
    finally:
        module.nvrtcDestroyProgram(program)


def _read(module: Any, program: Any, get: str, size: str) -> bytes:
    status, count = getattr(module, size)(program)
    _check(status, size)
    # NVRTC writes into this object. Never a single byte: Python keeps one b" " for all, which would become b"\0".
    buffer = bytes(max(count, 2))
    (status,) = getattr(module, get)(program, buffer)
    _check(status, get)
    return buffer[:count]


def _check(status: Any, call: str) -> None:
    if int(status):
        raise FeaturesplatError(f"{call} failed: {status}", install_hint())


# ---- the cache on disk -------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """``$FEATURESPLAT_CACHE/kernels``, else ``$XDG_CACHE_HOME/featuresplat/kernels``, else under ``~/.cache``."""
    own, xdg = os.environ.get("FEATURESPLAT_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return (Path(own) if own else Path(xdg or Path.home() / ".cache") / "featuresplat") / "kernels"


_announced = False


def cached(sources: Sources, file: str, capability: tuple[int, int], constants: tuple = ()) -> Compiled:
    """Machine code for a device, from the cache or compiled now; the first compilation prints a line."""
    arch, ptx = target_for(capability)
    # Of the options only what changes the code: not the folders the sources happen to lie in.
    parts = [o for o in options(sources, arch, ptx, constants) if not o.startswith("-I")]
    name = hashlib.sha256("\0".join([sources.digest(file), str(version()), *parts]).encode()).hexdigest()[:24]
    path = cache_folder() / f"{Path(file).stem}-sm_{arch}-{name}.bin"
    code = read_entry(path)
    if code is not None:
        return Compiled(code, ptx=ptx)
    global _announced
    if not _announced:
        _announced = True
        print(
            f"featuresplat: compiling CUDA kernels for sm_{arch} (once; kept in {path.parent})",
            file=sys.stderr, flush=True,
        )  # fmt: skip
    done = compile_file(sources, file, arch, constants, ptx)
    write_entry(path, done.code)
    return done


def read_entry(path: Path) -> bytes | None:
    """The machine code of an entry; None when there is none or it is damaged (then it is removed)."""
    try:
        blob = path.read_bytes()
    except OSError:
        return None
    code = blob[len(MAGIC) + 32 :]
    if blob[: len(MAGIC)] == MAGIC and hashlib.sha256(code).digest() == blob[len(MAGIC) : len(MAGIC) + 32]:
        return code
    path.unlink(missing_ok=True)
    return None


def write_entry(path: Path, code: bytes) -> None:
    """Write an entry atomically; a folder that cannot be written only means compiling again next time."""
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            partial = Path(f.name)
            f.write(MAGIC + hashlib.sha256(code).digest() + code)
        os.replace(partial, path)
    except OSError:
        if partial is not None:
            partial.unlink(missing_ok=True)
