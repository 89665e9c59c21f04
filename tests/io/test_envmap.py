"""Environment maps in and out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from featuresplat.errors import FeaturesplatError
from featuresplat.io.envmap import checked_environment, read_environment, write_environment


def lamp(height: int = 16) -> np.ndarray:
    """A dim gradient and a lamp of 5000."""
    rng = np.random.default_rng(0)
    image = (0.2 + rng.random((height, 2 * height, 3))).astype(np.float32)
    image[3, 5] = (5000.0, 4000.0, 0.0)
    return image


def needs(ending: str) -> None:
    if ending == ".exr":
        pytest.importorskip("OpenEXR")


@pytest.mark.parametrize(("ending", "error"), [(".npy", 0), (".exr", 0), (".hdr", 0.01)])
def test_round_trip(tmp_path, ending, error):
    needs(ending)
    path, values = tmp_path / f"sky{ending}", lamp()
    write_environment(path, values)
    back = read_environment(path)
    assert back.dtype == np.float32
    assert back.shape == values.shape
    largest = values.max(-1, keepdims=True)
    assert (np.abs(back - values) <= error * largest).all()  # RGBE shares one exponent


@pytest.mark.parametrize("ending", [".npy", ".exr", ".hdr"])
def test_cubemaps_come_back_as_cubemaps(tmp_path, ending):
    needs(ending)
    cube = np.random.default_rng(1).random((6, 16, 16, 3)).astype(np.float32)
    write_environment(tmp_path / f"c{ending}", cube)
    back = read_environment(tmp_path / f"c{ending}")
    assert back.shape == cube.shape
    assert np.abs(back - cube).max() < 0.01


def packed_row(pixels: np.ndarray) -> bytes:
    """One row [W, 4] as Ward's run-length encoding has it, every plane as runs and literals."""
    out = bytearray([2, 2, len(pixels) >> 8, len(pixels) & 255])
    for plane in pixels.T:
        out += bytes([128 + 6, plane[0]])  # a run of six
        rest = plane[6:]
        out += bytes([len(rest)]) + bytes(rest)
    return bytes(out)


def test_run_length_encoded_radiance(tmp_path):
    pixels = np.random.default_rng(2).integers(1, 250, (8, 16, 4)).astype(np.uint8)
    pixels[..., 3] = 129
    pixels[:, :6] = pixels[:, :1]
    head = b"#?RADIANCE\n# made by hand\nFORMAT=32-bit_rle_rgbe\n\n-Y 8 +X 16\n"
    (tmp_path / "a.hdr").write_bytes(head + b"".join(packed_row(row) for row in pixels))
    want = (pixels[..., :3] + 0.5) / 256 * 2
    np.testing.assert_allclose(read_environment(tmp_path / "a.hdr"), want, rtol=1e-6)


def test_old_run_length_encoding(tmp_path):
    # Two pixels, the second repeated 1 + 2 + 256 times: 260 pixels and then plain ones.
    quads = [[10, 20, 30, 128], [40, 50, 60, 128], [1, 1, 1, 2], [1, 1, 1, 1]] + [[7, 8, 9, 128]] * (512 - 260)
    head = b"#?RGBE\n\n-Y 16 +X 32\n"
    (tmp_path / "a.hdr").write_bytes(head + np.array(quads, np.uint8).tobytes())
    got = read_environment(tmp_path / "a.hdr").reshape(-1, 3)
    np.testing.assert_allclose(got[0], (np.array([10, 20, 30]) + 0.5) / 256)
    np.testing.assert_allclose(got[1:260], np.broadcast_to((np.array([40, 50, 60]) + 0.5) / 256, (259, 3)))
    np.testing.assert_allclose(got[260:], np.broadcast_to((np.array([7, 8, 9]) + 0.5) / 256, (252, 3)))


def test_pictures_of_8_bits_come_with_a_warning(tmp_path):
    Image.fromarray(np.full((8, 16, 3), 188, np.uint8)).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="8 bits"):
        got = read_environment(tmp_path / "a.png")
    assert got.max() == pytest.approx(0.503, abs=2e-3)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda v: v.__setitem__((0, 0, 0), -1), "cannot be negative"),
        (lambda v: v.__setitem__((0, 0, 0), np.inf), "1 values are infinite"),
        (lambda v: v.__setitem__((0, 0), np.nan), "3 values are infinite or not numbers"),
    ],
)
def test_impossible_radiance(spoil, says):
    values = lamp()
    spoil(values)
    with pytest.raises(FeaturesplatError, match=says):
        checked_environment(values, "map")


def test_tiny_negative_values_of_compression_pass():
    values = lamp()
    values[0, 0, 0] = -1e-4
    assert checked_environment(values, "map").min() == 0


@pytest.mark.parametrize("shape", [(16, 16, 3), (16, 32), (16, 32, 2), (5, 8, 8, 3), (1, 2, 3)])
def test_other_shapes(shape):
    with pytest.raises(FeaturesplatError, match="expected an environment map"):
        checked_environment(np.ones(shape, np.float32), "map")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.npy", b"nonsense"),
        ("a.npy", b""),
        ("a.hdr", b"#?RADIANCE\n\n-Y 8 +X 16\n\2\2"),
        ("a.hdr", b"nonsense"),
        ("a.hdr", b"#?RADIANCE\n\n-Y 8 +X 16\n" + bytes([2, 2, 0, 16, 0])),
        ("a.exr", b"nonsense"),
        ("a.txt", b"1 2 3"),
    ],
)
def test_damaged_files(tmp_path, name, content):
    needs(name[1:])
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FeaturesplatError, match="a\\."):
        read_environment(tmp_path / name)


def test_no_such_file(tmp_path):
    with pytest.raises(FeaturesplatError, match="no such environment map"):
        read_environment(tmp_path / "a.hdr")
