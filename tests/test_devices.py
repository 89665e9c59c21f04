"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from featuresplat.devices import usable_device
from featuresplat.errors import FeaturesplatError


def test_auto_is_the_gpu_where_there_is_one():
    assert usable_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert usable_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["tpu9", "gpu!", ""])
def test_what_is_no_device(name):
    with pytest.raises(FeaturesplatError, match=f"'{name}' is not known") as caught:
        usable_device(name)
    assert "--device cpu" in caught.value.hint


def test_a_device_that_is_not_in_this_machine():
    with pytest.raises(FeaturesplatError, match="'cuda:99' cannot be used here") as caught:
        usable_device("cuda:99")
    assert "doctor" in caught.value.hint
