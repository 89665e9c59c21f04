"""Rotations, covariances and spherical harmonics against known values and defining properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch

from featuresplat.geometry import quat_scale_to_covar, quat_to_rotmat, rotmat_to_quat, sh_bases, sh_to_rgb
from featuresplat.types import SH_C0


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_quaternions_of_known_rotations():
    h = math.sqrt(0.5)
    # wxyz; a quarter turn about z takes x to y, about x takes y to z, about y takes z to x.
    quarter = torch.tensor([[h, 0, 0, h], [h, h, 0, 0], [h, 0, h, 0]], dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64)
    turned = quat_to_rotmat(quarter) @ axes[[0, 1, 2]][..., None]
    torch.testing.assert_close(turned[..., 0], axes[[1, 2, 0]])
    torch.testing.assert_close(quat_to_rotmat(torch.tensor([[1.0, 0, 0, 0]])), torch.eye(3)[None])


def test_rotations_are_orthonormal_and_blind_to_length_and_sign():
    q = randn(200, 4)
    R = quat_to_rotmat(q)
    torch.testing.assert_close(R @ R.mT, torch.eye(3, dtype=R.dtype).expand(200, 3, 3))
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(200, dtype=R.dtype))
    torch.testing.assert_close(quat_to_rotmat(-17.0 * q), R)


def test_quaternion_round_trip():
    q = torch.nn.functional.normalize(randn(500, 4), dim=-1)
    # Half turns, where formulas that divide by w fail, and rotations next to them.
    half = torch.tensor([[0.0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0.6, 0.8, 0], [1e-9, 0.6, 0, 0.8]])
    q = torch.cat([q, torch.nn.functional.normalize(half.double(), dim=-1)])
    R = quat_to_rotmat(q)
    back = rotmat_to_quat(R)
    assert (back[:, 0] >= 0).all()
    torch.testing.assert_close(quat_to_rotmat(back), R, rtol=0, atol=1e-7)
    torch.testing.assert_close(back.norm(dim=-1), torch.ones(len(q), dtype=q.dtype))


def test_rotmat_to_quat_mends_a_matrix_that_is_slightly_off():
    R = quat_to_rotmat(randn(50, 4))
    mended = quat_to_rotmat(rotmat_to_quat(R + 1e-4 * randn(50, 3, 3, seed=1)))
    torch.testing.assert_close(mended, R, rtol=0, atol=1e-3)


def test_covariance_has_the_scales_as_eigenvalues():
    scales = randn(40, 3).abs() + 0.1
    covar = quat_scale_to_covar(randn(40, 4, seed=1), scales)
    torch.testing.assert_close(torch.linalg.eigvalsh(covar), (scales**2).sort(dim=-1).values)
    # A quarter turn about z swaps the variances of x and y.
    h = math.sqrt(0.5)
    turned = quat_scale_to_covar(torch.tensor([h, 0, 0, h]), torch.tensor([2.0, 1.0, 3.0]))
    torch.testing.assert_close(turned, torch.diag(torch.tensor([1.0, 4.0, 9.0])), rtol=0, atol=1e-6)


def sphere_grid(rows: int = 24, columns: int = 48):
    """Directions and weights of a quadrature that is exact for polynomials up to degree 2 * rows - 1."""
    z, weights = np.polynomial.legendre.leggauss(rows)
    z, weights = torch.from_numpy(z), torch.from_numpy(weights)
    angle = torch.arange(columns, dtype=torch.float64) * (2 * math.pi / columns)
    r = (1 - z**2).sqrt()[:, None]
    directions = torch.stack([r * angle.cos(), r * angle.sin(), z[:, None].expand(rows, columns)], -1)
    return directions.reshape(-1, 3), (weights[:, None] * (2 * math.pi / columns)).expand(rows, columns).reshape(-1)


def test_spherical_harmonics_are_orthonormal():
    directions, weights = sphere_grid()
    Y = sh_bases(directions, 4)
    gram = torch.einsum("p,pi,pj->ij", weights, Y, Y)
    torch.testing.assert_close(gram, torch.eye(25, dtype=Y.dtype), rtol=0, atol=1e-9)


@pytest.mark.parametrize("degree", range(5))
def test_each_band_is_an_eigenspace_of_the_laplacian(degree):
    """On the sphere, Laplace Y = -l (l + 1) Y: each column lies in the band that its index says."""
    x = torch.nn.functional.normalize(randn(30, 3, seed=degree), dim=-1)

    def extended(p):
        return sh_bases(torch.nn.functional.normalize(p, dim=-1), degree)  # constant along rays

    step, total = 1e-3, 0.0
    for axis in torch.eye(3, dtype=torch.float64):
        total = total + extended(x + step * axis) - 2 * extended(x) + extended(x - step * axis)
    bands = torch.tensor([l for l in range(degree + 1) for _ in range(2 * l + 1)], dtype=torch.float64)  # noqa: E741
    torch.testing.assert_close(total / step**2, -bands * (bands + 1) * extended(x), rtol=0, atol=2e-3)


def test_spherical_harmonics_known_values():
    # Order and signs of the files: Y00, then -y, z, -x of the first band, times sqrt(3 / 4 pi) = 0.488603.
    bases = sh_bases(torch.eye(3, dtype=torch.float64), 1)
    c = math.sqrt(3 / (4 * math.pi))
    expected = torch.tensor([[SH_C0, 0, 0, -c], [SH_C0, -c, 0, 0], [SH_C0, 0, c, 0]], dtype=torch.float64)
    torch.testing.assert_close(bases, expected)
    assert math.isclose(SH_C0, 0.5 / math.sqrt(math.pi))
    # Along +z only m = 0 is there: sqrt((2 l + 1) / 4 pi).
    top = sh_bases(torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64), 4)
    for l in range(5):  # noqa: E741
        assert math.isclose(top[l * l + l].item(), math.sqrt((2 * l + 1) / (4 * math.pi)), rel_tol=1e-12)
    assert (top != 0).sum() == 5


def test_spherical_harmonics_are_scipys():
    """Real form of the complex harmonics with the Condon-Shortley sign: sqrt 2 Im Y_l|m|, sqrt 2 Re Y_lm."""
    d = torch.nn.functional.normalize(randn(50, 3), dim=-1)
    x, y, z = d.numpy().T
    polar, azimuth = np.arccos(z), np.arctan2(y, x)
    columns = []
    for l in range(5):  # noqa: E741
        for m in range(-l, l + 1):
            if hasattr(scipy.special, "sph_harm_y"):
                Y = scipy.special.sph_harm_y(l, abs(m), polar, azimuth)
            else:  # SciPy before 1.15
                Y = scipy.special.sph_harm(abs(m), l, azimuth, polar)
            columns.append(Y.real if m == 0 else math.sqrt(2) * (Y.imag if m < 0 else Y.real))
    np.testing.assert_allclose(sh_bases(d, 4).numpy(), np.stack(columns, -1), atol=1e-12)


def test_low_degrees_are_a_prefix_of_high_ones():
    d = torch.nn.functional.normalize(randn(10, 3), dim=-1)
    for degree in range(4):
        torch.testing.assert_close(sh_bases(d, degree), sh_bases(d, 4)[:, : (degree + 1) ** 2])


def test_colors_are_offset_and_clamped():
    sh = torch.zeros(3, 4, 3)
    sh[0, 0], sh[1, 0], sh[2, 0] = 0.0, 1.0, -10.0
    directions = torch.tensor([[0.0, 0.0, 1.0]]).expand(3, 3)
    colors = sh_to_rgb(sh, directions, 1)
    torch.testing.assert_close(colors[:, 0], torch.tensor([0.5, 0.5 + SH_C0, 0.0]))
    # Rows beyond the asked degree have no say.
    sh[0, 1:] = 100.0
    torch.testing.assert_close(sh_to_rgb(sh, directions, 0), colors)


def test_gradients():
    q, s, d = randn(4, 4), randn(4, 3).abs() + 0.1, randn(4, 3, seed=2)
    for fn, inputs in (
        (quat_scale_to_covar, (q, s)),
        (
            lambda sh, d: sh_to_rgb(sh, torch.nn.functional.normalize(d, dim=-1), 4),
            (0.1 * randn(4, 25, 3), d),
        ),
    ):
        assert torch.autograd.gradcheck(fn, [t.requires_grad_() for t in inputs])
