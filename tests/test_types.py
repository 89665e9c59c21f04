"""The nouns: shapes checked with a sentence, spaces named, indexing and joining without surprises."""

from __future__ import annotations

import pytest
import torch

from featuresplat import Cameras, FeatureField, FeaturesplatError, Gaussians, PointCloud
from featuresplat.types import SH_C0


def gaussians(n: int, degree: int = 1, seed: int = 0) -> Gaussians:
    g = torch.Generator().manual_seed(seed)
    rows = (degree + 1) ** 2 - 1
    shapes = [(n, 3), (n, 4), (n, 3), (n,), (n, 1, 3), (n, rows, 3)]
    return Gaussians(*(torch.randn(s, generator=g) for s in shapes))


def cameras(c: int = 3, **changes) -> Cameras:
    viewmats = torch.eye(4).repeat(c, 1, 1)
    viewmats[:, 2, 3] = torch.arange(c) + 1.0
    Ks = torch.tensor([[100.0, 0, 32], [0, 110, 24], [0, 0, 1]]).repeat(c, 1, 1)
    arguments = {
        "viewmats": viewmats,
        "Ks": Ks,
        "widths": 64,
        "heights": 48,
        "names": [f"{i}.jpg" for i in range(c)],
    }
    return Cameras(**{**arguments, **changes})


# ------------------------------------------------------------------------------------------ Gaussians


def test_activated_values():
    g = gaussians(5)
    torch.testing.assert_close(g.scales.log(), g.log_scales)
    torch.testing.assert_close(torch.logit(g.opacities), g.logit_opacities)
    torch.testing.assert_close(g.colors, 0.5 + SH_C0 * g.sh0[:, 0])
    assert g.sh.shape == (5, 4, 3)
    assert torch.equal(g.sh[:, 1:], g.shN)


@pytest.mark.parametrize("degree", range(5))
def test_degree(degree):
    assert gaussians(2, degree).sh_degree == degree


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("quats", (5, 3), r"quats: expected \[4, 4\], got \(5, 3\)"),
        ("means", (4, 2), r"means: expected \[4, 3\], got \(4, 2\)"),
        ("log_scales", (4, 1), r"log_scales: expected \[4, 3\], got \(4, 1\)"),
        ("logit_opacities", (4, 1), r"logit_opacities: expected \[4\], got \(4, 1\)"),
        ("sh0", (4, 3), r"sh0: expected \[4, 1, 3\], got \(4, 3\)"),
        ("shN", (4, 9), r"shN: expected \[4, -1, 3\], got \(4, 9\)"),
        ("shN", (4, 5, 3), "shN: expected 0, 3, 8, 15 or 24 rows, got 5"),
    ],
)
def test_wrong_shapes_are_named(name, shape, message):
    with pytest.raises(FeaturesplatError, match=message):
        Gaussians(**{**gaussians(4).tensors(), name: torch.zeros(shape)})


def test_indexing_takes_rows_of_everything():
    g = gaussians(6)
    mask = torch.tensor([True, False, True, False, False, True])
    for picked in (g[mask], g[mask.nonzero()[:, 0]]):
        assert len(picked) == 3
        for name, t in picked.tensors().items():
            assert torch.equal(t, g.tensors()[name][mask])
    assert len(g[2:4]) == 2
    assert len(g[torch.zeros(6, dtype=torch.bool)]) == 0


def test_cat_pads_lower_degrees_with_zeros():
    low, high = gaussians(2, 0), gaussians(3, 2, seed=1)
    both = Gaussians.cat([low, high])
    assert (len(both), both.sh_degree) == (5, 2)
    assert (both.shN[:2] == 0).all()
    assert torch.equal(both.shN[2:], high.shN)
    assert torch.equal(both.means, torch.cat([low.means, high.means]))


def test_to_and_detach():
    g = gaussians(2).map(lambda t: t.requires_grad_())
    assert g.to(torch.float64).means.dtype == torch.float64
    assert not any(t.requires_grad for t in g.detach().tensors().values())


# ------------------------------------------------------------------------------------------ Cameras


def test_positions_and_c2w_agree():
    c = cameras()
    angle = torch.tensor(0.3)
    c.viewmats[1, :3, :3] = torch.tensor([[angle.cos(), 0, angle.sin()], [0, 1, 0], [-angle.sin(), 0, angle.cos()]])
    torch.testing.assert_close(c.positions, c.c2w[:, :3, 3])
    torch.testing.assert_close(c.positions[0], torch.tensor([0.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (1, ["1.jpg"]),
        (-1, ["2.jpg"]),
        (slice(1, None), ["1.jpg", "2.jpg"]),
        ([2, 0], ["2.jpg", "0.jpg"]),
        (torch.tensor([2, 2]), ["2.jpg", "2.jpg"]),
        (torch.tensor([True, False, True]), ["0.jpg", "2.jpg"]),
    ],
    ids=str,
)
def test_camera_indexing_gives_a_batch(index, names):
    picked = cameras(times=torch.tensor([0.0, 0.5, 1.0]))[index]
    assert list(picked.names) == names
    rows = [int(n[0]) for n in names]
    assert picked.viewmats[:, 2, 3].tolist() == [r + 1 for r in rows]
    assert picked.times is not None
    assert picked.times.tolist() == [r / 2 for r in rows]
    assert len(picked) == len(picked.widths) == len(names)  # pyright: ignore[reportArgumentType]


def test_camera_index_out_of_range_is_an_index_error():
    with pytest.raises(IndexError):
        cameras()[3]


def test_iterating_cameras_stops():
    assert [c.names[0] for c in cameras()] == ["0.jpg", "1.jpg", "2.jpg"]


def test_resizing_scales_each_axis():
    # Twice as wide, half as high: fx, cx times 2; fy, cy times 1/2; a ray through the corner stays there.
    c = cameras().resized(128, 24)
    assert (c.width, c.height) == (128, 24)
    torch.testing.assert_close(c.Ks[0], torch.tensor([[200.0, 0, 64], [0, 55, 12], [0, 0, 1]]))


def test_sizes_that_differ_are_told_not_guessed():
    c = cameras(widths=[64, 32, 64])
    assert c[1].width == 32
    assert c.height == 48
    with pytest.raises(FeaturesplatError, match=r"the width differs between cameras \(\[32, 64\]\)"):
        _ = c.width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"viewmats": torch.zeros(3, 3, 4)},
            r"expected viewmats \[C, 4, 4\] and Ks \[C, 3, 3\], got \(3, 3, 4\)",
        ),
        ({"Ks": torch.zeros(2, 3, 3)}, r"got \(3, 4, 4\) and \(2, 3, 3\)"),
        ({"widths": [1, 2]}, "3 viewmats but 2 widths"),
        ({"names": ["a"]}, "3 viewmats but 1 names"),
    ],
)
def test_cameras_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(FeaturesplatError, match=message):
        cameras(**changes)


def test_names_default_to_empty():
    assert cameras(names=()).names == ("", "", "")


# ------------------------------------------------------------------------------------------ the others


def test_lengths_and_dims():
    assert len(PointCloud(torch.zeros(7, 3), torch.zeros(7, 3))) == 7
    assert FeatureField(torch.zeros(4, 9)).dim == 9


def test_an_error_is_a_sentence_and_a_remedy():
    error = FeaturesplatError("scales: expected [N, 3], got (4,)", "Give three per Gaussian.")
    assert str(error) == "scales: expected [N, 3], got (4,)\nGive three per Gaussian."
    assert str(FeaturesplatError("Only this.")) == "Only this."
