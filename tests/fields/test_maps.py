"""Maps: their size, their main directions."""

from __future__ import annotations

import pytest
import torch

from featuresplat.fields.maps import Maps, mask_at, principal_axes, resize, second_moment
from featuresplat.types import Cameras


def test_resize_averages_and_interpolates_between_cell_centres():
    ramp = torch.tensor([0.0, 1.0, 2.0, 3.0])[None, :, None]  # one row of four cells
    assert resize(ramp, 1, 2)[0, :, 0].tolist() == [0.5, 2.5]
    # Centres of eight cells lie a quarter of an old cell beside the old centres; borders repeat.
    assert resize(ramp, 1, 8)[0, :, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert torch.equal(resize(ramp.half(), 1, 4), ramp)


def test_mask_at():
    mask = torch.tensor([[True, True, False, False]])
    assert mask_at(torch.ones(3, 3, dtype=torch.bool), 2, 2) is None
    assert mask_at(None, 2, 2) is None
    half = mask_at(mask, 1, 2)
    assert half is not None
    assert half.tolist() == [[1.0, 0.0]]


def test_principal_axes_are_those_of_the_singular_value_decomposition():
    g = torch.Generator().manual_seed(0)
    x = (
        torch.randn(500, 6, generator=g)
        * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.1, 0.01])
        @ torch.linalg.qr(torch.randn(6, 6, generator=g)).Q
    )
    cameras = Cameras(torch.eye(4)[None], torch.eye(3)[None], 20, 25)
    moment = second_moment(Maps(cameras, 6, lambda i: x.view(25, 20, 6)))
    axes, energies = principal_axes(moment, 3)
    _, values, vt = torch.linalg.svd(x.double(), full_matrices=False)
    assert torch.allclose(energies, values**2 / 500, rtol=1e-4, atol=1e-5)
    assert torch.allclose((vt[:3].float() @ axes).abs(), torch.eye(3), atol=1e-3)
    assert bool((axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize(("cells", "size"), [((3, 5), (12, 20)), ((7, 4), (8, 9)), ((1, 1), (4, 6)), ((3, 9), (8, 5))])
def test_enlarging_is_bilinear_between_cell_centres(cells, size):
    values = torch.randn(*cells, 5, generator=torch.Generator().manual_seed(0))
    found = resize(values, *size)
    planes = values.permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, size, mode="bilinear", align_corners=False)
    assert torch.allclose(found, expected[0].permute(1, 2, 0), atol=1e-6)
    assert found.is_contiguous()
    assert torch.equal(resize(values.half(), *size), resize(values.half().float(), *size))
    learned = resize(values.requires_grad_(), *size)
    assert learned.requires_grad
    assert torch.allclose(learned, found, atol=1e-6)
