"""Ask a finished run: phrases, points or a box in; masks, pictures, scores and Gaussians out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import atomic_write_json
from featuresplat.io.colormap import colormap
from featuresplat.io.formats import ending_of, save_gaussians
from featuresplat.io.images import write_image
from featuresplat.prompts import spatial, text
from featuresplat.prompts.photographs import full_size_views, view_named
from featuresplat.prompts.selection import Selection
from featuresplat.prompts.targets import select_text
from featuresplat.render import file_names, write_array
from featuresplat.scene import Scene
from featuresplat.types import Cameras

FORMAT = 1
SCORES = "scores.json"
TINT = (1.0, 0.25, 0.1)
"""Colour that overlays give to what was found."""

Progress = Callable[[Iterable[int], str], Iterable[int]]


@dataclass(frozen=True)
class Prompt:
    """What a run is asked; phrases, or points and a box in one view.

    Attributes:
        phrases: of a text field.
        negatives: what every phrase has to beat too.
        compete: phrases have to beat each other.
        field: name of the field; default the last one that answers text.
        threshold: scores above are in; default the rule of `text.TextQuery.masks`.
        gaussians: score Gaussians and render those that are selected, in place of scoring pixels.
        points: (x, y, label) in pixels of the photograph's full size; label 1 = on the object, 0 = not.
        box: x0, y0, x1, y1 in the same pixels.
        view: name of the photograph that points and box lie in.
        objects: render the whole objects that phrases mean (`targets.select_text`), as edits take them.
    """

    phrases: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()
    compete: bool = False
    field: str | None = None
    threshold: float | None = None
    gaussians: bool = False
    points: tuple[tuple[float, float, int], ...] = ()
    box: spatial.Box | None = None
    view: str = ""
    objects: bool = False

    def check(self) -> None:
        """Raises FeaturesplatError: nothing is asked, or two things at once, or by a threshold that is none."""
        pointed = bool(self.points) or self.box is not None
        if not self.phrases and not pointed:
            raise FeaturesplatError(
                "query: expected a phrase, a point or a box, got none",
                'Ask: featuresplat query RUN "red mug", or --point X Y --view NAME.',
            )
        if self.phrases and pointed:
            raise FeaturesplatError("query: got a phrase and a point or box", "Ask for one at a time.")
        if pointed and not self.view:
            raise FeaturesplatError("query: a point or box lies in a view, but none is named", "Add --view NAME.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise FeaturesplatError(
                f"threshold: expected 0 to 1, as scores are, got {self.threshold}", "Leave it out, or begin with 0.5."
            )


@dataclass
class Answer:
    """What was found.

    Attributes:
        slugs: folder name of each phrase; "" for points and boxes.
        scores: the content of scores.json.
        files: all files written.
        selections: the Gaussians of each phrase, or the one selection; filled when Gaussians were asked for.
    """

    slugs: list[str]
    scores: dict[str, Any]
    files: list[Path] = field(default_factory=list)
    selections: list[Selection] = field(default_factory=list)


def query_scene(
    scene: Scene,
    prompt: Prompt,
    cameras: Cameras | None = None,
    *,
    masks: str | Path | None = None,
    overlays: str | Path | None = None,
    maps: bool = False,
    save: str | Path | None = None,
    progress: Progress | None = None,
) -> Answer:
    """Ask a scene and write what was asked for.

    ``MASKS/<slug>/<photograph's stem>.png`` are 0 or 255, at the size of ``cameras``; for points and boxes they lie
    in MASKS itself. ``MASKS/scores.json`` says, by phrase and view, the highest score, where it is, and how many
    pixels are in. With ``maps``, ``<stem>.npy`` beside each mask holds the scores, float32 [H, W].

    Args:
        cameras: views to answer in; default the test views at their photographs' full size.
        masks, overlays: folders; nothing of the kind is written when None.
        save: file for the Gaussians found, one per phrase (the slug goes before the ending when there are several).

    Raises:
        FeaturesplatError: what the prompts raise; no such views.
    """
    prompt.check()
    if save is not None:
        ending_of(save)
    cameras = views_of(scene, "test") if cameras is None else cameras
    if prompt.phrases:
        asked = text.ask(scene, prompt.phrases, prompt.field, prompt.negatives, prompt.compete)
        slugs = slugs_of(asked.phrases)
        answer = Answer(slugs, {"format": FORMAT, "field": asked.field, "closed_vocabulary": asked.closed})
    else:
        asked, answer = None, Answer([""], {"format": FORMAT})
    if asked is None:
        answer.selections = [pointed(scene, prompt)]
    elif prompt.gaussians and not prompt.objects:
        found = asked.masks(asked.gaussians(scene), prompt.threshold)
        answer.selections = [Selection(m, p) for m, p in zip(found, asked.phrases, strict=True)]
    elif save is not None or prompt.objects:
        names = asked.phrases
        answer.selections = [select_text(scene, p, asked.field, prompt.threshold) for p in names]
    if save is not None:
        answer.files += _save(scene, answer, Path(save))
    by_gaussians = asked is None or prompt.gaussians or prompt.objects
    if masks is not None or overlays is not None:
        _write_views(scene, prompt, None if by_gaussians else asked, cameras, answer, masks, overlays, maps, progress)
    _describe(scene, asked, answer)
    if masks is not None:
        path = Path(masks) / SCORES
        atomic_write_json(path, answer.scores)
        answer.files.append(path)
    return answer


def views_of(scene: Scene, part: str) -> Cameras:
    """The ``test``, ``train`` or ``all`` views of a scene, as their photographs lie on disk.

    Raises:
        FeaturesplatError: there are none of them.
    """
    if part not in ("test", "train", "all"):
        raise FeaturesplatError(f"views: there are none called '{part}'", "Use test, train or all.")
    names = list(scene.cameras.names) if part == "all" else scene.names(part)
    if not names:
        raise FeaturesplatError(f"views: this run holds no {part} views", "Use --views all.")
    return full_size_views(scene, names)


def pointed(scene: Scene, prompt: Prompt) -> Selection:
    """What points or a box mean."""
    view = view_named(scene, prompt.view)
    points, labels = [p[:2] for p in prompt.points], [p[2] for p in prompt.points]
    return spatial.select_points(scene, view, points, labels, prompt.box).selection


def slugs_of(phrases: Sequence[str]) -> list[str]:
    """A folder name for each phrase: lower case, letters and digits, underscores between words; no two alike."""
    out: list[str] = []
    for phrase in phrases:
        slug = re.sub(r"[^\w]+", "_", phrase.lower()).strip("_")[:80] or "prompt"
        number = 2
        while slug in out:
            slug = f"{slug.rsplit('__', 1)[0]}__{number}"
            number += 1
        out.append(slug)
    return out


def _write_views(
    scene: Scene,
    prompt: Prompt,
    asked: text.TextQuery | None,
    cameras: Cameras,
    answer: Answer,
    masks: str | Path | None,
    overlays: str | Path | None,
    maps: bool,
    progress: Progress | None,
) -> None:
    stems = file_names(list(cameras.names))
    wrap: Progress = progress or (lambda numbers, word: numbers)
    views: list[dict[str, Any]] = [{} for _ in answer.slugs]
    for i in wrap(range(len(cameras)), "views"):
        camera = cameras[i]
        scores = None if asked is None else asked.view(scene, camera)
        if asked is None or scores is None:
            found = spatial.masks_of(scene, camera, answer.selections)
        else:
            found = asked.masks(scores, prompt.threshold)
        rgb = None
        for k, slug in enumerate(answer.slugs):
            views[k][stems[i]] = _summary(found[k], None if scores is None else scores[k])
            if masks is not None:
                path = Path(masks) / slug / f"{stems[i]}.png"
                write_image(path, found[k].to(torch.uint8) * 255)
                answer.files.append(path)
                if maps and scores is not None:
                    write_array(path.with_suffix(".npy"), scores[k])
                    answer.files.append(path.with_suffix(".npy"))
            if overlays is not None:
                if rgb is None:
                    rgb = scene.render(camera, exposure=True).rgb
                    assert rgb is not None
                path = Path(overlays) / slug / f"{stems[i]}.png"
                write_image(path, overlay(rgb[0], found[k], None if scores is None else scores[k]))
                answer.files.append(path)
    answer.scores["views"] = dict(zip(answer.slugs, views, strict=True)) if answer.slugs != [""] else views[0]


def overlay(rgb: Tensor, mask: Tensor, scores: Tensor | None = None) -> Tensor:
    """float [H, W, 3]: an image with what was found tinted and outlined; beside it, the scores as heat if given."""
    rgb = rgb.clamp(0, 1).cpu()
    mask = mask.cpu()
    grey = rgb.mean(-1, keepdim=True).expand(-1, -1, 3)
    tint = torch.tensor(TINT)
    out = torch.where(mask[..., None], 0.65 * rgb + 0.35 * tint, 0.35 * rgb + 0.35 * grey)
    inner = -torch.nn.functional.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0] > 0.5
    out = torch.where((mask & ~inner)[..., None], tint, out)
    if scores is None:
        return out
    heat = colormap(scores).float() / 255
    return torch.cat([out, 0.4 * rgb + 0.6 * heat], dim=1)


def _summary(mask: Tensor, scores: Tensor | None) -> dict[str, Any]:
    out: dict[str, Any] = {"pixels": int(mask.sum()), "share": round(float(mask.float().mean()), 6)}
    if scores is not None:
        at = int(scores.argmax())
        height, width = scores.shape
        out |= {"max": round(float(scores.max()), 6), "peak": [at % width, at // width], "size": [width, height]}
    else:
        out["size"] = [mask.shape[1], mask.shape[0]]
    return out


def _describe(scene: Scene, asked: text.TextQuery | None, answer: Answer) -> None:
    """What scores.json says beside the views."""
    if asked is not None:
        values = asked.gaussians(scene)
        answer.scores["phrases"] = {
            phrase: {
                "slug": slug,
                "gaussians_above_half": int((values[k] > 0.5).sum()),
                "max": round(float(values[k].max()), 6),
                "mean": round(float(values[k].mean()), 6),
            }
            for k, (phrase, slug) in enumerate(zip(asked.phrases, answer.slugs, strict=True))
        }
    if answer.selections:
        answer.scores["selected"] = {s.name or "prompt": s.count for s in answer.selections}


def _save(scene: Scene, answer: Answer, path: Path) -> list[Path]:
    """The Gaussians found, with their features, in one file per phrase."""
    written = []
    ending = ending_of(path)
    for slug, selection in zip(answer.slugs, answer.selections, strict=True):
        if selection.count == 0:
            raise FeaturesplatError(
                f"'{selection.name}': no Gaussian is selected, so there is nothing to save",
                "Lower --threshold, or ask for something else.",
            )
        stem = str(path)[: -len(ending)]
        target = path if len(answer.slugs) == 1 else Path(f"{stem}-{slug}{ending}")
        some = scene.rows(selection.mask)
        codes = {id(f.codes): f.codes for f in some.fields.values()}
        features = torch.cat(list(codes.values()), dim=1) if codes else None
        save_gaussians(target, some.gaussians, features)
        written.append(target)
    return written
