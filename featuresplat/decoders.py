"""From stored codes to a teacher's features: linear, MLP, or a codebook. Layer 0: pure maths.

The linear ones have no offset unless asked for: then decoding and blending commute, so a render of codes decodes to
the render of the decoded features, and prompts can be projected onto the codes before splatting.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featuresplat.errors import FeaturesplatError

VERSION = 1


class Decoder(nn.Module):
    """Codes [..., D] to features [..., F].

    Attributes:
        kind: how it is called in files.
        dim: D, channels of the codes.
        out_dim: F, channels of the teacher.
    """

    kind = ""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.dim, self.out_dim = dim, out_dim

    @property
    def matrix(self) -> Tensor | None:
        """[F, D] such that decoding is ``x @ matrix.T``, or None where it is not linear."""
        return None

    def settings(self) -> dict[str, Any]:
        """What `decoder_from` needs beside the tensors; JSON."""
        return {"kind": self.kind, "dim": self.dim, "out_dim": self.out_dim}


class LinearDecoder(Decoder):
    """``weight @ x``, and ``+ bias`` where asked for (the 1x1 convolution of Feature 3DGS)."""

    kind = "linear"

    def __init__(self, dim: int, out_dim: int, bias: bool = False):
        super().__init__(dim, out_dim)
        self.weight = nn.Parameter(torch.zeros(out_dim, dim))
        self.bias = nn.Parameter(torch.zeros(out_dim)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    @property
    def matrix(self) -> Tensor | None:
        return self.weight if self.bias is None else None

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "bias": self.bias is not None}


class MLPDecoder(Decoder):
    """``weight @ x`` plus a hidden layer whose output begins at zero: training starts from the linear decoder."""

    kind = "mlp"

    def __init__(self, dim: int, out_dim: int, hidden: int = 128):
        super().__init__(dim, out_dim)
        self.hidden = hidden
        self.weight = nn.Parameter(torch.zeros(out_dim, dim))
        self.first = nn.Linear(dim, hidden)
        self.second = nn.Linear(hidden, out_dim)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) + self.second(torch.relu(self.first(x)))

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "hidden": self.hidden}


class CodebookDecoder(LinearDecoder):
    """D entries of F channels; a code holds the few entries' weights (LangSplatV2), at most ``top`` not zero."""

    kind = "codebook"

    def __init__(self, dim: int, out_dim: int, top: int = 4):
        super().__init__(dim, out_dim)
        self.top = top

    def settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "dim": self.dim, "out_dim": self.out_dim, "top": self.top}


def decoder_metadata(decoder: Decoder, teacher: str) -> dict[str, str]:
    """What stands in the header of a decoder's file."""
    return {"decoder": json.dumps({"version": VERSION, "teacher": teacher, **decoder.settings()})}


def decoder_from(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], origin: str) -> Decoder:
    """The decoder of a file's tensors and header; ``origin`` names the file in errors.

    Raises:
        FeaturesplatError: another kind or version, or tensors that do not fit the header.
    """
    kinds: dict[str, type[Decoder]] = {c.kind: c for c in (LinearDecoder, MLPDecoder, CodebookDecoder)}
    try:
        settings = json.loads(metadata["decoder"])
        version, kind = settings.pop("version"), settings.pop("kind")
        settings.pop("teacher")
        if version > VERSION:
            raise FeaturesplatError(f"{origin}: was written in decoder format {version}.", "Update featuresplat.")
        # The shapes are judged before anything of the said size is made.
        sizes = {"dim": settings["dim"], "out_dim": settings["out_dim"]}
        if tuple(tensors["weight"].shape) != (sizes["out_dim"], sizes["dim"]):
            raise ValueError(f"weight {list(tensors['weight'].shape)} for {sizes}")
        if kind == "mlp" and tuple(tensors["first.weight"].shape) != (settings["hidden"], sizes["dim"]):
            raise ValueError(f"first.weight {list(tensors['first.weight'].shape)} for {settings}")
        decoder = kinds[kind](**settings)
        decoder.load_state_dict(dict(tensors), strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise FeaturesplatError(
            f"{origin}: is no decoder as featuresplat writes it ({said}).", "Distill the field again."
        ) from error
    return decoder.requires_grad_(False)
