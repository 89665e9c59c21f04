"""The .splat format: bytes by hand, order of importance, stated precision, bad files."""

from __future__ import annotations

import struct

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io.splat import read_splat, write_splat
from featuresplat.types import SH_C0, Gaussians


def test_one_record_by_hand(tmp_path):
    g = Gaussians(
        means=torch.tensor([[1.0, -2.0, 3.5]]),
        quats=torch.tensor([[2.0, 0.0, -2.0, 0.0]]),  # normalised: 0.7071, 0, -0.7071, 0
        log_scales=torch.tensor([[0.0, 1.0, -1.0]]),
        logit_opacities=torch.tensor([0.0]),
        sh0=torch.tensor([[[0.0, 0.5 / SH_C0, -9.0]]]),  # 0.5, 1.0 and far below 0
        shN=torch.zeros(1, 0, 3),
    )
    write_splat(tmp_path / "a.splat", g)
    e = 2.718281828459045
    # 127.5 rounds to even: 128; 128 + 90.5 = 218.5 -> 219 (218.51), 128 - 90.51 = 37.49 -> 37
    expected = struct.pack("<6f8B", 1, -2, 3.5, 1, e, 1 / e, 128, 255, 0, 128, 219, 128, 37, 128)
    got = (tmp_path / "a.splat").read_bytes()
    assert got[:12] == expected[:12]
    assert struct.unpack("<3f", got[12:24]) == pytest.approx((1, e, 1 / e), rel=1e-6)
    assert got[24:] == expected[24:]


def test_reading_a_file_made_by_hand(tmp_path):
    data = struct.pack("<6f8B", 1, 2, 3, 0.5, 0.25, 2.0, 255, 0, 51, 255, 128, 128, 128, 0)
    data += struct.pack("<6f8B", 4, 5, 6, 1.0, 1.0, 1.0, 0, 0, 0, 0, 128, 128, 128, 128)
    (tmp_path / "b.splat").write_bytes(data)
    g = read_splat(tmp_path / "b.splat")
    assert g.means.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert g.scales[0].tolist() == pytest.approx([0.5, 0.25, 2.0])
    assert g.colors[0].tolist() == pytest.approx([1.0, 0.0, 0.2], abs=1e-6)
    assert g.opacities.tolist() == pytest.approx([1 - 0.25 / 255, 0.25 / 255], rel=1e-4)
    assert g.quats.tolist() == [[0, 0, 0, -1], [1, 0, 0, 0]]  # a zero quaternion is no rotation
    assert g.sh_degree == 0


def test_precision_order_and_stability(tmp_path, gaussians):
    g = gaussians(2000, degree=2)
    g = Gaussians(**{**g.tensors(), "sh0": g.sh0.clamp(-1.7, 1.7)})
    write_splat(tmp_path / "a.splat", g)
    back = read_splat(tmp_path / "a.splat")
    importance = g.opacities * g.scales.prod(dim=1)
    sorted_g = g[importance.argsort(descending=True, stable=True)]
    assert torch.equal(back.means, sorted_g.means)
    assert torch.allclose(back.log_scales, sorted_g.log_scales, atol=1e-6)
    assert (back.colors - sorted_g.colors).abs().max() <= 0.5 / 255 + 1e-6
    assert (back.opacities - sorted_g.opacities).abs().max() <= 0.5 / 255 + 1e-6
    unit = torch.nn.functional.normalize(sorted_g.quats, dim=1)
    # Half a step of 1/128 a component, a whole one at +1, and as much again from normalising.
    assert (back.quats - unit).abs().max() < 2.5 / 128
    write_splat(tmp_path / "b.splat", back)
    again = read_splat(tmp_path / "b.splat")
    again, back = again[again.means[:, 0].argsort()], back[back.means[:, 0].argsort()]
    assert torch.equal(again.colors, back.colors)  # quantising twice changes nothing
    assert torch.equal(again.logit_opacities, back.logit_opacities)


def test_bad_files(tmp_path, gaussians):
    path = tmp_path / "x.splat"
    write_splat(path, gaussians(4))
    good = path.read_bytes()
    for data, words in (
        (good[:-5], "truncated.*multiple of 32 bytes, got 123"),
        (b"", "is empty"),
        (b"ply\nformat ascii 1.0\n", "is a PLY file under another name"),
        (struct.pack("<f", float("nan")) * 8, "every one of its 1 Gaussians"),
    ):
        path.write_bytes(data)
        with pytest.raises(FeaturesplatError, match=words):
            read_splat(path)
    with pytest.raises(FeaturesplatError, match="No such file"):
        read_splat(tmp_path / "none.splat")
    path.write_bytes(good + struct.pack("<6f8B", 0, 0, 0, -1.0, 1, 1, *[128] * 8))
    with pytest.warns(UserWarning, match="left out 1 of 5"):
        assert len(read_splat(path)) == 4
