"""Densification: the relocation formula, unchanged images, moments, budgets, determinism, resuming."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from featuresplat.config import DensifyConfig, ModelConfig
from featuresplat.densify import MCMC, Classic, _edit, make_strategy, mcmc
from featuresplat.errors import FeaturesplatError
from featuresplat.geometry import quat_to_rotmat
from featuresplat.raster import rasterize
from featuresplat.types import RasterMeta, RenderOutput


def make_params(n: int, seed: int = 0) -> dict[str, torch.nn.Parameter]:
    g = torch.Generator().manual_seed(seed)
    values = {
        "means": torch.randn(n, 3, generator=g),
        "quats": torch.randn(n, 4, generator=g),
        "log_scales": torch.randn(n, 3, generator=g) * 0.3 - 3,
        "logit_opacities": torch.randn(n, generator=g),
        "sh0": torch.randn(n, 1, 3, generator=g),
        "shN": torch.randn(n, 3, 3, generator=g),
        "codes": torch.randn(n, 5, generator=g),  # something that rides along
    }
    return {k: torch.nn.Parameter(v) for k, v in values.items()}


def new_optimizer(params, fused: bool = True) -> torch.optim.Adam:
    return torch.optim.Adam([{"params": [p], "name": k, "lr": 1e-4} for k, p in params.items()], fused=fused)


def make_optimizer(params) -> torch.optim.Adam:
    """Adam that has made one step, so that every moment is filled."""
    optimizer = new_optimizer(params)
    step(params, optimizer, 9)
    return optimizer


def step(params, optimizer, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=g)
    optimizer.step()


def make_output(grads: Tensor, radii: Tensor | None = None, width: int = 64, height: int = 32) -> RenderOutput:
    """What the strategies look at: gradients [C, N, 2] in pixels, and who is seen."""
    c, n, _ = grads.shape
    radii = torch.ones(c, n, 2, dtype=torch.int32) if radii is None else radii
    meta = RasterMeta(torch.zeros(c, n, 2), radii, torch.ones(c, n), torch.zeros(c, n, 3), grads, grads.abs() * 3)
    image = torch.zeros(c, height, width, 1)
    return RenderOutput(None, None, image, image, meta)


def quiet(n: int) -> RenderOutput:
    return make_output(torch.zeros(1, n, 2))


def check_consistent(params, optimizer, n: int) -> None:
    """Every parameter has n rows, is the one in its group, and its moments have its shape; training goes on."""
    for group in optimizer.param_groups:
        (p,) = group["params"]
        assert p is params[group["name"]]
        assert len(p) == n
        assert p.requires_grad
        assert all(optimizer.state[p][k].shape == p.shape for k in ("exp_avg", "exp_avg_sq"))
        assert float(optimizer.state[p]["step"]) == 1
    assert len(optimizer.state) == len(params)
    step(params, optimizer, 10)


# --- MCMC --------------------------------------------------------------------------------------------------------


def test_relocation_of_one_pair_by_hand():
    # o = 0.75, n = 2: o' = 1 - sqrt(0.25) = 0.5. The double sum: i=1: o' = 0.5; i=2: o' - o'^2 / sqrt 2 = 0.3232233;
    # together 0.8232233, so the scales shrink by 0.75 / 0.8232233 = 0.9110529.
    opacities, scales = mcmc.relocated(torch.tensor([0.75]), torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([2]))
    assert float(opacities) == pytest.approx(0.5, abs=1e-6)
    assert scales[0].tolist() == pytest.approx([0.9110529, 1.8221058, 3.6442116], abs=1e-5)


def test_relocation_formula_is_the_papers_double_sum():
    for n in (1, 2, 3, 7, 20, mcmc.MOST_COPIES):
        for o in (0.01, 0.4, 0.99):
            new = 1 - (1 - o) ** (1 / n)
            total = sum(
                math.comb(i - 1, k) * (-1) ** k * new ** (k + 1) / math.sqrt(k + 1)
                for i in range(1, n + 1)
                for k in range(i)
            )
            opacity, scale = mcmc.relocated(
                torch.tensor([o], dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64), torch.tensor([n])
            )
            assert float(opacity) == pytest.approx(new, rel=1e-9)
            assert scale[0].tolist() == pytest.approx([o / total] * 3, rel=1e-9)


def render(params, size: int = 48) -> Tensor:
    pose = torch.eye(4)
    pose[2, 3] = 4
    K = torch.tensor([[50.0, 0, size / 2], [0, 50, size / 2], [0, 0, 1]])
    p = {k: v.detach() for k, v in params.items()}
    args = (p["means"], p["quats"], p["log_scales"].exp(), p["logit_opacities"].sigmoid())
    out = rasterize(*args, p["sh0"][:, 0].sigmoid(), pose[None], K[None], size, size, backend="reference")
    assert out.rgb is not None
    return out.rgb


@pytest.mark.parametrize("what", ["relocate", "grow"])
def test_the_image_hardly_changes(what):
    params = make_params(60)
    params["means"].data *= 0.5
    params["log_scales"].data += 0.7
    if what == "relocate":
        params["logit_opacities"].data[:25] = -9.0
        params["logit_opacities"].data[25:] = 0.5
    optimizer = make_optimizer(params)
    before = render(params)
    strategy = MCMC(DensifyConfig(growth=0.5), 1000, 100)
    moved = (
        strategy.grow(params, optimizer, torch.Generator().manual_seed(0), 0.5)
        if what == "grow"
        else (strategy.relocate(params, optimizer, torch.Generator().manual_seed(0)))
    )
    assert moved == (25 if what == "relocate" else 30)
    corrected = (render(params) - before).abs().mean()
    assert before.std() > 0.1
    assert corrected < 0.01
    # Copies without the correction would show: the test can tell.
    naive = make_params(60)
    for k in naive:
        naive[k] = torch.nn.Parameter(torch.cat([params[k].detach(), params[k].detach()[-25:]]))
    assert (render(naive) - before).abs().mean() > 2 * corrected


def test_relocation_copies_rows_and_zeroes_moments():
    params = make_params(10)
    params["logit_opacities"].data[:] = 2.0
    params["logit_opacities"].data[:4] = -8.0
    params["means"].data[4] = math.nan  # broken counts as dead
    optimizer = make_optimizer(params)
    pointers = {k: id(v) for k, v in params.items()}
    assert MCMC(DensifyConfig(), 10, 100).relocate(params, optimizer, torch.Generator().manual_seed(0)) == 5
    assert {k: id(v) for k, v in params.items()} == pointers
    sources = set()
    for row in range(5):
        (source,) = [s for s in range(5, 10) if torch.equal(params["codes"][s], params["codes"][row])]
        assert all(torch.equal(p[row], p[source]) for p in params.values())
        sources.add(source)
    for p in params.values():
        moments = optimizer.state[p]["exp_avg"].flatten(1) if p.ndim > 1 else optimizer.state[p]["exp_avg"][:, None]
        zero = (moments == 0).all(1)
        assert zero.nonzero()[:, 0].tolist() == sorted([*range(5), *sources])
    assert (params["logit_opacities"] > -5).all()
    check_consistent(params, optimizer, 10)


def test_growth_stops_at_the_budget():
    params = make_params(100)
    optimizer = make_optimizer(params)
    strategy = make_strategy(DensifyConfig(every=10, start=0, stop=1, growth=0.1), ModelConfig(budget=125), 1000, 1.0)
    assert strategy.absgrad is False
    g = torch.Generator().manual_seed(0)
    counts = []
    for i in (5, 10, 20, 30, 40):
        strategy.after_step(i, params, optimizer, quiet(len(params["means"])), g)
        counts.append(len(params["means"]))
    assert counts == [100, 110, 121, 125, 125]
    assert (optimizer.state[params["means"]]["exp_avg"][121:] == 0).all()
    check_consistent(params, optimizer, 125)


def test_more_gaussians_than_budget_are_left_alone():
    params = make_params(30)
    optimizer = make_optimizer(params)
    assert MCMC(DensifyConfig(), 20, 100).grow(params, optimizer, torch.Generator(), 0.05) == 0
    check_consistent(params, optimizer, 30)


def test_noise_has_the_covariances_shape_and_spares_the_visible():
    n = 40_000
    params = make_params(1)
    with torch.no_grad():
        rows = {k: v.detach().repeat(n + 1, *[1] * (v.ndim - 1)) for k, v in params.items()}
    params = {k: torch.nn.Parameter(v) for k, v in rows.items()}
    params["logit_opacities"].data[:] = math.log(0.005 / 0.995)  # gate 1/2
    params["logit_opacities"].data[-1] = 0.0
    optimizer = torch.optim.Adam([{"params": [p], "name": k, "lr": 1e-3} for k, p in params.items()])
    before = params["means"].detach().clone()
    MCMC(DensifyConfig(noise=2e3), n, 100).add_noise(params, optimizer, torch.Generator().manual_seed(0))
    moved = (params["means"].detach() - before).double()
    assert (moved[-1] == 0).all()
    R = quat_to_rotmat(params["quats"][:1].detach().double())[0]
    covariance = R @ torch.diag((2 * params["log_scales"][0].detach().double()).exp()) @ R.T
    expected = (2e3 * 1e-3 * 0.5) ** 2 * covariance @ covariance
    measured = moved[:-1].T @ moved[:-1] / n
    assert (measured - expected).abs().max() < 0.03 * expected.abs().max()


def test_nothing_outside_the_configured_steps():
    for name in ("mcmc", "classic"):
        params = make_params(50)
        optimizer = make_optimizer(params)
        config = DensifyConfig(strategy=name, every=10, start=0.2, stop=0.5, noise=0, reset_every=0)
        strategy = make_strategy(config, ModelConfig(budget=500), 100, 1.0)
        before = {k: v.detach().clone() for k, v in params.items()}
        for i in (0, 10, 20, 25, 50, 60):
            strategy.after_step(i, params, optimizer, make_output(torch.ones(1, 50, 2)), torch.Generator())
        assert all(torch.equal(before[k], params[k]) for k in params)
        strategy.after_step(30, params, optimizer, make_output(torch.ones(1, 50, 2)), torch.Generator())
        assert len(params["means"]) > 50


# --- classic -----------------------------------------------------------------------------------------------------


def classic(budget: int = 1000, **config) -> Classic:
    return Classic(DensifyConfig(strategy="classic", every=10, start=0, stop=1, **config), budget, 10_000, 1.0)


def test_gradients_are_averaged_over_views_that_saw_them():
    strategy = classic()
    grads = torch.zeros(2, 3, 2)
    grads[0, 0] = torch.tensor([3e-4, 4e-4])
    grads[1, 1] = torch.tensor([0.0, 2e-4])
    radii = torch.ones(2, 3, 2, dtype=torch.int32)
    radii[1, 0] = 0
    strategy.observe(make_output(grads, radii))
    # Half of the longer side is 32 pixels; two cameras share the loss: 5e-4 * 32 * 2, seen once; 2e-4 * 64, twice.
    assert (strategy.sums / strategy.views).tolist() == pytest.approx([0.032, 0.0064, 0])
    absolute = Classic(DensifyConfig(), 10, 100, 1.0, absolute=True)
    absolute.observe(make_output(grads, radii))
    torch.testing.assert_close(absolute.sums, 3 * strategy.sums)


def test_clone_and_split():
    params = make_params(6)
    params["log_scales"].data[:] = math.log(0.005)
    params["log_scales"].data[1, 2] = math.log(0.5)
    optimizer = make_optimizer(params)
    old = {k: v.detach().clone() for k, v in params.items()}
    strategy = classic()
    grads = torch.zeros(1, 6, 2)
    grads[0, :2] = 1.0
    strategy.observe(make_output(grads))
    assert strategy.grow(params, optimizer, torch.Generator().manual_seed(0)) == 2
    # 0 is small: an identical copy in row 6. 1 is large: both halves smaller by 1.6, at new places.
    assert all(torch.equal(params[k][6], old[k][0]) and torch.equal(params[k][0], old[k][0]) for k in params)
    for row in (1, 7):
        torch.testing.assert_close(params["log_scales"][row].exp(), old["log_scales"][1].exp() / 1.6)
        assert not torch.equal(params["means"][row], old["means"][1])
        assert (params["means"][row] - old["means"][1]).norm() < 5 * 0.5
        assert torch.equal(params["codes"][row], old["codes"][1])
    assert not torch.equal(params["means"][1], params["means"][7])
    assert all(torch.equal(params[k][2:6], old[k][2:]) for k in params)
    moments = optimizer.state[params["means"]]["exp_avg"]
    assert (moments[[1, 6, 7]] == 0).all()
    assert (moments[[0, 2, 3, 4, 5]] != 0).all()
    check_consistent(params, optimizer, 8)


def test_the_largest_gradients_win_a_short_budget():
    params = make_params(6)
    params["log_scales"].data[:] = -9
    optimizer = make_optimizer(params)
    grads = torch.tensor([1.0, 5, 2, 4, 3, 0])[None, :, None].expand(1, 6, 2)
    strategy = classic(budget=8)
    strategy.observe(make_output(grads))
    assert strategy.grow(params, optimizer, torch.Generator()) == 2
    assert torch.equal(params["codes"][6:], params["codes"][[1, 3]])


def test_pruning_keeps_rows_and_moments_together():
    params = make_params(5)
    params["logit_opacities"].data[:] = torch.tensor([1.0, -9, 1, 1, 1])
    params["log_scales"].data[:] = -5
    params["log_scales"].data[2, 0] = math.log(0.2)
    params["means"].data[3] = math.inf
    optimizer = make_optimizer(params)
    codes = params["codes"].detach().clone()
    moments = optimizer.state[params["codes"]]["exp_avg"].clone()
    strategy = classic(reset_every=100)
    assert strategy.prune(50, params, optimizer) == 2  # transparent and broken; large ones only after a reset
    assert torch.equal(params["codes"], codes[[0, 2, 4]])
    assert strategy.prune(150, params, optimizer) == 1
    assert torch.equal(params["codes"], codes[[0, 4]])
    assert torch.equal(optimizer.state[params["codes"]]["exp_avg"], moments[[0, 4]])
    check_consistent(params, optimizer, 2)
    params["logit_opacities"].data[:] = -9
    assert strategy.prune(150, params, optimizer) == 0  # never the last ones


def test_opacity_reset():
    params = make_params(20)
    optimizer = make_optimizer(params)
    strategy = classic(reset_every=15)
    strategy.after_step(15, params, optimizer, quiet(20), torch.Generator())
    assert float(params["logit_opacities"].detach().sigmoid().max()) == pytest.approx(0.01)
    assert (optimizer.state[params["logit_opacities"]]["exp_avg_sq"] == 0).all()
    assert (optimizer.state[params["means"]]["exp_avg_sq"] != 0).all()


# --- both --------------------------------------------------------------------------------------------------------


def run(name: str, steps: range, saved: dict | None = None, seed: int = 0, fused: bool = True) -> dict:
    """Train on made-up gradients; returns all that a checkpoint holds, and starts from one."""
    params = make_params(80) if saved is None else {k: torch.nn.Parameter(v) for k, v in saved["params"].items()}
    params["logit_opacities"].data[:8] -= 0 if saved else 6
    optimizer = new_optimizer(params, fused)
    generator = torch.Generator().manual_seed(seed)
    config = DensifyConfig(strategy=name, every=7, start=0, stop=1, reset_every=16, growth=0.2)  # type: ignore[arg-type]
    strategy = make_strategy(config, ModelConfig(budget=200), 60, 1.0)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        strategy.load_state_dict(saved["strategy"])
        generator.set_state(saved["generator"])
    for i in steps:
        step(params, optimizer, i)
        g = torch.Generator().manual_seed(1000 + i)
        out = make_output(1e-5 * torch.randn(1, len(params["means"]), 2, generator=g))
        strategy.before_backward(i, out)
        strategy.after_step(i, params, optimizer, out, generator)
        assert len(params["means"]) <= 200
    return {
        "params": {k: v.detach().clone() for k, v in params.items()},
        "optimizer": optimizer.state_dict(),
        "strategy": strategy.state_dict(),
        "generator": generator.get_state(),
    }


@pytest.mark.parametrize("name", ["mcmc", "classic"])
@pytest.mark.parametrize("fused", [True, False])
def test_resuming_is_bit_exact_and_the_generator_decides(name, fused):
    whole = run(name, range(1, 41), fused=fused)
    again = run(name, range(20, 41), saved=run(name, range(1, 20), fused=fused), fused=fused)
    assert len(whole["params"]["means"]) > 80
    for k in whole["params"]:
        assert torch.equal(whole["params"][k], again["params"][k])
    assert torch.equal(whole["generator"], again["generator"])
    other = run(name, range(1, 41), seed=1, fused=fused)["params"]["means"]
    assert other.shape != whole["params"]["means"].shape or not torch.equal(other, whole["params"]["means"])


def test_none_changes_nothing():
    whole = run("none", range(1, 20))
    assert len(whole["params"]["means"]) == 80
    assert whole["strategy"] == {}


def test_draw_follows_the_weights():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0])
    counts = mcmc._draw(weights, 20_000, torch.Generator().manual_seed(0)).bincount(minlength=5)
    assert counts[[0, 2, 4]].tolist() == [0, 0, 0]
    assert int(counts[3]) == pytest.approx(15_000, abs=300)


def test_parameters_without_moments_are_edited_too():
    params = make_params(4)
    optimizer = torch.optim.Adam([{"params": [params["means"]], "name": "means"}])
    _edit.append(params, optimizer, {k: v.detach()[:2] for k, v in params.items()})
    _edit.keep(params, optimizer, torch.tensor([True, True, False, True, True, True]))
    assert all(len(p) == 5 for p in params.values())
    assert optimizer.param_groups[0]["params"][0] is params["means"]


def test_bad_settings():
    with pytest.raises(FeaturesplatError, match="no strategy 'magic'"):
        make_strategy(DensifyConfig(strategy="magic"), ModelConfig(), 100, 1.0)  # type: ignore[arg-type]
    with pytest.raises(FeaturesplatError, match="every and budget of at least 1, got 0"):
        make_strategy(DensifyConfig(every=0), ModelConfig(), 100, 1.0)
    with pytest.raises(FeaturesplatError, match=r"min_opacity between 0 and 1, got 1\.5"):
        make_strategy(DensifyConfig(min_opacity=1.5), ModelConfig(), 100, 1.0)
