"""Windows, sizes, files of weights and packages: what teachers share."""

from __future__ import annotations

import sys
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import _common


@pytest.mark.parametrize(("size", "window"), [(32, 32), (40, 32), (64, 32), (448, 224), (1000, 200), (72, 64)])
def test_windows_cover_and_overlap(size, window):
    starts = _common.windows(size, window, 8)
    assert starts[0] == 0
    assert starts[-1] == size - window
    assert all(s % 8 == 0 for s in starts)
    gaps = [b - a for a, b in pairwise(starts)]
    assert all(0 < gap <= window - 8 for gap in gaps)


def test_over_windows_of_a_local_function_is_the_function():
    """When a cell's features depend on that cell alone, windows must not be seen in the result."""
    planes = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))

    def encode(part):
        return torch.nn.functional.avg_pool2d(part, 8)[0].permute(1, 2, 0)

    torch.testing.assert_close(_common.over_windows(planes, (24, 24), 8, encode), encode(planes))


def test_over_windows_fades_at_the_windows_edges():
    """Two windows of 4 cells over 6: weights 1 3 3 1 (eighths). In the overlap of cells 2 and 3: 3:1, then 1:3."""
    calls = iter((0.0, 8.0))

    def encode(part):
        return torch.full((1, 4, 1), next(calls))

    out = _common.over_windows(torch.zeros(1, 3, 8, 48), (8, 32), 8, encode)
    torch.testing.assert_close(out[0, :, 0], torch.tensor([0.0, 0, 2, 6, 8, 8]))


@pytest.mark.parametrize(
    ("size", "expected"), [((240, 320), (160, 224)), ((320, 240), (224, 160)), ((10, 900), (32, 224))]
)
def test_fitted_keeps_the_aspect_in_whole_patches(size, expected):
    assert _common.fitted(torch.zeros(*size, 3), 224, 32) == expected


def test_weights_are_read_without_running_code(tmp_path):
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.ckpt")
    torch.save({"model": state}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pth", "w.ckpt", "w.pt"):
        torch.testing.assert_close(_common.read_state(tmp_path / name), state)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    for name in ("bomb.pth", "junk.pth", "list.pth", "empty.pth"):
        with pytest.raises(FeaturesplatError, match=name):
            _common.read_state(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_a_package_that_is_missing_or_broken(monkeypatch, tmp_path):
    with pytest.raises(FeaturesplatError, match="no_such_package is not installed") as caught:
        _common.need("no_such_package", "clip")
    assert caught.value.hint == "pip install 'featuresplat[clip]'"
    (tmp_path / "half_a_package.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FeaturesplatError, match="does not import") as caught:
        _common.need("half_a_package", "sam")
    assert "doctor" in caught.value.hint
    sys.modules.pop("half_a_package", None)


def test_without_a_name_server_the_hub_is_not_waited_for(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub.constants")
    seen = []

    def nowhere(*args, **kwargs):
        raise OSError("Name or service not known")

    def load():
        seen.append(constants.HF_HUB_OFFLINE)
        raise ValueError("nothing in the cache\nand more")

    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(_common, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_common.socket, "getaddrinfo", nowhere)
    with pytest.raises(FeaturesplatError, match=r"could not be downloaded \(ValueError: nothing in the cache\)"):
        _common.load_weights("clip", "CLIP", load, None)
    monkeypatch.setattr(_common.socket, "getaddrinfo", lambda *a: [])
    with pytest.raises(FeaturesplatError):
        _common.load_weights("clip", "CLIP", load, None)
    assert seen == [True, False]
    assert constants.HF_HUB_OFFLINE is False
    assert _common.logging.root.manager.disable == 0
