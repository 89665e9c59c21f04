"""SPZ: blocks by hand in every version, stated precision, bad files."""

from __future__ import annotations

import gzip
import importlib
import struct

import pytest
import torch

from featuresplat.errors import FeaturesplatError
from featuresplat.io import spz
from featuresplat.io.spz import read_spz, write_spz

MAGIC = 0x5053474E


def blocks_by_hand(version: int) -> list[bytes]:
    """One Gaussian of degree 1, 12 fractional bits."""
    position = b"".join(struct.pack("<i", v)[:3] for v in (4096, -2048, 3 << 20))  # 1, -0.5, 768
    if version == 2:
        rotation = bytes([255, 128, 128])  # x = 1, and y and z 1/255
    else:
        # largest is w, index 3 of xyzw; x, y, z = +511, -256, +0 of 511 / sqrt 2
        rotation = struct.pack("<I", 3 << 30 | 511 << 20 | (512 | 256) << 10 | 0)
    sh = bytes([128, 0, 255, 192, 64, 128, 136, 120, 128])  # coefficient by coefficient, channels together
    return [position, bytes([51]), bytes([255, 0, 128]), bytes([160, 0, 255]), rotation, sh]


def header(version: int, count: int = 1, degree: int = 1) -> bytes:
    return struct.pack("<IIIBBBB", MAGIC, version, count, degree, 12, 0, 0)


def check_by_hand(g, version: int) -> None:
    assert g.means.tolist() == [[1, -0.5, 768]]
    assert g.opacities.item() == pytest.approx(0.2)
    assert g.sh0[0, 0].tolist() == pytest.approx([0.5 / 0.15, -0.5 / 0.15, (128 / 255 - 0.5) / 0.15])
    assert g.log_scales[0].tolist() == [0, -10, 5.9375]
    assert g.shN[0].tolist() == [[0, -1, 127 / 128], [0.5, -0.5, 0], [8 / 128, -8 / 128, 0]]
    if version == 2:
        assert g.quats[0].tolist() == pytest.approx([0, 1, 1 / 255, 1 / 255], abs=1e-6)
    else:
        x, y = 0.5**0.5, -(0.5**0.5) * 256 / 511
        assert g.quats[0].tolist() == pytest.approx([(1 - x * x - y * y) ** 0.5, x, y, 0], abs=1e-6)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_versions_2_and_3_by_hand(tmp_path, version, pack):
    (tmp_path / "a.spz").write_bytes(pack(header(version) + b"".join(blocks_by_hand(version))))
    check_by_hand(read_spz(tmp_path / "a.spz"), version)


def version_4(compress) -> bytes:
    blocks = blocks_by_hand(4)
    packed = [compress(b) for b in blocks]
    head = struct.pack("<IIIBBBBI12x", MAGIC, 4, 1, 1, 12, 0, len(blocks), 32)
    toc = b"".join(struct.pack("<QQ", len(p), len(b)) for p, b in zip(packed, blocks, strict=True))
    return head + toc + b"".join(packed)


def test_version_4_by_hand(tmp_path):
    zstandard = pytest.importorskip("zstandard", reason="needs the package zstandard")
    data = version_4(zstandard.ZstdCompressor().compress)
    (tmp_path / "a.spz").write_bytes(data)
    check_by_hand(read_spz(tmp_path / "a.spz"), 4)
    for bad, words in (
        (data[:-3], "lies about stream 5"),
        (data[:15] + b"\x04" + data[16:], "table of its streams is damaged"),
        (data[:8] + struct.pack("<I", 10**9) + data[12:], "lies about stream 0"),
        (data[:20], "table of its streams is damaged"),
        (data[:128] + b"\0" * (len(data) - 128), "zstd stream is damaged|is damaged"),
    ):
        (tmp_path / "a.spz").write_bytes(bad)
        with pytest.raises(FeaturesplatError, match=words):
            read_spz(tmp_path / "a.spz")


def test_version_4_without_zstd_names_the_remedy(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(spz.importlib, "import_module", missing)
    (tmp_path / "a.spz").write_bytes(version_4(bytes))
    with pytest.raises(FeaturesplatError, match="version 4 needs zstd") as caught:
        read_spz(tmp_path / "a.spz")
    assert "pip install zstandard" in caught.value.hint
    assert importlib.import_module is missing  # the patch was the thing that was seen


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_round_trip_to_the_stated_precision(tmp_path, gaussians, degree):
    g = gaussians(2000, degree)
    g.shN.clamp_(-1, 0.9)
    write_spz(tmp_path / "g.spz", g)
    back = read_spz(tmp_path / "g.spz")
    assert (g.means - back.means).abs().max() <= 0.5 * 2**-19 + 1e-6  # the farthest is below 16 units
    assert (g.log_scales.clamp(-10, 5.9375) - back.log_scales).abs().max() <= 1 / 32 + 1e-6
    assert (g.opacities - back.opacities).abs().max() <= 0.5 / 255 + 1e-6
    assert (g.sh0.clamp(-3.3, 3.3) - back.sh0.clamp(-3.3, 3.3)).abs().max() <= 0.5 / 255 / 0.15 + 1e-6
    unit = torch.nn.functional.normalize(g.quats, dim=1)
    unit = unit * torch.where((unit * back.quats).sum(1, keepdim=True) < 0, -1.0, 1.0)
    assert (unit - back.quats).abs().max() < 2.1e-3
    assert ((g.shN - back.shN)[:, :3].abs() <= 4.5 / 128).all()
    assert ((g.shN - back.shN)[:, 3:].abs() <= 8.5 / 128).all()
    assert back.sh_degree == degree
    write_spz(tmp_path / "h.spz", back)
    again = read_spz(tmp_path / "h.spz")
    assert torch.equal(again.shN, back.shN)
    assert torch.equal(again.means, back.means)


def test_fractional_bits_follow_the_extent(tmp_path, gaussians):
    g = gaussians(10)
    for reach, bits in ((0.5, 20), (2047.0, 12), (8_000_000.0, 0)):
        g.means[:] = reach
        write_spz(tmp_path / "g.spz", g)
        assert gzip.decompress((tmp_path / "g.spz").read_bytes())[13] == bits
        assert torch.equal(read_spz(tmp_path / "g.spz").means, g.means)
    g.means[0, 0] = 9e6
    with pytest.raises(FeaturesplatError, match="holds positions up to"):
        write_spz(tmp_path / "g.spz", g)


def test_degree_4_is_cut_with_a_warning(tmp_path, gaussians):
    with pytest.warns(UserWarning, match="degree 4 was cut"):
        write_spz(tmp_path / "g.spz", gaussians(10, 4))
    assert read_spz(tmp_path / "g.spz").sh_degree == 3


def test_bad_files(tmp_path, gaussians):
    path = tmp_path / "x.spz"
    write_spz(path, gaussians(1000, 1))
    good, hand = path.read_bytes(), b"".join(blocks_by_hand(3))
    for data, words in (
        (b"", "is not an SPZ file"),
        (b"\x1f\x8b" + b"garbage" * 9, "gzip stream is damaged"),
        (gzip.compress(b"something else altogether"), "is not an SPZ file"),
        (good[:-2000], "truncated, or its header lies"),
        (gzip.compress(header(3, count=4_000_000_000) + hand), "truncated, or its header lies"),
        (gzip.compress(header(3, count=0) + hand), "holds 0 Gaussians"),
        (gzip.compress(header(9) + hand), "SPZ version 9, degree 1 is not known"),
        (gzip.compress(header(3, degree=7) + hand), "version 3, degree 7 is not known"),
    ):
        path.write_bytes(data)
        with pytest.raises(FeaturesplatError, match=words):
            read_spz(path)
