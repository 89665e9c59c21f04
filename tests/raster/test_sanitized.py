"""The engine's kernels under AddressSanitizer and UndefinedBehaviorSanitizer: every pass once, on a few small scenes.

Shared arrays, dynamic shared memory and every tensor have guarded ends there, so that one element too many is an error.
"""

from __future__ import annotations

import pytest
import shim
from test_shim import HERE, sanitized

pytestmark = pytest.mark.skipif(shim.unavailable() is not None, reason=shim.unavailable() or "")

SCRIPT = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
import torch
torch.set_num_threads(1)
import featuresplat as fs
from conftest import random_scene
from shim import ShimLauncher, stand_in

def every_pass(scene, sh_degree, deterministic):
    torch.use_deterministic_algorithms(deterministic)
    names = ("means", "quats", "scales", "opacities", "colors", "features", "viewmats", "backgrounds")
    leaves = {{n: getattr(scene, n).clone().requires_grad_() for n in names}}
    camera = (scene.Ks, scene.width, scene.height)
    out = fs.rasterize(*(leaves[n] for n in names[:5]), leaves["viewmats"], *camera, features=leaves["features"],
                       backgrounds=leaves["backgrounds"], sh_degree=sh_degree, absgrad=True, backend="cuda")
    loss = (out.rgb**2).sum() + (out.features**2).sum() + (out.alpha**2).sum() + out.depth.sum()
    grads = torch.autograd.grad(loss, list(leaves.values()))
    assert all(torch.isfinite(g).all() for g in grads)
    splats = (scene.means, scene.quats, scene.scales, scene.opacities, scene.viewmats, *camera)
    fs.lift(*splats, out.features.detach(), power=2, backend="cuda")
    return splats

def launch(arch, channels, sh_degree, deterministic, queries):
    with stand_in(ShimLauncher(sanitize=True, order="shuffled", arch=arch)) as gpu:
        scene = random_scene(40, channels=channels, cameras=2, width=21, height=18, sh_degree=sh_degree)
        splats = every_pass(scene, sh_degree, deterministic)
        if queries:
            fs.topk(*splats, 3, backend="cuda")
            fs.contributions(*splats, backend="cuda")
            fs.weight_matrix(*splats, backend="cuda")
        print(*sorted(set(gpu.launched)), flush=True)

launch(90, 37, 1, False, True)
launch(90, 3, None, True, False)
launch(75, 20, None, False, False)
print("clean")
"""


def test_no_access_out_of_bounds():
    done = sanitized(SCRIPT.format(tests=str(HERE), root=str(HERE.parent)))
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-500:]
    *launched, last = done.stdout.splitlines()
    assert last == "clean"
    assert [{"project", "blend", "blend_backward"} <= set(line.split()) for line in launched] == [True] * 3
