"""The CUDA kernels on the CPU: builds cuda/gpu with the host emulator and launches them by name.

`ShimLauncher` does what the launcher of `featuresplat.raster._nvrtc` does, on CPU tensors, with the same arguments.
`stand_in` puts it in the place of the GPU, so that the whole backend ``cuda`` runs on CPU tensors.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor

from featuresplat.raster._nvrtc_sources import Args, Constants, Packed, Packer, Sources, defines, engine_sources, key

ROOT = Path(__file__).resolve().parents[2]
EMULATOR = ROOT / "cuda/gpu/shim"
ORDERS = ("ascending", "descending", "shuffled")
"""In which order a block's threads (and descending: the blocks too) take their turns."""


class ShimError(RuntimeError):
    """What the emulator found: divergence, a bad launch, a misaligned address."""


@dataclass
class _Now:
    values: list

    def wait(self) -> list:
        return self.values


class ShimLauncher:
    """Launches kernels on the CPU.

    Args:
        sources: where the kernels are; default the engine's.
        order: one of `ORDERS`; results must not depend on it beyond rounding of atomics.
        seed: of the shuffled order.
        arch: the architecture to pretend; below 80 the backend takes its scalar kernels.
        sanitize: build with AddressSanitizer and UndefinedBehaviorSanitizer; then this process must run with libasan
            preloaded.
    """

    def __init__(
        self, sources: Sources | None = None, order: str = "ascending", seed: int = 0, sanitize: bool = False,
        arch: int = 90,
    ):  # fmt: skip
        self.sources = sources or engine_sources()
        self.order = ORDERS.index(order)
        self.seed = seed
        self.sanitize = sanitize
        self.launched: list[str] = []
        """Names of the kernels launched so far, for tests."""
        self.arch, self.multiprocessors, self.shared_limit = arch, 4, 227 * 1024
        self._kernels: dict[tuple, tuple] = {}
        self._lock = threading.Lock()

    def launch(
        self, kernel: str, grid: tuple | int, block: tuple | int, shared_bytes: int, args: Args,
        constants: Constants | None = None,
    ) -> None:  # fmt: skip
        """Run a kernel to its end.

        Raises:
            ShimError: what the emulator found.
        """
        grid, block = _three(grid), _three(block)
        if 0 in grid:
            return
        with self._lock:
            function, bound, packer = self._prepare(kernel, key(constants))
            packed = args if isinstance(args, Packed) else packer
            if not isinstance(args, Packed):
                packer.pack(args)
            launch = _runtime(self.sanitize)
            code = launch.fs_shim_launch(
                function, packed.address, (ctypes.c_int64 * 3)(*grid), (ctypes.c_int64 * 3)(*block), shared_bytes,
                bound, self.order, self.seed,
            )  # fmt: skip
            self.launched.append(kernel.rpartition(":")[2])
            if code:
                raise ShimError(f"{kernel}: {launch.fs_shim_error().decode()}")

    def fetch(self, tensor: Tensor) -> _Now:
        """The values are already there."""
        return _Now(tensor.tolist())

    def _prepare(self, name: str, constants: tuple) -> tuple:
        found = self._kernels.get((name, constants))
        if found is None:
            kernel = self.sources.find(name)
            library = _library(self.sources, kernel.file, constants, self.sanitize)
            bound = ctypes.c_int.in_dll(library, f"fs_threads_{kernel.name}").value
            function = ctypes.cast(getattr(library, f"fs_call_{kernel.name}"), ctypes.c_void_p)
            found = self._kernels[name, constants] = (function, bound, Packer(kernel))
        return found


def unavailable() -> str | None:
    """None when the emulator can be built here, else why not."""
    if platform.system() != "Linux":
        return "the host shim is built with GCC on Linux"
    return None if shutil.which("g++") else "the host shim needs g++"


@contextlib.contextmanager
def stand_in(launcher: ShimLauncher) -> Iterator[ShimLauncher]:
    """Within it, backend ``cuda`` takes CPU tensors and launches through the emulator."""
    from featuresplat.raster import _nvrtc

    before = _nvrtc.stand_ins.get("cpu")
    _nvrtc.stand_ins["cpu"] = launcher
    try:
        yield launcher
    finally:
        _nvrtc.stand_ins.pop("cpu")
        if before is not None:
            _nvrtc.stand_ins["cpu"] = before


def _three(size: tuple | int) -> tuple[int, int, int]:
    size = (size,) if isinstance(size, int) else tuple(size)
    return (*size, *(1,) * (3 - len(size)))  # pyright: ignore[reportReturnType]


# ---- building ---------------------------------------------------------------------------------------------------


@cache
def _flags(sanitize: bool) -> list[str]:
    flags = ["-std=c++17", "-fPIC", "-shared", "-DFS_HOST_SHIM", "-fvisibility=hidden", "-fno-gnu-unique"]
    flags += ["-Wall", "-Wno-unknown-pragmas", "-ffp-contract=fast"]
    cpu = Path("/proc/cpuinfo")
    if platform.machine() == "x86_64" and cpu.exists() and {"avx2", "fma"} <= set(cpu.read_text().split()):
        flags += ["-mavx2", "-mfma"]  # so that fmaf is an instruction, as on the device
    if sanitize:
        # Without the optimiser's inlining the kernels would need far larger stacks.
        flags += ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        return [*flags, "-fno-sanitize=vptr", "-fno-omit-frame-pointer"]
    return [*flags, "-O1"]


@cache
def _compiler() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


def _build(source: Path, digest: str, options: list[str], sanitize: bool) -> Path:
    """Compile one shared library, or find it in the cache: build/shim, or $FEATURESPLAT_SHIM_CACHE."""
    folder = Path(os.environ.get("FEATURESPLAT_SHIM_CACHE") or ROOT / "build/shim")
    folder.mkdir(parents=True, exist_ok=True)
    command = ["g++", *_flags(sanitize), *options, "-x", "c++", str(source)]
    name = hashlib.sha256("\0".join([digest, _compiler(), *_flags(sanitize), *options]).encode()).hexdigest()[:20]
    out = folder / f"{source.stem}-{name}.so"
    if out.exists():
        return out
    with open(folder / f"{out.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            partial = folder / f"{out.name}.{os.getpid()}"
            done = subprocess.run([*command, "-o", str(partial)], capture_output=True, text=True)
            if done.returncode:
                raise ShimError(f"g++ does not compile {source.name} {' '.join(options)}:\n{done.stderr[-6000:]}")
            os.replace(partial, out)
    return out


@cache
def _runtime(sanitize: bool) -> ctypes.CDLL:
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(EMULATOR.iterdir()))).hexdigest()
    options = [*([] if sanitize else ["-O2"]), str(EMULATOR / "fragments.cpp")]
    path = _build(EMULATOR / "shim.cpp", digest, options, sanitize)
    lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    lib.fs_shim_error.restype = ctypes.c_char_p
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    lib.fs_shim_launch.argtypes = [
        pointer, pointer, ctypes.POINTER(i64), ctypes.POINTER(i64), i64, ctypes.c_int, ctypes.c_int, ctypes.c_uint64
    ]  # fmt: skip
    return lib


@cache
def _library(sources: Sources, file: str, constants: tuple, sanitize: bool) -> ctypes.CDLL:
    _runtime(sanitize)
    options = [*defines(constants), *(f"-I{folder}" for folder in (*sources.include, ROOT / "cuda/gpu"))]
    digest = sources.digest(file) + hashlib.sha256((EMULATOR / "shim.h").read_bytes()).hexdigest()
    return ctypes.CDLL(str(_build(sources.folder / file, digest, options, sanitize)))
