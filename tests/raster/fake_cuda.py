"""A process that believes in a GPU: torch says there is one, and libcuda.so.1 is `kernels/fake_driver.cpp`.

Run by test_nvrtc.py as ``python fake_cuda.py LIBRARY``; prints what it saw as JSON. ``--time`` prints microseconds in
Python instead: of a launch, and of whole calls on CPU tensors whose kernels do nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _nvrtc
from featuresplat.raster._nvrtc_sources import Packed, Sources

HERE = Path(__file__).parent


class FakeDriver(ctypes.Structure):
    """``FakeDriver`` of the library."""

    _fields_ = [
        *[(n, ctypes.c_int64) for n in ("launches", "modules", "functions", "pushes", "pops", "synchronised")],
        ("shared_allowed", ctypes.c_int64),
        *[(n, ctypes.c_uint64) for n in ("function", "stream", "params", "module_bytes")],
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared", ctypes.c_uint32),
        ("name", ctypes.c_char * 64),
        ("launch_codes", ctypes.c_int32 * 8),
        *[(n, ctypes.c_int32) for n in ("next_code", "load_code", "init_code", "synchronise_code")],
    ]


def believe(library: str) -> FakeDriver:
    """Load the fake driver and make torch agree with it."""
    fake = FakeDriver.in_dll(ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL), "fake_driver")
    cuda: Any = torch.cuda
    cuda.is_available = lambda: True
    cuda.current_device = lambda: 0
    cuda.get_device_capability = lambda index=None: (9, 0)
    cuda.get_device_properties = lambda index: SimpleNamespace(multi_processor_count=132, name="Fake GPU")
    version: Any = torch.version
    version.cuda = "13.0"
    _nvrtc._make_context = lambda index: None
    _nvrtc._stream = lambda index: 77
    return fake


def error_of(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except FeaturesplatError as error:
        return [error.message, error.hint]
    return []


def answer_with(fake: FakeDriver, *codes: int) -> None:
    fake.next_code = 0
    for i in range(8):
        fake.launch_codes[i] = codes[i] if i < len(codes) else 0


def observe(fake: FakeDriver) -> dict[str, Any]:
    """Everything that test_nvrtc.py asks about."""
    seen: dict[str, Any] = {"unavailable": _nvrtc.unavailable()}
    gpu = _nvrtc.DeviceLauncher(0, Sources(HERE / "kernels", (HERE.parents[1] / "cuda/gpu",)))
    seen["device"] = [gpu.arch, gpu.multiprocessors, gpu.shared_limit, gpu.name]
    out = torch.zeros(8, dtype=torch.float64)
    gpu.launch("mixed_arguments", (3, 2), 32, 100, (out, True, -7, 5, -(2**40), 2**53, 0.5, 0.25, None))
    params = (ctypes.c_void_p * 9).from_address(fake.params)
    types: list[Any] = [ctypes.c_uint64, ctypes.c_bool, ctypes.c_int32, ctypes.c_uint32, ctypes.c_int64]
    types += [ctypes.c_uint64, ctypes.c_float, ctypes.c_double, ctypes.c_uint64]
    values = [t.from_address(p).value for t, p in zip(types, params, strict=True)]
    seen["arguments"] = [values[0] == out.data_ptr(), *values[1:]]
    seen["first"] = [fake.name.decode(), list(fake.grid), list(fake.block), fake.shared, fake.stream, fake.launches]
    seen["elf"] = fake.module_bytes & 0xFFFFFFFF
    gpu.launch("early_return", 1, 64, 0, (None,))
    seen["same file is one module"] = [fake.modules, fake.functions]
    gpu.launch("early_return", 1, 64, 0, (None,), {"SCALE": 2})
    seen["other constants are another module"] = [fake.modules, fake.functions]
    packed = Packed()
    packed.address = ctypes.addressof(ctypes.c_void_p())
    gpu.launch("early_return", 1, 64, 0, packed)
    seen["packed"] = fake.params == packed.address
    launches = fake.launches
    gpu.launch("early_return", (4, 0), 64, 0, (None,))
    seen["empty grid"] = fake.launches - launches
    gpu.launch("early_return", 1, 64, 60000, (None,))
    seen["shared allowed"] = fake.shared_allowed
    seen["too much shared"] = error_of(lambda: gpu.launch("early_return", 1, 64, 300000, (None,)))
    pushes, launches = fake.pushes, fake.launches
    answer_with(fake, 201)  # CUDA_ERROR_INVALID_CONTEXT, then success
    gpu.launch("early_return", 1, 64, 0, packed)
    seen["context"] = [fake.launches - launches, fake.pushes - pushes, fake.pushes - fake.pops]
    answer_with(fake, 700, 700)  # CUDA_ERROR_ILLEGAL_ADDRESS
    seen["failing launch"] = error_of(lambda: gpu.launch("early_return", 1, 64, 0, (None,)))
    answer_with(fake)
    fake.load_code = 209  # CUDA_ERROR_NO_BINARY_FOR_GPU
    seen["failing load"] = error_of(lambda: gpu.launch("early_return", 1, 64, 0, (None,), {"SCALE": 3}))
    fake.load_code = 0
    seen["resources"] = gpu.resources("early_return")
    os.environ["FEATURESPLAT_CUDA_SYNC"] = "1"
    synchronous = _nvrtc.DeviceLauncher(0, gpu.sources)
    fake.synchronise_code = 719  # CUDA_ERROR_LAUNCH_FAILED
    seen["synchronous"] = error_of(lambda: synchronous.launch("early_return", 1, 64, 0, (None,)))
    fake.synchronise_code = 0
    seen["threads"] = from_threads(gpu, fake)
    return seen


def from_threads(gpu: _nvrtc.DeviceLauncher, fake: FakeDriver) -> int:
    """Launches of four threads that also race for loading the kernel."""
    before = fake.launches
    threads = [
        threading.Thread(target=lambda: [gpu.launch("votes", 1, 64, 0, (None, None)) for _ in range(50)])
        for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return fake.launches - before


def main() -> None:
    fake = believe(sys.argv[1])
    if "--time" not in sys.argv:
        print(json.dumps(observe(fake)))
        return
    gpu = _nvrtc.DeviceLauncher(0, Sources(HERE / "kernels", (HERE.parents[1] / "cuda/gpu",)))
    v = torch.zeros(64)
    for name, args, constants in (("shuffles", (v, v), None), ("atomics", (v,) * 6, {"SCALE": 1})):
        gpu.launch(name, 1, 64, 0, args, constants)
        start = time.perf_counter()
        for _ in range(100_000):
            gpu.launch(name, 1, 64, 0, args, constants)
        print(f"{name}, {len(args)} arguments: {10 * (time.perf_counter() - start):.2f} us a launch")
    time_calls()


def time_calls() -> None:
    """Print the medians of calls on few Gaussians and pixels: the host's part, without torch's work for a GPU."""
    import featuresplat as fs
    from featuresplat.raster import _cuda_frame

    torch.set_num_threads(1)
    gpu: Any = _nvrtc.DeviceLauncher(0)
    # As if 900 pairs, 290 splats and good cameras had been found, and 3000 rows of weights.
    gpu.fetch = lambda t: SimpleNamespace(wait=lambda: [3000] if t.numel() == 1 else [900, 290, 0])
    _nvrtc.stand_ins["cpu"] = gpu
    _cuda_frame._STEP = 64
    g = torch.Generator().manual_seed(0)
    splats = [torch.rand(300, *shape, generator=g) for shape in ((3,), (4,), (3,), ())]
    camera = (torch.eye(4)[None], torch.eye(3)[None], 16, 16)
    for dim in (3, 128):
        leaves = [t.clone().requires_grad_() for t in (*splats, torch.rand(300, dim, generator=g))]
        seed = torch.zeros(1, 16, 16, dim)

        def draw(leaves=leaves, dim=dim) -> Any:
            colors, features = (leaves[4], None) if dim == 3 else (None, leaves[4])
            out = fs.rasterize(*leaves[:4], colors, *camera, features=features, backend="cuda")
            return out.rgb if dim == 3 else out.features

        calls: dict[str, Callable[[Any], Any]] = {
            "forward": lambda _, draw=draw: draw(),
            "backward": lambda image, leaves=leaves, seed=seed: torch.autograd.grad(image, leaves, seed),
            "lift": lambda _, seed=seed: fs.lift(*splats, *camera, seed, backend="cuda"),
        }
        for name, call in calls.items():
            times = []
            for _ in range(500):
                given = draw() if name == "backward" else None
                start = time.perf_counter()
                call(given)
                times.append(time.perf_counter() - start)
            print(f"{name} of {dim} channels: {1e6 * sorted(times)[250]:.0f} us")


if __name__ == "__main__":
    main()
