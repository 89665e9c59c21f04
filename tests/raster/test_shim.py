"""The host emulator by itself: every name of cuda/gpu/device.cuh against NumPy, and every mistake it must catch.

Nothing of the engine is used here; a kernel of the engine is only as well proved as this emulator is right.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shim
import torch
from shim import ORDERS, ShimError, ShimLauncher

from featuresplat.raster._nvrtc_sources import Sources

HERE = Path(__file__).parent
reason = shim.unavailable()
pytestmark = pytest.mark.skipif(reason is not None, reason=reason or "")

SOURCES = Sources(HERE / "kernels", (HERE.parents[1] / "cuda/gpu",))
WITH_BARRIER = {"WITH_BARRIER": 1}


@pytest.fixture(params=ORDERS)
def gpu(request) -> ShimLauncher:
    return ShimLauncher(SOURCES, order=request.param, seed=3)


def ints(*shape: int) -> torch.Tensor:
    return torch.full(shape, -1, dtype=torch.int32)


def test_places(gpu):
    thread, block, lane, warp = (ints(2 * 3 * 5 * 96) for _ in range(4))
    gpu.launch("places", (2, 3, 5), 96, 0, (thread, block, lane, warp))
    expected = torch.arange(96, dtype=torch.int32).repeat(30)
    assert thread.equal(expected)
    assert block.equal(torch.arange(30, dtype=torch.int32).repeat_interleave(96))
    assert lane.equal(expected % 32)
    assert warp.equal(expected // 32)


def test_two_dimensional_block_and_constant(gpu):
    thread, block = ints(2 * 64), ints(2 * 64)
    gpu.launch("emulator:places", 2, (16, 4), 0, (thread, block, None, None), {"SCALE": 3})
    assert thread.equal(3 * torch.arange(64, dtype=torch.int32).repeat(2))


def test_empty_grid_does_nothing(gpu):
    gpu.launch("places", 0, 32, 0, (None, None, None, None))


def test_shuffles(gpu):
    v = torch.randn(128)
    out = torch.zeros(6, 128)
    gpu.launch("shuffles", 2, 64, 0, (v, out))
    lane, base = np.arange(128) % 32, np.arange(128) // 32 * 32
    x = v.numpy()
    np.testing.assert_array_equal(out[0], x[base + 5])
    np.testing.assert_array_equal(out[1], x[base + np.where(lane < 3, lane, lane - 3)])
    np.testing.assert_array_equal(out[2], x[base + np.where(lane > 27, lane, lane + 4)])
    np.testing.assert_array_equal(out[3], x[base + (lane ^ 9)])
    at = base + lane * 7 % 32
    np.testing.assert_array_equal(out[4], (x[at].astype(np.float64) + at).astype(np.float32))
    np.testing.assert_array_equal(out[5], base + 31 - lane)


def test_votes(gpu):
    values = torch.randint(0, 6, (64,), dtype=torch.int32)
    values[40] = 9
    out = torch.zeros(4, 64, dtype=torch.int32)
    gpu.launch("votes", 1, 64, 0, (values, out))
    got = out.numpy().view(np.uint32)
    for start in (0, 32):
        v = values[start : start + 32].numpy()
        here = got[:, start : start + 32]

        def mask(bits) -> int:
            return sum(int(b) << i for i, b in enumerate(bits))

        assert (here[0] == mask(v > 3)).all()
        assert (here[1] == (v > 8).any()).all()
        assert (here[2] == 1).all()
        assert [int(m) for m in here[3]] == [mask(v == x) for x in v]


def test_barriers_and_their_answers(gpu):
    v = torch.randn(3 * 256)
    sums, answers = torch.zeros(3), ints(3, 3)
    gpu.launch("block_sums", 3, 256, 0, (v, sums, answers))
    torch.testing.assert_close(sums, v.view(3, 256).sum(1), rtol=1e-5, atol=1e-4)
    assert answers.tolist() == [[1, 0, 86]] * 3


def test_returned_threads_do_not_hold_up_barriers(gpu):
    out = ints(32)
    gpu.launch("early_return", 1, 64, 0, (out,))
    assert (out == 32).all()


def test_atomics(gpu):
    i32, u32 = torch.tensor([5, -9, 999], dtype=torch.int32), torch.zeros(144, dtype=torch.int32)
    i64, u64 = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    f32, four = torch.zeros(1), torch.zeros(4)
    gpu.launch("atomics", 1, 128, 0, (i32, u32, i64, u64, f32, four))
    assert i32.tolist() == [5 - 127 * 64, 127, -7]
    assert u32[0] == 128
    assert u32[1] == -1  # all bits
    assert 1 <= int(u32[2]) <= 128
    assert (u32[3:131] == 7).all()
    assert int(i64) == -128 * 2**33
    assert int(u64) == 128 * 2**33
    assert float(f32) == 64
    assert four.tolist() == [128, 256, 384, 512]


def test_dynamic_shared_memory_starts_as_nan(gpu):
    out = torch.zeros(2, 50)
    gpu.launch("dynamic_shared", 1, 32, 200, (out, 50))
    assert out[0].isnan().all()
    assert out[1].tolist() == list(range(49, -1, -1))


class Given(ctypes.Structure):
    _fields_ = [
        ("values", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("add", ctypes.c_float),
        ("times", ctypes.c_int),
    ]


def test_structure_by_value(gpu):
    v, out = torch.randn(32), torch.zeros(32)
    gpu.launch("by_struct", 1, 32, 0, Given(v.data_ptr(), out.data_ptr(), 20, 0.5, 3))
    torch.testing.assert_close(out[:20], 3 * v[:20] + 0.5)
    assert (out[20:] == 0).all()


def test_arguments_of_every_type(gpu):
    out = torch.zeros(8, dtype=torch.float64)
    gpu.launch("mixed_arguments", 1, 32, 0, (out, True, -7, 2**32 - 1, -(2**40), 2**53, 0.5, 1e-300, None))
    assert out.tolist() == [1, -7, 2**32 - 1, -(2**40), 2**53, 0.5, 1e-300, 1]


def test_wrong_number_of_arguments_names_the_kernel(gpu):
    with pytest.raises(TypeError, match="kernel shuffles"):
        gpu.launch("shuffles", 1, 32, 0, (torch.zeros(32),))


def test_conversions(gpu):
    special = [0.0, 1.0, -1.0, 65504.0, 65519.9, 65520.0, 1e9, math.inf, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.01]
    special += [
        3 * 2.0**-25,
        5 * 2.0**-26,
        2.0**-15 * 1.3,
        1 + 2.0**-11,
        1 + 3 * 2.0**-11,
        1 + 2.0**-8,
        1 + 3 * 2.0**-8,
    ]
    g = torch.Generator().manual_seed(0)
    v = torch.cat([torch.tensor(special), torch.randn(3000, generator=g) * torch.logspace(-9, 5, 3000)])
    n = len(v)
    f16, bf16, tf32, back = ints(n), ints(n), ints(n), torch.zeros(n, 4)
    gpu.launch("conversions", 1, 32, 0, (v, f16, bf16, tf32, back, n))
    low, high = (f16 & 0xFFFF).to(torch.int32), (f16 >> 16) & 0xFFFF
    with np.errstate(over="ignore"):
        expected = v.numpy().astype(np.float16)
    np.testing.assert_array_equal(low.numpy().astype(np.uint16), expected.view(np.uint16))
    np.testing.assert_array_equal(high.numpy().astype(np.uint16), (-expected).view(np.uint16))
    assert back[:, 0].equal(torch.from_numpy(expected.astype(np.float32)))
    assert (bf16 & 0xFFFF).to(torch.int32).equal(v.bfloat16().view(torch.int16).int() & 0xFFFF)
    assert back[:, 2].equal(v.bfloat16().float())
    assert back[:, 3].equal(-v.bfloat16().float())
    finite = v.isfinite()
    assert (tf32[finite] & 0x1FFF == 0).all()
    torch.testing.assert_close(tf32.view(torch.float32)[finite], v[finite], rtol=2.0**-11, atol=0)


def test_mathematics(gpu):
    v = torch.cat([torch.linspace(-140, 30, 400), torch.tensor([math.inf, -math.inf, math.nan])])
    out = torch.zeros(len(v), 6)
    gpu.launch("mathematics", 1, 32, 0, (v, out, len(v)))
    x, n = v[:400].double(), 400
    exp2 = torch.where(x < -126, 0.0, torch.exp2(x))
    columns = [exp2, torch.log2(x.abs() + 0.25), 1 / (x + 1e-3), (x.abs() + 0.5) ** -0.5]
    for i, column in enumerate(columns):
        torch.testing.assert_close(out[:n, i].double(), column, rtol=1e-5, atol=1e-30)
    i = np.arange(n)
    bits = np.array([bin(b).count("1") for b in v[:n].numpy().view(np.uint32)])
    clz = np.array([32 - int(k).bit_length() for k in i])
    ffs = np.array([(int(k) & -int(k)).bit_length() for k in i])
    np.testing.assert_array_equal(out[:n, 4].numpy(), (bits + 100 * clz + 10000 * ffs).astype(np.float32))
    assert out[:, 5].tolist() == [1.0] * n + [0.0] * 3


@pytest.mark.parametrize(("kind", "epsilon"), [("f16", 2.0**-11), ("bf16", 2.0**-8)])
def test_matrix_product_of_halves(gpu, kind, epsilon):
    a, b, c, d = torch.randn(16, 16), torch.randn(16, 8), torch.randn(16, 8), torch.zeros(16, 8)
    gpu.launch("multiply_f16", 1, 32, 0, (a, b, c, d, int(kind == "bf16")))
    dtype = torch.float16 if kind == "f16" else torch.bfloat16
    torch.testing.assert_close(d, a.to(dtype).float() @ b.to(dtype).float() + c, rtol=1e-5, atol=1e-5)
    assert (d - (a @ b + c)).abs().max() < 16 * 10 * epsilon


def test_matrix_product_of_tf32_drops_the_low_bits(gpu):
    a, b, c, d = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8), torch.zeros(16, 8)
    gpu.launch("multiply_tf32", 1, 32, 0, (a, b, c, d))

    def cut(x: torch.Tensor) -> torch.Tensor:
        return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)

    torch.testing.assert_close(d, cut(a) @ cut(b) + c, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(d, a @ b + c, rtol=1e-6, atol=1e-6)


def test_ldmatrix(gpu):
    a, b = torch.randn(16, 16).half(), torch.randn(16, 8).half()
    d, transposed = torch.zeros(2, 16, 8), ints(32, 4)
    gpu.launch("multiply_ldmatrix", 1, 32, 0, (a, b, b.T.contiguous(), d, transposed))
    expected = a.float() @ b.float()
    torch.testing.assert_close(d[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(d[1], expected, rtol=1e-5, atol=1e-5)
    words = transposed.view(torch.float16).view(32, 4, 2)
    for lane in range(32):
        for matrix in range(4):
            block = a[8 * (matrix % 2) :, 8 * (matrix // 2) :]
            rows, column = 2 * (lane % 4), lane // 4
            assert words[lane, matrix].equal(block[rows : rows + 2, column])


def test_asynchronous_copies_arrive_when_waited_for(gpu):
    v, out = torch.randn(32, 8), torch.zeros(32, 8)
    second = v.clone()
    second[1::2, 4:6] = 0
    second[:, 7] = 0
    gpu.launch("copies", 1, 32, 0, (v, out, 0))
    assert out.equal(second)
    gpu.launch("copies", 1, 32, 0, (v, out, 1))
    assert out[:, :4].equal(v[:, :4])
    assert out[:, 4:].isnan().all()
    gpu.launch("copies", 1, 32, 0, (v, out, 2))
    assert out.isnan().all()


def test_partial_copies_fill_with_zero(gpu):
    v, out = torch.randn(32, 4), torch.zeros(32, 4)
    gpu.launch("zero_filled", 1, 32, 0, (v, out))
    keep = torch.arange(4)[None] < (torch.arange(32) % 5)[:, None]
    assert out.equal(torch.where(keep, v, 0.0))


# ---- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "threads", "words"),
    [
        ("lanes_part", 64, ["divergence", "lanes 0-15 at a shuffle (emulator.cu:", "lanes 16-31 at fs_sync"]),
        ("different_collectives", 32, ["divergence", "a shuffle", "a ballot"]),
        ("different_shuffles", 32, ["divergence", "a shuffle"]),
        ("lane_returned", 32, ["lane 3 returned", "lanes 0-2 4-31 at a shuffle"]),
        ("different_barriers", 64, ["divergence", "warp 0: all lanes at fs_sync", "warp 1: all lanes at fs_sync"]),
    ],
)
def test_divergence_is_an_error_with_its_place(gpu, kernel, threads, words):
    with pytest.raises(ShimError) as error:
        gpu.launch(kernel, 1, threads, 0, (torch.zeros(64),))
    for word in [kernel, "block (0, 0, 0)", *words]:
        assert word in str(error.value)
    gpu.launch("early_return", 1, 64, 0, (ints(32),))  # and the next kernel runs


@pytest.mark.parametrize("kernel", ["missing_barrier", "missing_second_barrier", "missing_syncwarp"])
def test_missing_barriers_show_in_some_order(kernel):
    v = torch.randn(64)
    threads = 32 if kernel == "missing_syncwarp" else 64
    expected = v[:threads].roll(-2) if "second" in kernel else v[:threads].flip(0)
    wrong = 0
    for order in ORDERS:
        out = torch.zeros(threads)
        ShimLauncher(SOURCES, order=order).launch(kernel, 1, threads, 0, (v, out), WITH_BARRIER)
        assert out.equal(expected), order
        ShimLauncher(SOURCES, order=order).launch(kernel, 1, threads, 0, (v, out))
        wrong += not out.equal(expected)
    assert wrong >= 2


def test_shuffled_order_depends_on_the_seed_alone():
    v, outs = torch.randn(64), []
    for seed in (1, 1, 2):
        out = torch.zeros(64)
        ShimLauncher(SOURCES, order="shuffled", seed=seed).launch("missing_barrier", 1, 64, 0, (v, out))
        outs.append(out.nan_to_num(99.0))
    assert outs[0].equal(outs[1])
    assert not outs[0].equal(outs[2])


@pytest.mark.parametrize(
    ("grid", "block", "shared", "words"),
    [
        (1, 96, 0, "the kernel's bound is 64"),
        (1, 40, 0, "not whole warps"),
        (1, (32, 3), 0, "the kernel's bound is 64"),
        ((1, 70000), 64, 0, "a grid of 1 x 70000"),
        (1, 64, 240000, "dynamic shared memory"),
    ],
    ids=str,
)
def test_launches_a_device_would_refuse(gpu, grid, block, shared, words):
    with pytest.raises(ShimError, match=words):
        gpu.launch("early_return", grid, block, shared, (ints(32),))


@pytest.mark.parametrize("kernel", ["misaligned_copy", "misaligned_matrix"])
def test_misaligned_addresses(gpu, kernel):
    with pytest.raises(ShimError, match=r"not aligned to 16 bytes \(emulator.cu:"):
        gpu.launch(kernel, 1, 32, 0, (torch.zeros(256),))


def test_a_source_that_does_not_compile(tmp_path):
    (tmp_path / "wrong.cu").write_text('#include "device.cuh"\nFS_KERNEL(32, wrong, int* p) { *p = undeclared; }\n')
    with pytest.raises(ShimError, match=r"(?s)g\+\+ does not compile wrong.cu.*undeclared"):
        ShimLauncher(Sources(tmp_path, SOURCES.include)).launch("wrong", 1, 32, 0, (None,))


# ---- under AddressSanitizer -----------------------------------------------------------------------------------------

SANITIZED = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_shim import SOURCES
from shim import ShimLauncher
gpu = ShimLauncher(SOURCES, sanitize=True)
out = torch.zeros(32)
v = torch.randn(256)
gpu.launch("missing_barrier", 1, 64, 0, (v, torch.zeros(64)), {{"WITH_BARRIER": 1}})
gpu.launch("multiply_tf32", 1, 32, 0, (v, v, v, torch.zeros(128)))
gpu.launch("out_of_bounds", 1, 32, 128, (out, {dynamic}, 0))
print("clean so far", flush=True)
{last}
print("not caught")
"""


def sanitized(script: str) -> subprocess.CompletedProcess:
    """Run Python with AddressSanitizer's library loaded first."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("this g++ has no AddressSanitizer")
    env = {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, timeout=600)


@pytest.mark.parametrize(
    ("dynamic", "last", "words"),
    [
        (0, 'gpu.launch("out_of_bounds", 1, 32, 128, (out, 0, 1))', "index 32 out of bounds for type 'float [32]'"),
        (1, 'gpu.launch("out_of_bounds", 1, 32, 128, (out, 1, 1))', "heap-buffer-overflow"),
        (1, 'gpu.launch("out_of_bounds", 1, 32, 128, (torch.zeros(31), 1, 0))', "heap-buffer-overflow"),
    ],
    ids=["shared", "dynamic shared", "tensor"],
)
def test_sanitizer_sees_one_element_too_many(dynamic, last, words):
    done = sanitized(SANITIZED.format(tests=str(HERE), dynamic=dynamic, last=last))
    assert "clean so far" in done.stdout, done.stderr[-3000:]
    assert words in done.stderr, done.stderr[-3000:]
    assert "emulator.cu" in done.stderr
    assert "not caught" not in done.stdout
