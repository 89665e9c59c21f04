"""Phrases -> scores in 0..1 per Gaussian or per pixel, and masks.

One formula serves every teacher: with s_p the cosine of a feature with phrase p, the score of prompt q is

    min over c of softmax(T [s_q, s_c])_0  =  sigmoid(T (s_q - max over c of s_c))

where c runs over what q has to beat: canonical phrases (the relevancy of LERF, Kerr et al. 2023, T = 10), or all
other labels of a closed vocabulary, so that a score above 0.5 means that q is the best of all.

Where codes decode linearly, the products with the phrases are splatted in place of the features: P + C channels for
D, and the same numbers, because blending commutes with them. The pixel's feature then has the length of the
blended lengths, which leaves who wins as it is.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

from featuresplat import registry, teachers
from featuresplat.errors import FeaturesplatError
from featuresplat.prompts.surface import snapshot, splat
from featuresplat.types import Cameras, FeatureField

if TYPE_CHECKING:
    from featuresplat.scene import Scene

TEMPERATURE = 10.0
BACKGROUND = "background"
"""A phrase of this name in a table counts as a label of its own; it is no prompt of its own accord."""
OTHER = "other"
"""What prompts have to beat when a teacher has no canonical phrases (LSeg's own word for everything else)."""
HALF = 0.5
_ROWS = 1 << 24  # numbers decoded at a time


@dataclass(frozen=True)
class TextQuery:
    """Phrases made ready for one field of a scene; ask it for any number of Gaussians and views.

    Attributes:
        phrases: P prompts, as given.
        field: name of the field that is asked.
        closed: the field knows a fixed list of labels, and the prompts are some of them.
        prompts: [P, F] unit embeddings of the prompts.
        contrast: [C, F] unit embeddings of what prompts have to beat.
        beats: bool [P, C], which of them each prompt has to beat.
        temperature: T.
    """

    phrases: tuple[str, ...]
    field: str
    closed: bool
    prompts: Tensor
    contrast: Tensor
    beats: Tensor
    temperature: float = TEMPERATURE

    def gaussians(self, scene: Scene) -> Tensor:
        """[P, N] scores in 0..1 of the scene's Gaussians; 0 where a Gaussian has no feature."""
        found = scene.fields[self.field]
        with torch.no_grad():
            vectors = self._vectors(found)
            linear = found.project(vectors)
            if linear is not None and found.decoder is None:
                return self._scores(found.codes @ linear.T, found.codes.norm(dim=1))
            # The length in the teacher's space needs the decoded feature: block by block, so that [N, F] never is.
            rows = max(1, _ROWS // found.out_dim)
            parts = []
            for codes in found.codes.split(rows):
                decoded = found.decode(codes)
                parts.append(self._scores(decoded @ vectors.T, decoded.norm(dim=1)))
            return torch.cat(parts, dim=1)

    def view(self, scene: Scene, camera: Cameras) -> Tensor:
        """[P, H, W] scores in 0..1 of the pixels of one camera; 0 where more than half of a pixel is empty."""
        found = scene.fields[self.field]
        with torch.no_grad():
            vectors = self._vectors(found)
            linear = found.project(vectors)
            if linear is not None:
                splats = torch.cat([found.codes @ linear.T, self._lengths(found)[:, None]], dim=1)
                out, weights = self._splat(scene, camera, splats)
                products, lengths = out[..., :-1], out[..., -1]
            else:
                out, weights = self._splat(scene, camera, found.codes)
                rows = max(1, _ROWS // found.out_dim)
                decoded = [found.decode(part) for part in out.flatten(0, 1).split(rows)]
                height, width = out.shape[:2]
                products = torch.cat([d @ vectors.T for d in decoded]).view(height, width, -1)
                lengths = torch.cat([d.norm(dim=1) for d in decoded]).view(height, width)
            lengths = torch.where(weights > HALF, lengths, 0.0)
            return self._scores(products.flatten(0, 1), lengths.flatten()).view(-1, *lengths.shape)

    def masks(self, scores: Tensor, threshold: float | None = None) -> Tensor:
        """bool, the shape of ``scores`` [P, N] or [P, H, W]: what the prompts mean.

        Args:
            threshold: scores above are in; default: the best label wins in a closed vocabulary, else the rule of
                `relevancy_masks` for pixels and 0.5 for Gaussians.
        """
        if threshold is None and not self.closed and scores.ndim == 3:
            return relevancy_masks(scores)
        return scores > (0.5 if threshold is None else threshold)

    def _vectors(self, found: FeatureField) -> Tensor:
        if found.out_dim != self.prompts.shape[1]:
            raise FeaturesplatError(
                f"field '{self.field}': has {found.out_dim} channels, but its teacher '{found.teacher}' answers text "
                f"with {self.prompts.shape[1]}",
                "Distil it again with this version of the teacher.",
            )
        return torch.cat([self.prompts, self.contrast]).to(found.codes)

    def _splat(self, scene: Scene, camera: Cameras, values: Tensor) -> tuple[Tensor, Tensor]:
        """[H, W, C] values [N, C] as a camera sees them, without the haze that has no say in what is there; and how
        much of each pixel is covered.
        """
        out = splat(snapshot(scene, camera), camera, values, scene.raster_settings())
        return out[..., :-1], out[..., -1]

    def _lengths(self, found: FeatureField) -> Tensor:
        """[N] lengths of the decoded features."""
        rows = max(1, _ROWS // found.out_dim)
        return torch.cat([found.decode(codes).norm(dim=1) for codes in found.codes.split(rows)])

    def _scores(self, products: Tensor, lengths: Tensor) -> Tensor:
        """[P, M] of products [M, P + C] with the phrases and lengths [M] of the features."""
        cosines = (products / lengths.clamp_min(1e-12)[:, None]).T  # [P + C, M]
        own, others = cosines[: len(self.prompts)], cosines[len(self.prompts) :]
        out = torch.empty_like(own)
        for i, beats in enumerate(self.beats):
            if bool(beats.any()):
                rival = others[beats].amax(0)
                out[i] = (self.temperature * (own[i] - rival)).sigmoid()
            else:
                out[i] = own[i].clamp(0, 1)
        return torch.where((lengths > 1e-6) & out.isfinite(), out, 0.0)


def ask(
    scene: Scene,
    phrases: str | Sequence[str],
    field: str | None = None,
    negatives: Sequence[str] = (),
    compete: bool = False,
) -> TextQuery:
    """Make phrases ready for a field.

    Args:
        phrases: one or several prompts.
        field: name of the field; default the scene's last one that answers text.
        negatives: phrases that every prompt has to beat too.
        compete: every prompt has to beat the other prompts too.

    Raises:
        FeaturesplatError: no prompt or an empty one, no such field, a field without text, a phrase that its closed
            vocabulary lacks, a field and a teacher of different dimensions.
    """
    wanted = _checked([phrases] if isinstance(phrases, str) else list(phrases), "prompt")
    against = _checked(list(negatives), "negative") if negatives else []
    name, found = _text_field(scene, field)
    vocabulary = _Vocabulary(name, found)
    rivals = [*vocabulary.rivals, *against]
    if compete:
        rivals += [w for w in wanted if w not in rivals]
    rivals = list(dict.fromkeys(rivals))
    prompts, contrast = vocabulary.encode(wanted), vocabulary.encode(rivals)
    same = [[vocabulary.key(w) != vocabulary.key(r) for r in rivals] for w in wanted]
    beats = torch.tensor(same, dtype=torch.bool).reshape(len(wanted), len(rivals))
    query = TextQuery(tuple(wanted), name, vocabulary.closed, prompts, contrast, beats)
    query._vectors(found)
    return query


def score(
    scene: Scene, phrases: str | Sequence[str], field: str | None = None, negatives: Sequence[str] = ()
) -> Tensor:
    """[P, N] scores in 0..1 of the scene's Gaussians; see `ask`."""
    return ask(scene, phrases, field, negatives).gaussians(scene)


def score_view(
    scene: Scene,
    camera: Cameras,
    phrases: str | Sequence[str],
    field: str | None = None,
    negatives: Sequence[str] = (),
) -> Tensor:
    """[P, H, W] scores in 0..1 of one camera's pixels; see `ask`."""
    return ask(scene, phrases, field, negatives).view(scene, camera)


def answers_text(found: FeatureField) -> bool:
    """Whether a field can be asked by text."""
    if found.text is not None:
        return True
    if found.teacher not in registry.names("teachers") or found.info.get("teacher", {}).get("text") == "":
        return False  # a folder of maps says with "" that it brought no phrases
    return hasattr(registry.load("teachers", found.teacher), "text_side")


def labels_of(scene: Scene, field: str | None = None) -> tuple[str, ...]:
    """The labels of a field with a closed vocabulary, without the background's; () for one that takes any phrase.

    Raises:
        FeaturesplatError: as `ask`.
    """
    vocabulary = _Vocabulary(*_text_field(scene, field))
    if not vocabulary.closed or vocabulary.table is None:
        return ()
    return tuple(p for p in vocabulary.table.phrases if _key(p) != BACKGROUND)


def relevancy_masks(scores: Tensor, level: float = 0.4) -> Tensor:
    """bool [P, H, W] of relevancies [P, H, W] as LangSplat (Qin et al. 2024) cuts them.

    The map averaged with its mean over 30x30 pixels, stretched from its minimum and maximum to -1..1, above
    ``level``. It always finds something: for what may be absent, look at the scores.
    """
    smooth = (scores + _box_mean(scores, 30)) / 2
    low, high = smooth.flatten(1).amin(1), smooth.flatten(1).amax(1)
    scale = torch.where(high > low, high - low, 1.0)
    stretched = (smooth - low[:, None, None]) / scale[:, None, None] * 2 - 1
    return (stretched > level) & (scores > 0)


def _box_mean(maps: Tensor, size: int) -> Tensor:
    """Mean over ``size`` x ``size`` pixels of [P, H, W], over the pixels that the window finds inside."""
    before, after = (size - 1) // 2, size // 2

    def along(values: Tensor) -> Tensor:
        """Windowed sums along the last axis, by differences of running sums."""
        run = torch.nn.functional.pad(values.double().cumsum(-1), (1, 0))
        at = torch.arange(values.shape[-1], device=values.device)
        return run[..., (at + after + 1).clamp_max(len(at))] - run[..., (at - before).clamp_min(0)]

    both = along(along(maps).transpose(1, 2)).transpose(1, 2)
    ones = along(along(torch.ones_like(maps[:1])).transpose(1, 2)).transpose(1, 2)
    return (both / ones).to(maps.dtype)


def _checked(phrases: list[str], what: str) -> list[str]:
    phrases = [" ".join(p.split()) for p in phrases]
    if not phrases or not all(phrases):
        raise FeaturesplatError(f"{what}: expected a phrase, got nothing", 'Say what to look for, such as "red mug".')
    longest = max(len(p) for p in phrases)
    if longest > 1000:
        raise FeaturesplatError(f"{what}: expected at most 1000 characters, got {longest}", "Use a short phrase.")
    return phrases


def _text_field(scene: Scene, name: str | None) -> tuple[str, FeatureField]:
    if name is not None or not scene.fields:
        name, found = scene.field(name)
        if not answers_text(found):
            raise FeaturesplatError(
                f"field '{name}': its teacher '{found.teacher}' makes features that text cannot ask for",
                f"Ask by point or box, or add a field of one of: {', '.join(teachers.text_teachers())}.",
            )
        return name, found
    for name in reversed(scene.fields):
        if answers_text(scene.fields[name]):
            return name, scene.fields[name]
    raise FeaturesplatError(
        f"none of this scene's fields ({', '.join(scene.fields)}) answers text",
        f"Ask by point or box, or add a field of one of: {', '.join(teachers.text_teachers())}.",
    )


def _key(phrase: str) -> str:
    return " ".join(phrase.replace("_", " ").lower().split())


class _Vocabulary:
    """How a field's teacher understands phrases.

    Attributes:
        table: the field's own table of phrases, or None.
        closed: only the table's phrases are understood, and they compete.
        rivals: what every prompt has to beat.
    """

    def __init__(self, name: str, found: FeatureField):
        self.name, self.found, self.table = name, found, found.text
        canonical: tuple[str, ...] = teachers.CANONICAL
        if self.table is None:
            canonical = tuple(_side(found.teacher, _settings(found)).canonical)
            self.closed = False
            self.rivals = list(canonical or (OTHER,))
        else:
            self._rows = {_key(p): i for i, p in enumerate(self.table.phrases)}
            self.closed = not all(_key(c) in self._rows for c in canonical)
            self.rivals = list(self.table.phrases if self.closed else canonical)

    def key(self, phrase: str) -> str:
        return _key(phrase)

    def encode(self, phrases: Sequence[str]) -> Tensor:
        """[P, F] unit embeddings."""
        if self.table is not None:
            return normalize(self.table.vectors[[self._row(p) for p in phrases]].float(), dim=1)
        return normalize(_encode(self.found.teacher, _settings(self.found), tuple(phrases)), dim=1)

    def _row(self, phrase: str) -> int:
        row = self._rows.get(_key(phrase))
        if row is None:
            known = [p for p in (self.table.phrases if self.table else ()) if _key(p) != BACKGROUND]
            close = difflib.get_close_matches(_key(phrase), [_key(k) for k in known], n=1)
            hint = f"Perhaps you meant '{close[0]}'. " if close else ""
            listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
            message = f"'{phrase}': the field '{self.name}' knows a fixed list of phrases, and not this one"
            raise FeaturesplatError(message, f"{hint}Known: {listed}.")
        return row


def _settings(found: FeatureField) -> str:
    return json.dumps(found.info.get("teacher", {}), sort_keys=True, default=str)


@lru_cache(maxsize=4)
def _side(teacher: str, settings: str) -> teachers.TextSide:
    """The answering half of a teacher; loading one takes seconds."""
    return teachers.text_side(teacher, json.loads(settings))


@lru_cache(maxsize=256)
def _encode(teacher: str, settings: str, phrases: tuple[str, ...]) -> Tensor:
    with torch.no_grad():
        return _side(teacher, settings).encode_text(phrases).detach().cpu().float()
