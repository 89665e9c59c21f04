"""Which device a name means."""

from __future__ import annotations

import torch

from featuresplat.errors import FeaturesplatError


def usable_device(name: str) -> torch.device:
    """The device of a name; 'auto' is the GPU where there is one.

    Raises:
        FeaturesplatError: there is no such device, or torch cannot use it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise FeaturesplatError(f"device: '{name}' is not known", "Use --device cpu, cuda, cuda:N or auto.") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's CPU build asserts
        reason = str(error).splitlines()[0]
        raise FeaturesplatError(
            f"device: '{name}' cannot be used here ({reason})", "Use --device cpu, or run 'featuresplat doctor'."
        ) from None
    return device
