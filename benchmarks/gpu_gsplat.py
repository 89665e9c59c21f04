"""Build gsplat from its source distribution, for the comparison of gpu_speed.py.

    python benchmarks/gpu_gsplat.py gsplat-1.5.3.tar.gz FOLDER      builds FOLDER/gsplat/csrc.so; then PYTHONPATH=FOLDER

The sources are compiled with gsplat's own flags, unchanged but for one thing: channel counts that the comparison never
asks for are not instantiated, and each of the others is a translation unit of its own, so that 16 cores build it in
about a minute rather than several. A finished csrc.so found beside the distribution is taken instead of a build.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path

CHANNELS = (3, 4, 16, 17, 32, 64, 128, 256, 512)
"""Instantiated for the kernels that are measured; gsplat pads every other count to one of these."""
_INSTANCE = re.compile(r"^\s*__(?:INS|LAUNCH_KERNEL)__\((\d+)\)\s*$", re.MULTILINE)
_BLOCK = re.compile(r"#define __LAUNCH_KERNEL__\(N\).*?#undef __LAUNCH_KERNEL__", re.DOTALL)
_MEASURED = re.compile(r"launch_rasterize_to_pixels_3dgs_(fwd|bwd)_kernel")


def keep(text: str, channels: tuple[int, ...]) -> str:
    """The text without the instantiations of other channel counts."""
    return _INSTANCE.sub(lambda m: m[0] if int(m[1]) in channels else "", text)


def trim(csrc: Path) -> None:
    """Leave out what is not measured, and split what is slow to compile."""
    for path in sorted(csrc.glob("*.cpp")):
        text = path.read_text()
        blocks = _BLOCK.sub(lambda m: keep(m[0], CHANNELS if _MEASURED.search(m[0]) else (3,)), text)
        path.write_text(blocks)
    for path in sorted(csrc.glob("*.cu")):
        text = path.read_text()
        found = {int(n) for n in _INSTANCE.findall(text)}
        if not found:
            continue
        if not _MEASURED.search(text):
            path.write_text(keep(text, (3,)))
            continue
        missing = set(CHANNELS) - found
        if missing:
            raise SystemExit(f"{path.name} does not instantiate {sorted(missing)}: is this gsplat 1.5.3?")
        for n in CHANNELS:
            (csrc / f"{path.stem}_{n}.cu").write_text(keep(text, (n,)))
        path.unlink()


def unpack(sdist: Path, folder: Path) -> Path:
    """The package folder FOLDER/gsplat."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(sdist) as archive:
        top = archive.getnames()[0].split("/")[0]
        archive.extractall(folder, filter="data")
    if (folder / "gsplat").exists():
        shutil.rmtree(folder / "gsplat")
    shutil.move(folder / top / "gsplat", folder / "gsplat")
    shutil.rmtree(folder / top)
    return folder / "gsplat"


def build(sdist: Path, folder: Path) -> Path:
    """FOLDER/gsplat/csrc.so, built or taken from beside ``sdist``."""
    package = unpack(sdist, folder)
    done = sdist.parent / "csrc.so"
    if done.is_file():
        return Path(shutil.copy(done, package / "csrc.so"))
    from torch.utils.cpp_extension import load

    csrc = package / "cuda" / "csrc"
    trim(csrc)
    sources = [str(p) for p in sorted([*csrc.glob("*.cu"), *csrc.glob("*.cpp")])] + [str(package / "cuda" / "ext.cpp")]
    (folder / "build").mkdir(exist_ok=True)
    load(
        "csrc",
        sources,
        extra_cflags=["-O3", "-Wno-sign-compare", "-Wno-attributes"],
        extra_cuda_cflags=["-O3", "--use_fast_math", "--expt-relaxed-constexpr", "-diag-suppress", "20012,186"],
        extra_include_paths=[str(csrc / "third_party" / "glm"), str(package / "cuda" / "include")],
        extra_ldflags=["-s"],
        build_directory=str(folder / "build"),
        is_python_module=False,
        verbose=True,
    )
    return Path(shutil.copy(folder / "build" / "csrc.so", package / "csrc.so"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path)
    parser.add_argument("folder", type=Path)
    a = parser.parse_args(argv)
    start = time.perf_counter()
    library = build(a.sdist, a.folder)
    print(f"{library} after {time.perf_counter() - start:.0f} s, {library.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
