"""Launching the kernels of cuda/gpu on torch's current stream, with machine code made by NVRTC for the device at hand.

    gpu = launcher(tensor.device)
    gpu.launch("project", grid, block, shared_bytes, (means, quats, len(means), 0.3), {"SH_DEGREE": 3})

No nvcc, no torch headers: torch gives raw pointers and a raw stream, CUDA's driver does the rest. Whoever wants the
same kernels elsewhere (the tests run them on the CPU) registers a launcher in `stand_ins`.
"""

from __future__ import annotations

import importlib
import os
import threading
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.raster import _nvrtc_compile as compiler
from featuresplat.raster._nvrtc_sources import Args, Constants, Packed, Packer, Sources, engine_sources, key

Size = int | tuple[int, ...]


_FOREIGN_CODE = (
    "CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
)  # fmt: skip
"""What a driver says to machine code of an NVRTC newer than itself."""


class Pending(Protocol):
    """A copy to the host that may be under way."""

    def wait(self) -> list:
        """The values, once they are there."""
        ...


class Launcher(Protocol):
    """What the backend ``cuda`` needs of a device."""

    arch: int
    """90 for compute capability 9.0; below 80 only the scalar kernels run."""
    multiprocessors: int
    shared_limit: int
    """Bytes of dynamic shared memory that a block may ask for."""

    def launch(
        self, kernel: str, grid: Size, block: Size, shared_bytes: int, args: Args, constants: Constants | None = None
    ) -> None:
        """Queue a kernel. Arguments in the kernel's order: tensors, addresses, None for a null pointer, numbers,
        ctypes structures; or what is `Packed` already. A grid without blocks is nothing to do.
        """
        ...

    def fetch(self, tensor: Tensor) -> Pending:
        """Start copying at most 256 bytes to the host; waiting for them (once) waits for nothing queued later."""
        ...


stand_ins: dict[str, Launcher] = {}
"""Launchers by device type that take the place of the GPU: tests put the host emulator here as ``"cpu"``."""


def unavailable() -> str | None:
    """None when the kernels can run here, else one sentence on why not."""
    problem = diagnose()
    return problem.message if problem else None


def diagnose() -> FeaturesplatError | None:
    """None when the kernels can run here, else the reason and its remedy."""
    if stand_ins:
        return None
    return _diagnose()


@cache
def _diagnose() -> FeaturesplatError | None:
    try:
        if not torch.cuda.is_available():
            raise FeaturesplatError(
                "torch sees no NVIDIA GPU", "Install a CUDA build of torch and the driver, or use --device cpu."
            )
        if torch.version.cuda is None:
            raise FeaturesplatError("torch is a build for another maker's GPUs than NVIDIA's", "Use --device cpu.")
        engine_sources()
        driver()
        compiler.nvrtc()
        compiler.target_for(torch.cuda.get_device_capability())
    except FeaturesplatError as error:
        return error
    return None


def launcher(device: torch.device) -> Launcher:
    """The launcher of a device.

    Raises:
        FeaturesplatError: something the kernels need is missing there.
    """
    if device.type in stand_ins:
        return stand_ins[device.type]
    if device.type != "cuda":
        raise FeaturesplatError(f"backend 'cuda' got tensors on {device}", "Move them with .cuda().")
    index = device.index
    return _device_launcher(torch.cuda.current_device() if index is None else index)


@cache
def _device_launcher(index: int) -> DeviceLauncher:
    return DeviceLauncher(index)


@cache
def driver() -> Any:
    """The bindings of CUDA's driver.

    Raises:
        FeaturesplatError: the bindings or the driver are missing.
    """
    try:
        module = importlib.import_module("cuda.bindings.driver")
        (status,) = module.cuInit(0)
    except ImportError as error:
        hint = compiler.install_hint()
        raise FeaturesplatError(f"the package cuda-bindings cannot be imported ({error})", hint) from error
    except Exception as error:  # the bindings raise several kinds when libcuda is not found
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise FeaturesplatError(f"the NVIDIA driver does not open ({said[0]})", "Install the NVIDIA driver.") from error
    if int(status):
        raise FeaturesplatError(f"the NVIDIA driver does not start ({status.name})", "nvidia-smi says what is wrong.")
    return module


_FETCH_BYTES = 256


class _Mailbox:
    """A little pinned memory and the event that follows a copy into it; used again once it has been read."""

    def __init__(self, pool: list[_Mailbox]):
        self._pool = pool
        self._pinned = torch.empty(_FETCH_BYTES, dtype=torch.uint8, pin_memory=True)
        self._event = torch.cuda.Event()
        self._looks: dict[tuple, Tensor] = {}  # at the memory, by type and shape

    def send(self, tensor: Tensor) -> _Mailbox:
        kind = tensor.dtype, tensor.shape
        host = self._looks.get(kind)
        if host is None:
            size = tensor.numel() * tensor.element_size()
            host = self._looks[kind] = self._pinned[:size].view(tensor.dtype).view(tensor.shape)
        self._host = host
        host.copy_(tensor, non_blocking=True)
        self._event.record(torch.cuda.current_stream(tensor.device))
        return self

    def wait(self) -> list:
        self._event.synchronize()
        values = self._host.tolist()
        self._pool.append(self)
        return values


class _Loaded:
    """A kernel ready to launch."""

    def __init__(self, function: Any, packer: Packer):
        self.function = function
        self.packer = packer
        self.lock = threading.Lock()
        self.shared_bytes = 0  # what it has been allowed beyond the 48 KiB that every kernel may have


class DeviceLauncher:
    """Launches on one GPU. See `Launcher`."""

    def __init__(self, index: int, sources: Sources | None = None):
        problem = _diagnose()
        if problem is not None:
            raise problem
        self.index = index
        self.sources = sources or engine_sources()
        self.capability = torch.cuda.get_device_capability(index)
        self.arch = 10 * self.capability[0] + self.capability[1]
        compiler.target_for(self.capability)
        properties = torch.cuda.get_device_properties(index)
        self.multiprocessors = properties.multi_processor_count
        self.name = properties.name
        self._driver = driver()
        _make_context(index)
        self._context = self._ask(self._driver.cuDevicePrimaryCtxRetain(self._ask(self._driver.cuDeviceGet(index))))
        wanted = self._driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        self.shared_limit = int(self._ask(self._driver.cuDeviceGetAttribute(wanted, index)))
        self._modules: dict[tuple, Any] = {}
        self._kernels: dict[tuple, _Loaded] = {}
        self._mailboxes: list[_Mailbox] = []
        self._lock = threading.Lock()
        self._synchronous = bool(os.environ.get("FEATURESPLAT_CUDA_SYNC"))  # name the kernel that fails

    def launch(
        self, kernel: str, grid: Size, block: Size, shared_bytes: int, args: Args, constants: Constants | None = None
    ) -> None:
        as_given = (kernel, tuple(constants.items()) if constants else ())
        loaded = self._kernels.get(as_given)
        if loaded is None:
            loaded = self._kernels[as_given] = self._kernel(kernel, key(constants))
        gx, gy, gz = (grid, 1, 1) if isinstance(grid, int) else (*grid, 1, 1)[:3]
        bx, by, bz = (block, 1, 1) if isinstance(block, int) else (*block, 1, 1)[:3]
        if gx * gy * gz == 0:
            return
        if shared_bytes > 48 * 1024 and shared_bytes > loaded.shared_bytes:
            self._allow(loaded, kernel, shared_bytes)
        stream = _stream(self.index)
        if isinstance(args, Packed):
            call = (loaded.function, gx, gy, gz, bx, by, bz, shared_bytes, stream, args.address, 0)
            status = self._driver.cuLaunchKernel(*call)[0]
            if status != 0:
                status = self._again(call)
        else:
            with loaded.lock:
                loaded.packer.pack(args)
                call = (loaded.function, gx, gy, gz, bx, by, bz, shared_bytes, stream, loaded.packer.address, 0)
                status = self._driver.cuLaunchKernel(*call)[0]
                if status != 0:
                    status = self._again(call)
        if status == 0 and self._synchronous:
            (status,) = self._driver.cuStreamSynchronize(stream)
        if status != 0:
            raise FeaturesplatError(
                f"kernel {kernel} failed on {self.name} ({status.name}; grid {gx} x {gy} x {gz}, "
                f"block {bx} x {by} x {bz}, {shared_bytes} bytes shared)",
                "An earlier kernel may be the cause: FEATURESPLAT_CUDA_SYNC=1 names it. Please report it.",
            )

    def fetch(self, tensor: Tensor) -> Pending:
        if tensor.numel() * tensor.element_size() > _FETCH_BYTES:
            raise ValueError(f"fetch: at most {_FETCH_BYTES} bytes, got {tensor.numel()} of {tensor.dtype}")
        try:
            mailbox = self._mailboxes.pop()
        except IndexError:
            mailbox = _Mailbox(self._mailboxes)
        return mailbox.send(tensor)

    def resources(self, kernel: str, constants: Constants | None = None) -> dict[str, int]:
        """Registers a thread, bytes of local memory a thread and of static shared memory a block."""
        function = self._kernel(kernel, key(constants)).function
        attributes = self._driver.CUfunction_attribute
        names = {
            "registers": attributes.CU_FUNC_ATTRIBUTE_NUM_REGS,
            "local": attributes.CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES,
            "shared": attributes.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES,
        }
        return {n: int(self._ask(self._driver.cuFuncGetAttribute(a, function))) for n, a in names.items()}

    def _kernel(self, name: str, constants: tuple) -> _Loaded:
        return self._kernels.get((name, constants)) or self._load(name, constants)

    def _load(self, name: str, constants: tuple) -> _Loaded:
        with self._lock:
            found = self._kernels.get((name, constants))
            if found is not None:
                return found
            kernel = self.sources.find(name)
            module = self._modules.get((kernel.file, constants))
            if module is None:
                code = compiler.cached(self.sources, kernel.file, self.capability, constants).code
                module = self._in_context(lambda: self._driver.cuModuleLoadData(code))
                self._modules[kernel.file, constants] = module
            function = self._in_context(lambda: self._driver.cuModuleGetFunction(module, kernel.name.encode()))
            loaded = self._kernels[name, constants] = _Loaded(function, Packer(kernel))
            return loaded

    def _allow(self, loaded: _Loaded, kernel: str, shared_bytes: int) -> None:
        """Raise a kernel's limit of dynamic shared memory."""
        if shared_bytes > self.shared_limit:
            raise FeaturesplatError(
                f"kernel {kernel} needs {shared_bytes} bytes of shared memory a block; {self.name} has "
                f"{self.shared_limit}",
                "Please report it; --device cpu works meanwhile.",
            )
        wanted = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._in_context(lambda: self._driver.cuFuncSetAttribute(loaded.function, wanted, shared_bytes))
        loaded.shared_bytes = shared_bytes

    def _again(self, call: tuple) -> Any:
        """Launch once more with this device's context current: another thread or device may have left it otherwise."""
        self._ask(self._driver.cuCtxPushCurrent(self._context))
        try:
            return self._driver.cuLaunchKernel(*call)[0]
        finally:
            self._ask(self._driver.cuCtxPopCurrent())

    def _in_context(self, call: Any) -> Any:
        self._ask(self._driver.cuCtxPushCurrent(self._context))
        try:
            return self._ask(call())
        finally:
            self._driver.cuCtxPopCurrent()

    def _ask(self, answer: tuple) -> Any:
        """The value of a driver call that returned (status, value...).

        Raises:
            FeaturesplatError: the status is an error.
        """
        if answer[0] != 0:
            hint = "nvidia-smi shows the state of the GPU; --device cpu works meanwhile."
            if answer[0].name in _FOREIGN_CODE:
                hint = "The driver is older than NVRTC: update the driver, or install an older nvidia-cuda-nvrtc."
            raise FeaturesplatError(f"CUDA's driver says {answer[0].name} on GPU {self.index}", hint)
        return answer[1] if len(answer) > 1 else None


def _make_context(index: int) -> None:
    """Let torch make its primary context, if it has not yet."""
    torch.zeros(1, device=torch.device("cuda", index))


def _stream(index: int) -> int:
    """torch's current stream of a device, as CUDA's handle."""
    return torch._C._cuda_getCurrentRawStream(index)  # pyright: ignore[reportAttributeAccessIssue]
