"""Teacher `offline`: text without a hub. An ImageNet classifier looks, a sentence model reads; both come from PyPI.

Maps. EfficientNet-Lite2 is applied densely at several sizes of the photograph. Its class logits, centred over the
1000 classes (z), are mixed over the sizes and pooled within colour segments; compact segments are also cut out, laid
on grey and classified by themselves. All stays linear, so that the lift adds up the evidence of all views before
anything decides (a softmax first loses what no single view is sure of). Kept are the 383 directions that the
classifier's own weights span best, and one channel that is constant.

Text. A phrase becomes a mixture of classes, by the similarity of its sentence embedding (all-MiniLM-L6-v2) with those
of the classes' names and definitions (scripts/class_embeddings.py), in the manner of ConSE (Norouzi et al. 2013). The
canonical phrases are the constant channel: they say what evidence a prompt has to beat where nothing in particular is
seen.

It knows what is near the 1000 ImageNet classes and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from featuresplat.config_fields import TeacherConfig
from featuresplat.io.tensors import read_tensors
from featuresplat.teachers import CANONICAL
from featuresplat.teachers._classifier import STRIDE, DenseClassifier, head, weights_file
from featuresplat.teachers._levels import crop
from featuresplat.teachers._segments import label_map
from featuresplat.teachers._sentences import SentenceEncoder, model_folder
from featuresplat.teachers._windows import check_image, fitted, resized

DEFAULT_MODEL = "lite2"
ABOUT = (
    "Offline: knows things near the 1000 ImageNet classes (mug, teapot, banana, dog); not colours, materials, parts or "
    "anything rarer."
)
DIM = 384
CONSTANT = 5.0
"""Value of the constant channel: the centred logit above which a class counts as seen."""
_LONGEST = 960
_SIZES = ((1.0, 0.7), (2 / 3, 0.3))
"""Sizes as shares of the largest, with their weights."""
_OUT = 100
"""Longer side of a map."""
_SEGMENT_SCALE = 300.0
_CROP, _CROPS, _CROP_WEIGHT = 160, 24, 0.5
"""Side of a crop in pixels, how many at most, and their weight beside the dense evidence."""
_CROP_AREA, _CROP_COMPACT = (0.0015, 0.2), 0.35
"""Segments that are cut out: shares of the image, and the least share of their box that they fill."""
_BATCH = 8
_SOFTNESS = 0.03
"""Temperature of the softmax over similarities with the classes."""


class Teacher:
    """The classifier over a photograph, with the text side.

    Raises:
        FeaturesplatError: a package of the extra `offline` is missing, or the model is unknown.
    """

    name = "offline"
    canonical = CANONICAL
    about = ABOUT
    dim = DIM

    def __init__(self, config: TeacherConfig, device: str | torch.device = "cpu"):
        variant = config.model or DEFAULT_MODEL
        if config.path is None:
            weights_file(variant)  # whatever is missing is said before anything is loaded
            model_folder()
        self.classifier = DenseClassifier(variant, config.path, device)
        self.text = TextSide(variant, config.path)
        weight, bias = head(variant, config.path)
        self.project = self.text.basis.T @ (weight - weight.mean(0))  # [D - 1, 1280]
        self.offset = self.text.basis.T @ (bias - bias.mean())
        self.longest = config.size or _LONGEST
        self.settings: dict[str, Any] = {
            "model": variant,
            "weights": str(config.path) if config.path else "",
            "size": self.longest,
            "version": 2,
        }

    def encode_image(self, image: Tensor, *, name: str = "") -> Tensor:
        """[H, W, 3] in 0..1 to class evidence [h, w, 384], h and w about 100 at most."""
        image = check_image(image)
        scale = _OUT / max(image.shape[:2])
        height, width = (max(1, round(side * min(1.0, scale))) for side in image.shape[:2])
        labels = label_map(image, _SEGMENT_SCALE)
        share = shares(labels, height, width)
        evidence = pooled(self.evidence(image, height, width), share)
        evidence += _CROP_WEIGHT * spread(self.crop_evidence(image, labels), share, height, width)
        constant = evidence.new_full((height, width, 1), CONSTANT)
        return torch.cat([evidence, constant], dim=2)

    def evidence(self, image: Tensor, height: int, width: int) -> Tensor:
        """[H, W, 3] to projected centred logits [height, width, 383], mixed over sizes, not pooled."""
        total = torch.zeros(1, DIM - 1, height, width)
        for share, weight in _SIZES:
            planes = resized(image, *fitted(image, round(self.longest * share), STRIDE))
            cells = self.classifier.features(planes)[0].permute(1, 2, 0)
            logits = F.linear(cells, self.project, self.offset).permute(2, 0, 1)[None]
            total += weight * F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return total[0].permute(1, 2, 0)

    def crop_evidence(self, image: Tensor, labels: Tensor) -> Tensor:
        """Projected centred logits [S, 383] of the segments [H, W], each cut out; zero for those that are not."""
        out = torch.zeros(int(labels.max()) + 1, DIM - 1)
        chosen = worth_a_look(labels)
        crops = [crop(image, labels == k, _CROP, margin=0.1, fill=0.5) for k in chosen]
        for numbers, batch in zip(_batches(chosen), _batches(crops), strict=True):
            features = self.classifier.features(torch.cat(batch)).mean((2, 3))
            out[numbers] = F.linear(features, self.project, self.offset)
        return out

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, 384] of unit length."""
        return self.text.encode_text(phrases)


class TextSide:
    """Phrases to directions among the classes; needs the classifier's last layer, not the network."""

    canonical = CANONICAL
    about = ABOUT

    def __init__(self, variant: str = DEFAULT_MODEL, path: Path | None = None):
        self.basis = _basis(variant, path)
        self.sentences = _sentence_encoder()

    def mixture(self, phrases: Sequence[str]) -> Tensor:
        """[P, 1000] weights of the classes in a phrase, each row's sum 1."""
        similarity = self.sentences.encode(list(phrases)) @ _class_embeddings().T
        return (similarity / _SOFTNESS).softmax(1)

    def encode_text(self, phrases: Sequence[str]) -> Tensor:
        """P phrases to [P, 384] of unit length; the canonical ones to the constant channel."""
        out = torch.zeros(len(phrases), DIM)
        named = [i for i, p in enumerate(phrases) if p not in self.canonical]
        out[:, -1] = 1.0
        if named:
            classes = F.normalize(self.mixture([phrases[i] for i in named]), dim=1) @ self.basis
            out[named] = F.pad(F.normalize(classes, dim=1), (0, 1))
        return out


def text_side(settings: dict[str, Any]) -> TextSide:
    """The text side of a finished field.

    Raises:
        FeaturesplatError: a package of the extra `offline` is missing.
    """
    weights = settings.get("weights")
    return TextSide(str(settings.get("model") or DEFAULT_MODEL), Path(weights) if weights else None)


def class_names() -> list[str]:
    """The 1000 classes, in the classifier's order."""
    return (resources.files("featuresplat.teachers") / "imagenet_classes.txt").read_text("utf-8").splitlines()


def shares(labels: Tensor, height: int, width: int) -> Tensor:
    """[S, height * width]: pixels of each segment [H, W] in each cell of a grid."""
    count, cells = int(labels.max()) + 1, height * width
    rows = (torch.arange(labels.shape[0]) * height // labels.shape[0])[:, None]
    columns = (torch.arange(labels.shape[1]) * width // labels.shape[1])[None]
    pairs = (labels * cells + rows * width + columns).flatten()
    return torch.bincount(pairs, minlength=count * cells).view(count, cells).float()


def pooled(values: Tensor, share: Tensor) -> Tensor:
    """[h, w, F] averaged within segments, each cell taking its segments' means by area."""
    means = share @ values.flatten(0, 1) / share.sum(1, keepdim=True).clamp_min(1)
    return spread(means, share, *values.shape[:2])


def spread(means: Tensor, share: Tensor, height: int, width: int) -> Tensor:
    """Values of segments [S, F] to [height, width, F], by area."""
    return (share.T @ means / share.sum(0).clamp_min(1)[:, None]).view(height, width, -1)


def worth_a_look(labels: Tensor) -> list[int]:
    """Numbers of the segments [H, W] that may be a thing by themselves: compact, neither specks nor half the image;
    the largest first, not too many."""
    low, high = (share * labels.numel() for share in _CROP_AREA)
    found = []
    for number, box in enumerate(ndimage.find_objects((labels + 1).numpy())):
        if box is None:
            continue
        inside = labels[box] == number
        area = int(inside.sum())
        if low <= area <= high and area >= _CROP_COMPACT * inside.numel():
            found.append((-area, number))
    return [number for _, number in sorted(found)[:_CROPS]]


def _batches(items: list[Any]) -> list[list[Any]]:
    return [items[i : i + _BATCH] for i in range(0, len(items), _BATCH)]


@lru_cache(maxsize=2)
def _basis(variant: str, path: Path | None) -> Tensor:
    """[1000, D - 1] orthonormal: the directions among classes that the head's weights span best."""
    weight, _ = head(variant, path)
    left, _, _ = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)
    axes = left[:, : DIM - 1]
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return axes * torch.where(largest < 0, -1.0, 1.0)


@lru_cache(maxsize=1)
def _sentence_encoder() -> SentenceEncoder:
    return SentenceEncoder()


@lru_cache(maxsize=1)
def _class_embeddings() -> Tensor:
    with resources.as_file(resources.files("featuresplat.teachers") / "imagenet_classes.safetensors") as path:
        return read_tensors(path)[0]["embeddings"].float()
