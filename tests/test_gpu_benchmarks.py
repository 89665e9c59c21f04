"""What of benchmarks/gpu_* can be tried without a GPU: reading, merging, printing, and trimming gsplat's sources."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from benchmark_scripts import FOLDER, load


def row(contender: str, name: str, dim: int, ms: float, **more) -> dict:
    return {
        "contender": contender, "pass": name, "D": dim, "ms_median": ms, "ms_min": ms, "host_ms": ms / 2, "peak_MiB": 7,
    } | more  # fmt: skip


def test_reports_of_two_processes_make_one_table(tmp_path, capsys):
    gpu_speed = load("gpu_speed")
    first = {"commit": "abc", "rows": [row("ours", "forward", 32, 2.0), row("theirs", "forward", 32, 5.0)]}
    second = {"commit": "xyz", "latency_us": {"ours": {"forward": 250.0}}}
    second["rows"] = [row("ours", "forward", 3, 1.0), {"contender": "theirs", "pass": "forward", "D": 3, "failed": "x"}]
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, report in zip(files, (first, second), strict=True):
        path.write_text(json.dumps(report))
    assert gpu_speed.main(["--table", *map(str, files), "--json", str(tmp_path / "both.json")]) == 0
    both = json.loads((tmp_path / "both.json").read_text())
    assert (both["commit"], len(both["rows"])) == ("abc", 4)
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.startswith("forward")]
    assert table == [
        ["forward", "3", "1.000", "7M", "failed"],
        ["forward", "32", "2.000", "7M", "5.000", "2.50x", "7M"],
    ]
    assert "latency ours: forward 250 us" in lines


def test_needs_a_gpu(monkeypatch, capsys):
    gpu_speed = load("gpu_speed")
    monkeypatch.setattr(gpu_speed.torch.cuda, "is_available", lambda: False)
    assert gpu_speed.main([]) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err


NCU = """==PROF== Connected to process 1
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","blend(BlendArgs)","Speed","Duration","ns","286,816"
"0","blend(BlendArgs)","Launch","Registers Per Thread","register/thread","48"
"1","blend(BlendArgs)","Speed","Duration","ns","300,000"
"1","blend(BlendArgs)","Launch","Registers Per Thread","register/thread","48"
"2","lift(LiftArgs)","Speed","DRAM Throughput","%","11.93"
"""


def test_ncu_is_read(tmp_path):
    gpu_ncu = load("gpu_ncu")
    (tmp_path / "ncu.csv").write_text(NCU)
    rows = gpu_ncu.read(str(tmp_path / "ncu.csv"))
    assert len(rows) == 3
    assert gpu_ncu.distinct(rows) == [
        {"kernel": "blend", "time": "286.8us", "regs": "48"},
        {"kernel": "lift", "DRAM": "11.93%"},
    ]


def test_gsplat_keeps_the_channels_that_are_measured(tmp_path):
    gpu_gsplat = load("gpu_gsplat")
    instances = "\n".join(f"__INS__({n})" for n in (1, 3, 4, 16, 17, 32, 64, 128, 256, 512, 513))
    launches = instances.replace("__INS__", "    __LAUNCH_KERNEL__")
    measured, other = "launch_rasterize_to_pixels_3dgs_fwd_kernel<N>", "launch_rasterize_to_pixels_2dgs_fwd_kernel<N>"
    block = "#define __LAUNCH_KERNEL__(N) case N: {}();\nswitch (n) {{\n{}\n}}\n#undef __LAUNCH_KERNEL__\n"
    (tmp_path / "Rasterization.cpp").write_text(block.format(measured, launches) + block.format(other, launches))
    (tmp_path / "Fwd.cu").write_text(f"{measured}\n#define __INS__(N) x\n{instances}\n#undef __INS__\n")
    (tmp_path / "Other.cu").write_text(f"{other}\n{instances}\n")
    (tmp_path / "Sort.cu").write_text("nothing to see\n")
    gpu_gsplat.trim(tmp_path)
    count = (tmp_path / "Rasterization.cpp").read_text().count("    __LAUNCH_KERNEL__(")
    assert count == len(gpu_gsplat.CHANNELS) + 1
    assert {p.name for p in tmp_path.glob("Fwd*")} == {f"Fwd_{n}.cu" for n in gpu_gsplat.CHANNELS}
    assert "\n__INS__(64)\n" in (tmp_path / "Fwd_64.cu").read_text()
    assert "\n__INS__(32)\n" not in (tmp_path / "Fwd_64.cu").read_text()
    assert "__INS__(3)" in (tmp_path / "Other.cu").read_text()
    assert "__INS__(16)" not in (tmp_path / "Other.cu").read_text()
    (tmp_path / "Fwd.cu").write_text(f"{measured}\n__INS__(3)\n")
    with pytest.raises(SystemExit, match="does not instantiate"):
        gpu_gsplat.trim(tmp_path)


@pytest.mark.skipif(sys.platform == "win32" or shutil.which("bash") is None, reason="needs bash")
def test_gpu_check_is_a_script_and_knows_its_parts(tmp_path):
    script = FOLDER / "gpu_check.sh"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    env = {
        "PATH": "/usr/bin:/bin",
        "PYTHON": "true",
        "FEATURESPLAT_WORK": str(tmp_path / "w"),
        "OUT": str(tmp_path / "o"),
    }
    done = subprocess.run(["bash", str(script), "corectness"], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "no part called corectness" in done.stderr
