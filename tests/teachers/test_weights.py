"""Files of weights and packages that teachers stand on."""

from __future__ import annotations

import sys

import pytest
import torch
from safetensors.torch import save_file

from featuresplat.errors import FeaturesplatError
from featuresplat.teachers import _weights


def test_weights_are_read_without_running_code(tmp_path):
    state = {"a": torch.ones(2), "b": torch.zeros(1)}
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pth")
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.ckpt")
    torch.save({"model": state}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pth", "w.ckpt", "w.pt"):
        torch.testing.assert_close(_weights.read_state(tmp_path / name), state)

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    torch.save({"a": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    for name in ("bomb.pth", "junk.pth", "list.pth", "empty.pth"):
        with pytest.raises(FeaturesplatError, match=name):
            _weights.read_state(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_a_package_that_is_missing_or_broken(monkeypatch, tmp_path):
    with pytest.raises(FeaturesplatError, match="no_such_package is not installed") as caught:
        _weights.need("no_such_package", "clip")
    assert caught.value.hint == "pip install 'featuresplat[clip]'"
    (tmp_path / "half_a_package.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(FeaturesplatError, match="does not import") as caught:
        _weights.need("half_a_package", "sam")
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
    monkeypatch.setattr(_weights, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_weights.socket, "getaddrinfo", nowhere)
    with pytest.raises(FeaturesplatError, match=r"could not be downloaded \(ValueError: nothing in the cache\)"):
        _weights.load_weights("clip", "CLIP", load, None)
    monkeypatch.setattr(_weights.socket, "getaddrinfo", lambda *a: [])
    with pytest.raises(FeaturesplatError):
        _weights.load_weights("clip", "CLIP", load, None)
    assert seen == [True, False]
    assert constants.HF_HUB_OFFLINE is False
    assert _weights.logging.root.manager.disable == 0
