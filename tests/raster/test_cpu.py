"""What is particular to the native engine: instruction sets, threads, forks, strides, errors.

Its meaning is tested over all backends in test_contract.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest
import torch

from featuresplat import rasterize
from featuresplat.errors import FeaturesplatError
from featuresplat.raster import RasterSettings, _native, contributions, cpu, lift, topk, weight_matrix

pytestmark = pytest.mark.skipif(_native.unavailable() is not None, reason=str(_native.unavailable()))
GEOMETRY = ("means", "quats", "scales", "opacities", "viewmats", "Ks", "width", "height")
LEAVES = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats", "backgrounds")


def scene(n=700, width=83, height=61, dim=37, cameras=2, sh_degree=2, seed=0) -> dict:
    """A box of Gaussians before slightly different cameras; no width is a multiple of a tile or a vector."""
    g = torch.Generator().manual_seed(seed)
    views = torch.eye(4).repeat(cameras, 1, 1)
    views[:, 0, 3] = 0.2 * torch.arange(cameras)
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 0.9 * width, height / 2], [0, 0, 1]])
    return {
        "means": (torch.rand(n, 3, generator=g) - 0.5) * torch.tensor([4.0, 3.0, 4.0]) + torch.tensor([0.0, 0.0, 4.0]),
        "quats": torch.randn(n, 4, generator=g),
        "scales": torch.rand(n, 3, generator=g) * 0.1 + 0.005,
        "opacities": torch.rand(n, generator=g),
        "colors": torch.randn(n, (sh_degree + 1) ** 2, 3, generator=g) * 0.3,
        "viewmats": views,
        "Ks": K.repeat(cameras, 1, 1),
        "width": width,
        "height": height,
        "features": torch.rand(n, dim, generator=g) - 0.5,
        "sh_degree": sh_degree,
        "backgrounds": torch.rand(cameras, 3, generator=g),
    }


def everything(s: dict) -> dict[str, torch.Tensor]:
    """All outputs, all gradients, and a lift, by name."""
    s = {k: v.clone().requires_grad_() if k in LEAVES else v for k, v in s.items()}
    out = rasterize(**s, backend="cpu", absgrad=True)
    images = {k: getattr(out, k) for k in ("rgb", "features", "alpha", "depth")}
    g = torch.Generator().manual_seed(1)
    sum((v * torch.randn(v.shape, generator=g)).sum() for v in images.values()).backward()
    found = {k: v.detach() for k, v in images.items()}
    found |= {f"grad {k}": s[k].grad for k in LEAVES}
    found |= {"absgrad": out.meta.means2d_absgrad, "grad2d": out.meta.means2d_grad, "conics": out.meta.conics}
    geometry = {k: s[k].detach() if torch.is_tensor(s[k]) else s[k] for k in GEOMETRY}
    maps = torch.rand(*out.alpha.shape[:3], 19, generator=g)
    found["lift"], found["lift weights"] = lift(**geometry, maps=maps, backend="cpu")
    return found


@pytest.fixture
def restore():
    """Leave the process' threads and instruction set as they were."""
    before = _native.num_threads(), _native.isa()
    yield
    _native.set_num_threads(before[0])
    _native.set_isa(before[1])


def available_isas() -> list[str]:
    if _native.unavailable() is not None:
        return []
    now, found = _native.isa(), []
    for name in ("baseline", "avx2", "avx512", "neon"):
        try:
            _native.set_isa(name)
            found.append(name)
        except FeaturesplatError:
            pass
    _native.set_isa(now)
    return found


@pytest.mark.parametrize("isa", available_isas()[:-1])
@pytest.mark.parametrize("dim", [3, 37])
def test_instruction_sets_agree(isa, dim, restore):
    s = scene(dim=dim)
    _native.set_isa(available_isas()[-1])
    widest = everything(s)
    _native.set_isa(isa)
    for name, value in everything(s).items():
        error = (value - widest[name]).abs().max() / widest[name].abs().max()
        assert error < 5e-5, name


@pytest.mark.parametrize("isa", available_isas())
def test_bit_identical_for_any_number_of_threads(isa, restore):
    _native.set_isa(isa)
    # More Gaussians than one chunk of projection, one range of sorting and one part of binning hold.
    s = scene(n=20000, width=150, height=131, dim=70)
    s["scales"] *= 0.3
    runs = []
    for threads in (1, 1, 2, 3, 7):
        _native.set_num_threads(threads)
        runs.append(everything(s))
    for other in runs[1:]:
        for name, value in runs[0].items():
            assert torch.equal(value, other[name]), name


def test_many_channels_go_through_several_batches_of_tiles(restore):
    """The feature gradient of 2048 channels needs more than one batch; it equals that of its halves."""
    s = scene(n=2000, cameras=1, dim=2048)
    s = {k: v for k, v in s.items() if k not in ("colors", "sh_degree", "backgrounds")}

    def gradient(features):
        features = features.clone().requires_grad_()
        out = rasterize(**{**s, "features": features}, colors=None, backend="cpu").features
        g = torch.linspace(-1, 1, 2048)[: out.shape[-1]]
        (out * g).sum().backward()
        return features.grad

    whole = gradient(s["features"])
    half = gradient(s["features"][:, :1024].contiguous())
    torch.testing.assert_close(whole[:, :1024], half, rtol=1e-6, atol=1e-7)
    assert whole[:, 1024:].abs().max() > 0


def test_strided_inputs_equal_contiguous_ones():
    s = scene()
    strided = dict(s)
    for name in LEAVES:
        t = s[name]
        wide = torch.empty(*t.shape[:-1], 2 * t.shape[-1])
        wide[..., ::2] = t
        strided[name] = wide[..., ::2]
        assert not strided[name].is_contiguous()
    a, b = everything(s), everything(strided)
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_expanded_gradients():
    """sum().backward() hands over gradients of stride zero."""
    s = scene(cameras=1)
    leaves = {k: s[k].clone().requires_grad_() for k in LEAVES}
    rasterize(**{**s, **leaves}, backend="cpu").features.sum().backward()
    dense = {k: s[k].clone().requires_grad_() for k in LEAVES}
    out = rasterize(**{**s, **dense}, backend="cpu").features
    out.backward(torch.ones_like(out))
    for k in LEAVES:
        assert torch.equal(leaves[k].grad, dense[k].grad), k


def test_gradient_comes_again_from_a_retained_graph():
    s = scene(cameras=1)
    s["means"] = s["means"].requires_grad_()
    loss = rasterize(**s, backend="cpu").rgb.sum()
    (first,) = torch.autograd.grad(loss, s["means"], retain_graph=True)
    (second,) = torch.autograd.grad(loss, s["means"])
    assert torch.equal(first, second)


def test_only_features_ask_for_gradients():
    """No geometry is touched, and the result is the one of the full backward."""
    s = scene()
    full = everything(s)["grad features"]
    s["features"] = s["features"].requires_grad_()
    out = rasterize(**s, backend="cpu", geometry_grad="none")
    g = torch.Generator().manual_seed(1)
    torch.randn(out.rgb.shape, generator=g)
    (out.features * torch.randn(out.features.shape, generator=g)).sum().backward()
    torch.testing.assert_close(s["features"].grad, full, rtol=1e-6, atol=1e-6)
    assert cpu.profile()["project_backward"] == 0


def test_interpreter_lock_is_released():
    """Another Python thread gets on with its work during one long call."""
    s = scene(n=30000, width=900, height=700, dim=64, cameras=3)
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    rasterize(**s, backend="cpu")
    end = time.perf_counter()
    stop.set()
    thread.join()
    during = sum(start < t < end for t in ticks)
    assert during >= 5, f"{during} ticks in {end - start:.3f} s"


def test_calls_from_several_python_threads():
    s = scene(cameras=1)
    expected = rasterize(**s, backend="cpu")
    results = [None] * 6

    def work(i):
        results[i] = rasterize(**s, backend="cpu")

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(results))]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    for r in results:
        assert torch.equal(r.features, expected.features)
        assert torch.equal(r.rgb, expected.rgb)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_works_after_fork():
    """A child has none of its parent's threads: the engine starts new ones."""
    code = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from test_cpu import scene, rasterize
s = scene(cameras=1)
before = rasterize(**s, backend="cpu")
child = os.fork()
if child == 0:
    again = rasterize(**s, backend="cpu")
    os._exit(0 if torch.equal(before.features, again.features) else 1)
status = os.waitpid(child, 0)[1]
after = rasterize(**s, backend="cpu")
sys.exit(status != 0 or not torch.equal(before.features, after.features))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)], capture_output=True, timeout=60, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("isa", available_isas())
def test_environment_chooses_instruction_set_and_threads(isa):
    code = "from featuresplat.raster import _native; print(_native.isa(), _native.num_threads())"
    env = {**os.environ, "FEATURESPLAT_ISA": isa, "FEATURESPLAT_NUM_THREADS": "3"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == [isa, "3"], done.stderr


def test_callers_denormals_survive():
    """The engine flushes denormals in its own threads and gives the caller's state back."""
    tiny = torch.tensor([1e-40])
    rasterize(**scene(cameras=1), backend="cpu")
    assert (tiny * 0.5).item() > 0


def test_stage_timings():
    everything(scene(cameras=1))
    stages = cpu.profile()
    assert set(stages) == {"project", "sort", "bin", "blend", "tiles", "gather", "project_backward"}
    rasterize(**scene(cameras=1), backend="cpu")
    stages = cpu.profile()
    assert stages["project"] > 0
    assert stages["blend"] > 0


def test_long_thin_splats_keep_their_digits():
    """Needles hundreds of pixels long and half a pixel wide: a quadratic form in float32 loses them."""
    n = 40
    g = torch.Generator().manual_seed(3)
    s = scene(n=n, width=900, height=700, dim=4, cameras=1)
    s["scales"] = torch.tensor([1.5, 1e-4, 1e-4]).repeat(n, 1)
    s["quats"] = torch.randn(n, 4, generator=g)
    exact = {k: v.double() if torch.is_tensor(v) else v for k, v in s.items()}
    out, truth = rasterize(**s, backend="cpu"), rasterize(**exact, backend="reference")
    assert (out.features - truth.features).abs().max() < 2e-5 * truth.features.abs().max()
    assert (out.rgb - truth.rgb).abs().max() < 2e-5 * truth.rgb.abs().max()


def test_depths_equal_in_float32_are_ordered_by_their_exact_values():
    """A thirtieth of a unit in the last place apart: the nearer one covers, whatever its index."""
    angle = torch.tensor(0.3, dtype=torch.float64)
    view = torch.eye(4, dtype=torch.float64)
    view[0, 0] = view[2, 2] = angle.cos()
    view[0, 2], view[2, 0] = angle.sin(), -angle.sin()
    view = view.float()
    s = scene(n=2, dim=1, cameras=1, sh_degree=0)
    s["viewmats"], s["scales"] = view[None], torch.full((2, 3), 0.5)
    s["opacities"] = torch.full((2,), 0.9)
    base = torch.tensor([0.25, 0.0, 4.0])
    nearer = base.clone()
    nearer[0] += 2.0**-25  # one unit in the last place of x, a third of which goes along the view direction
    exact = [(view[2, :3].double() * m.double()).sum().item() for m in (base, nearer)]
    assert exact[1] < exact[0]
    for order in ((0, 1), (1, 0)):
        s["means"] = torch.stack([base, nearer])[list(order)]
        s["features"] = torch.tensor([[0.0], [1.0]])[list(order)]
        out = rasterize(**s, backend="cpu").features
        assert out.max() > 0.85


@pytest.mark.parametrize("name", ["features", "colors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gaussians_with_unhealthy_values_are_left_out(name, value):
    s = scene()
    keep = torch.ones(len(s["means"]), dtype=torch.bool)
    keep[[5, 77, 400]] = False
    bad = dict(s)
    bad[name] = s[name].clone()
    bad[name][~keep] = value
    per_gaussian = ("means", "quats", "scales", "opacities", "colors", "features")
    without = {k: v[keep] if k in per_gaussian else v for k, v in s.items()}
    a, b = rasterize(**bad, backend="cpu"), rasterize(**without, backend="cpu")
    for image in ("rgb", "features", "alpha", "depth"):
        assert torch.equal(getattr(a, image), getattr(b, image)), image
    assert (a.meta.radii[:, ~keep] == 0).all()


def test_double_precision_is_refused_with_a_remedy():
    s = {k: v.double() if torch.is_tensor(v) else v for k, v in scene().items()}
    with pytest.raises(FeaturesplatError, match="float32") as caught:
        rasterize(**s, backend="cpu")
    assert "reference" in caught.value.hint


def test_engine_errors_arrive_as_exceptions():
    s = {k: v for k, v in scene(n=1, cameras=1).items() if k in GEOMETRY}
    s["width"], s["height"] = 2_000_000, 1
    with pytest.raises(FeaturesplatError, match="million pixels"):
        contributions(**s, backend="cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on address space")
def test_running_out_of_memory_is_an_error_not_a_crash():
    code = """
import resource, torch
from featuresplat.errors import FeaturesplatError
from featuresplat.raster import contributions
n = 3_000_000
shape = {"width": 8, "height": 8, "backend": "cpu"}
camera = {"viewmats": torch.eye(4)[None], "Ks": torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])}
one = torch.ones(n, 3)
args = {"means": one, "quats": torch.ones(n, 4), "scales": one, "opacities": one[:, 0].contiguous()}
contributions(**{k: v[:9].contiguous() for k, v in args.items()}, **camera, **shape)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 120_000_000, -1))
try:
    contributions(**args, **camera, **shape)
except FeaturesplatError as error:
    print(error.message)
contributions(**{k: v[:9].contiguous() for k, v in args.items()}, **camera, **shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "out of memory" in done.stdout, done.stderr
    assert done.returncode == 0


def test_changing_threads_while_another_call_runs(restore):
    s = scene(n=20000, width=300, height=300, dim=40, cameras=1)
    expected = rasterize(**s, backend="cpu").features
    found = []
    worker = threading.Thread(target=lambda: found.extend(rasterize(**s, backend="cpu").features for _ in range(8)))
    worker.start()
    for n in (1, 3, 2, 4) * 10:
        _native.set_num_threads(n)
        time.sleep(0.002)
    worker.join()
    assert len(found) == 8
    assert all(torch.equal(f, expected) for f in found)


def test_thread_count_is_checked():
    with pytest.raises(FeaturesplatError, match="1 to 1024"):
        _native.set_num_threads(0)


def test_queries_agree_with_the_images():
    """Sums of the weight matrix, of topk and of contributions are all the same weights as alpha's."""
    s = scene(cameras=1)
    geometry = {k: s[k] for k in GEOMETRY}
    alpha = rasterize(**s, backend="cpu").alpha.flatten()
    (matrix,) = weight_matrix(**geometry, backend="cpu")
    rows = torch.repeat_interleave(torch.arange(len(alpha)), matrix.indptr.diff())
    torch.testing.assert_close(torch.zeros_like(alpha).index_add_(0, rows, matrix.weights), alpha)
    most = int(matrix.indptr.diff().max())
    ids, weights = topk(**geometry, k=most + 2, backend="cpu")
    torch.testing.assert_close(weights.sum(-1).flatten(), alpha)
    assert (ids[..., most:] == -1).all()
    found = contributions(**geometry, backend="cpu")
    by_gaussian = torch.zeros(len(s["means"])).index_add_(0, matrix.indices, matrix.weights)
    torch.testing.assert_close(found.sums[0], by_gaussian)
    assert torch.equal(found.pixels[0], torch.bincount(matrix.indices, minlength=len(s["means"])))


def test_settings_reach_the_engine():
    s = scene(cameras=1)
    narrow = rasterize(**s, backend="cpu", settings=RasterSettings(extent=1.0)).alpha.sum()
    assert narrow < rasterize(**s, backend="cpu").alpha.sum()
    early = rasterize(**s, backend="cpu", settings=RasterSettings(transmittance_min=0.5)).alpha
    assert early.max() <= 0.5
