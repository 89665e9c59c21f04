"""The gsplat adapter: honest where it cannot run, in agreement where it can."""

from __future__ import annotations

import pytest
import torch

import featuresplat as fs
from featuresplat import FeaturesplatError
from featuresplat.raster import gsplat

here = pytest.mark.skipif(gsplat.unavailable() is not None, reason=str(gsplat.unavailable()))


@pytest.mark.skipif(gsplat.unavailable() is None, reason="gsplat can run here")
def test_says_why_it_cannot_run(make_scene):
    s = make_scene(3)
    with pytest.raises(FeaturesplatError, match="backend 'gsplat' cannot run here: ") as caught:
        fs.rasterize(
            s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats, s.Ks, 8, 8, backend="gsplat"
        )  # fmt: skip
    assert gsplat.unavailable() in str(caught.value)


@here
@pytest.mark.parametrize("sh_degree", [None, 2])
@pytest.mark.parametrize("mode", ["full", "rgb", "none"])
def test_parity(make_scene, sh_degree, mode):
    s = make_scene(300, channels=40, cameras=2, sh_degree=sh_degree).to("cuda")
    results = []
    for backend in ("reference", "gsplat"):
        leaves = [t.clone().requires_grad_() for t in (s.means, s.quats, s.scales, s.opacities, s.colors, s.features)]
        out = fs.rasterize(
            *leaves[:5], s.viewmats, s.Ks, s.width, s.height, features=leaves[5], backgrounds=s.backgrounds,
            sh_degree=sh_degree, geometry_grad=mode, backend=backend,
        )  # fmt: skip
        grads = torch.autograd.grad((out.rgb**2).mean() + (out.features**2).mean(), leaves, allow_unused=True)
        results.append([out.rgb, out.features, out.alpha, out.depth * (out.alpha > 0.1), *grads])
    for ours, theirs in zip(*results, strict=True):
        if ours is None or theirs is None:
            assert ours is None or (ours == 0).all()
            continue
        # Pairs at the cut differ by their culling: compare on the whole.
        assert (ours - theirs).norm() <= 2e-3 * ours.norm()


@here
def test_settings_that_gsplat_fixes_are_refused(make_scene):
    s = make_scene(3).to("cuda")
    with pytest.raises(FeaturesplatError, match="cannot set alpha_max"):
        fs.rasterize(
            s.means, s.quats, s.scales, s.opacities, s.colors, s.viewmats, s.Ks, 8, 8, backend="gsplat",
            settings=fs.RasterSettings(alpha_max=0.9),
        )  # fmt: skip
