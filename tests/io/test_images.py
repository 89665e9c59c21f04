"""Photographs as they should be seen, exact area averages, films and colours."""

from __future__ import annotations

import itertools
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from featuresplat.errors import FeaturesplatError
from featuresplat.io import video
from featuresplat.io.colormap import colorize_depth, colormap
from featuresplat.io.images import image_size, read_image, resize_area, write_image
from featuresplat.io.video import write_video


def ramp(height: int, width: int) -> np.ndarray:
    """Every pixel different: row, column and sum."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 10, x * 20, y + x], axis=2).astype(np.uint8)


def png_16(path, values: np.ndarray) -> None:
    """A 16-bit PNG [H, W] or [H, W, 3], written by hand."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_rgb_grey_palette_and_alpha(tmp_path):
    pixels = ramp(4, 6)
    Image.fromarray(pixels).save(tmp_path / "rgb.png")
    rgb, alpha = read_image(tmp_path / "rgb.png")
    assert alpha is None
    assert rgb.dtype == torch.uint8
    assert np.array_equal(rgb.numpy(), pixels)
    Image.fromarray(pixels[..., 1]).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png")[0].numpy(), np.repeat(pixels[..., 1:2], 3, 2))
    rgba = np.dstack([pixels, pixels[..., 0] + 100])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    rgb, alpha = read_image(tmp_path / "rgba.png")
    assert np.array_equal(rgb.numpy(), pixels)
    assert np.array_equal(alpha.numpy(), rgba[..., 3])
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    rgb, alpha = read_image(tmp_path / "palette.png")
    assert rgb.tolist() == [[[255, 0, 0], [0, 0, 255]]]
    assert alpha.tolist() == [[0, 255]]
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "cmyk.jpg")
    assert read_image(tmp_path / "cmyk.jpg")[0].shape == (4, 6, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """The stored pixels are turned so that each of the eight orientations shows the same picture."""
    seen = ramp(4, 6)
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.swapaxes(0, 1), 6: np.rot90(seen), 7: seen[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "o.png", exif=exif)
    assert np.array_equal(read_image(tmp_path / "o.png")[0].numpy(), seen)
    assert image_size(tmp_path / "o.png") == (6, 4)


def test_16_bit_png(tmp_path):
    png_16(tmp_path / "grey.png", np.array([[0, 257, 128 * 257, 65535]], np.uint16))
    assert read_image(tmp_path / "grey.png")[0][0, :, 1].tolist() == [0, 1, 128, 255]
    png_16(tmp_path / "rgb.png", np.array([[[0, 257, 65535], [128 * 257, 2 * 257, 0]]], np.uint16))
    assert read_image(tmp_path / "rgb.png")[0].tolist() == [[[0, 1, 255], [128, 2, 0]]]


def test_bad_images(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for name in ("a.jpg", "a.png"):
        Image.fromarray(noise).save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(FeaturesplatError, match=rf"{name}: is truncated or damaged") as caught:
            read_image(tmp_path / name)
        assert caught.value.hint
    (tmp_path / "b.png").write_bytes(b"")
    (tmp_path / "c.png").write_text("not an image")
    (tmp_path / "d.png").mkdir()
    for name, words in (
        ("b.png", "is empty"),
        ("c.png", "is not an image of a known format"),
        ("d.png", "damaged"),
        ("none.png", "there is no such image"),
    ):
        with pytest.raises(FeaturesplatError, match=rf"{name}: .*{words}"):
            read_image(tmp_path / name)
        with pytest.raises(FeaturesplatError, match=name):
            image_size(tmp_path / name)


def test_area_average_by_hand():
    row = torch.tensor([[10.0, 20.0, 40.0]])
    # Each new pixel covers 1.5 old ones.
    assert resize_area(row, 2, 1)[0].tolist() == pytest.approx([(10 + 10) / 1.5, (10 + 40) / 1.5])
    assert resize_area(row, 1, 1).item() == pytest.approx(70 / 3)
    assert resize_area(row, 6, 1)[0].tolist() == [10, 10, 20, 20, 40, 40]
    assert resize_area(torch.tensor([[0, 1], [1, 1]], dtype=torch.uint8) * 100, 1, 1).item() == 75
    whole = torch.from_numpy(ramp(8, 12)).float()
    assert torch.equal(resize_area(whole, 4, 2), whole.reshape(2, 4, 4, 3, 3).mean((1, 3)))
    with pytest.raises(FeaturesplatError, match=r"got \(1, 3\) and 0x1"):
        resize_area(row, 0, 1)


@pytest.mark.parametrize(("width", "height"), [(7, 5), (13, 3), (31, 29), (50, 40), (1, 17)])
def test_area_average_keeps_the_mean_and_constants(width, height):
    image = torch.rand(29, 31, 3, dtype=torch.float64)
    small = resize_area(image, width, height)
    assert small.shape == (height, width, 3)
    assert torch.allclose(small.mean((0, 1)), image.mean((0, 1)), atol=1e-12)
    grey = torch.full((29, 31), 117, dtype=torch.uint8)
    assert resize_area(grey, width, height).unique().tolist() == [117]


def test_pictures_are_written_exactly_and_atomically(tmp_path):
    pixels = torch.from_numpy(ramp(5, 7))
    write_image(tmp_path / "a.png", pixels)
    assert torch.equal(read_image(tmp_path / "a.png")[0], pixels)
    write_image(tmp_path / "a.png", pixels.float() / 255)
    assert torch.equal(read_image(tmp_path / "a.png")[0], pixels)
    write_image(tmp_path / "m.png", pixels[..., 0] > 20)
    assert read_image(tmp_path / "m.png")[0][..., 0].tolist() == (((pixels[..., 0] > 20) * 255).tolist())
    write_image(tmp_path / "b.png", torch.cat([pixels, pixels[..., :1]], 2))
    assert torch.equal(read_image(tmp_path / "b.png")[1], pixels[..., 0])
    write_image(tmp_path / "c.jpg", pixels.float().mul(2) / 255)  # above 1: clamped
    assert read_image(tmp_path / "c.jpg")[0].shape == (5, 7, 3)
    assert {p.name for p in tmp_path.iterdir()} == {"a.png", "b.png", "c.jpg", "m.png"}
    for name, image, words in (
        ("x.bmp", pixels, r"ends in \.png, \.jpg or \.webp, got '\.bmp'"),
        ("x.jpg", torch.zeros(2, 2, 4), r"expected \[H, W\], \[H, W, 3\], got \(2, 2, 4\)"),
        ("x.png", torch.zeros(2, 2, 5), r"got \(2, 2, 5\)"),
    ):
        with pytest.raises(FeaturesplatError, match=words):
            write_image(tmp_path / name, image)


def frames(count: int, height: int = 33, width: int = 47):
    for i in range(count):
        yield torch.full((height, width, 3), 20 * i, dtype=torch.uint8)


def test_gif_has_the_frames_and_their_time(tmp_path):
    assert write_video(tmp_path / "a.gif", frames(6), fps=10) == tmp_path / "a.gif"
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.size, film.info["duration"]) == (6, (47, 33), 100)
        film.seek(5)
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - 100).max() <= 4


def test_mp4_has_the_frames_or_falls_back_with_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_ffmpeg", lambda: None)
    with pytest.warns(UserWarning, match="pip install 'featuresplat.video.'"):
        assert write_video(tmp_path / "a.mp4", frames(3)) == tmp_path / "a.gif"
    monkeypatch.undo()
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg")
    live = []

    def counted():
        for frame in frames(12):
            live.append(1)
            yield frame

    assert write_video(tmp_path / "b.mp4", counted(), fps=12) == tmp_path / "b.mp4"
    reader = ffmpeg.read_frames(str(tmp_path / "b.mp4"))
    meta = next(reader)
    shots = list(reader)
    assert meta["size"] == (48, 34)  # even
    assert meta["fps"] == pytest.approx(12)
    assert len(shots) == len(live) == 12
    for i in (0, 6, 11):
        assert abs(int(np.frombuffer(shots[i], np.uint8).mean()) - 20 * i) <= 4
    assert {p.name for p in tmp_path.iterdir()} == {"a.gif", "b.mp4"}


def test_bad_films(tmp_path):
    for name, shots, words in (
        ("a.avi", frames(1), r"ends in \.mp4 or \.gif"),
        ("a.gif", frames(0), "no frames"),
        (
            "a.gif",
            itertools.chain(frames(1), frames(1, 10, 10)),
            r"got \(10, 10, 3\) for frame 1 after \(33, 47, 3\)",
        ),
    ):
        with pytest.raises(FeaturesplatError, match=words):
            write_video(tmp_path / name, shots)
    assert list(tmp_path.iterdir()) == []


def test_colormap_gets_lighter_in_even_steps():
    colours = colormap(torch.linspace(0, 1, 256)).double() / 255
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)
    luminance = linear @ torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)
    lightness = 116 * luminance ** (1 / 3) - 16  # CIE L*, a measure other than the one it was made with
    steps = lightness[16::16] - lightness[:-16:16]
    assert (steps > 0).all()
    assert steps[1:].max() < 2.2 * steps[1:].min()
    ends = colormap(torch.tensor([-1.0, 0.0, 1.0, 2.0, torch.nan]))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[2], ends[3])
    assert ends[4].tolist() == [0, 0, 0]
    assert int(ends[0].max()) < 100
    assert int(ends[2].min()) > 100


def test_depth_is_light_near_dark_far_black_nowhere():
    depth = torch.tensor([[1.0, 2.0, 3.0], [0.0, torch.nan, torch.inf]])
    picture = colorize_depth(depth, near=1.0, far=3.0)
    assert torch.equal(picture[0], colormap(torch.tensor([1.0, 0.5, 0.0])))
    assert picture[1].abs().max() == 0
    hidden = colorize_depth(depth, near=1.0, far=3.0, alpha=torch.tensor([[1.0, 0.4, 1.0], [1, 1, 1]]))
    assert hidden[0, 1].tolist() == [0, 0, 0]
    assert colorize_depth(torch.zeros(2, 2)).max() == 0
    assert torch.equal(colorize_depth(torch.full((2, 2), 5.0))[0, 0], colormap(torch.tensor(0.5)))
