"""Writes featuresplat/teachers/imagenet_classes.safetensors: what the offline teacher knows the 1000 classes by.

    python scripts/class_embeddings.py

For each class the unit mean of two sentence embeddings: of its name (imagenet_classes.txt) and of "name: definition",
with WordNet's definition as timm ships it. A definition names the kind of thing, so that "dog" finds the breeds and
"dinosaur" the triceratops; the name alone makes a hot dog of the former.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from torch import Tensor
from torch.nn.functional import normalize

from featuresplat.io.tensors import write_tensors
from featuresplat.teachers._sentences import SentenceEncoder
from featuresplat.teachers.offline import class_names

OUT = Path(__file__).resolve().parents[1] / "featuresplat" / "teachers" / "imagenet_classes.safetensors"


def definitions() -> list[str]:
    """WordNet's definitions of the 1000 classes, in the classifier's order."""
    folder = resources.files("timm.data") / "_info"
    rows = (folder / "imagenet_synset_to_definition.txt").read_text("utf-8").splitlines()
    by_synset = dict(row.split("\t", 1) for row in rows)
    return [by_synset[s] for s in (folder / "imagenet_synsets.txt").read_text("utf-8").split()]


def embeddings(names: list[str], defined: list[str]) -> Tensor:
    """[P, 384] of unit length."""
    encoder = SentenceEncoder()
    described = [f"{name}: {text}" for name, text in zip(names, defined, strict=True)]
    return normalize(encoder.encode(names) + encoder.encode(described), dim=1)


if __name__ == "__main__":
    made = embeddings(class_names(), definitions())
    write_tensors(OUT, {"embeddings": made.half()}, {"model": "all-MiniLM-L6-v2", "text": "name, and name: definition"})
    print(f"{OUT}: {list(made.shape)}")
