"""Ask a run for things, by phrase, point or box."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from featuresplat.verbs._shared import Flag, Run, given
from featuresplat.verbs._shared import progress as progress_bar

ORDER = 35

Point = tuple[float, float]
Points = tyro.conf.UseAppendAction[tuple[Point, ...]]
Phrases = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar='"PHRASE" ...', help_behavior_hint="")]


def run(
    run: Run = "",
    phrases: Phrases = (),
    point: Points = (),
    not_point: Points = (),
    box: tuple[float, float, float, float] | None = None,
    view: str = "",
    views: Literal["test", "train", "all"] = "test",
    masks: Path | None = None,
    scores: Flag = False,
    overlays: Path | None = None,
    gaussians: Flag = False,
    objects: Flag = False,
    save: Path | None = None,
    negative: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    compete: Flag = False,
    field: str | None = None,
    threshold: float | None = None,
    device: str = "auto",
    quiet: Flag = False,
) -> None:
    """Ask a run for things: by phrases, which need a field of a teacher that knows text, or by points or a box in one
    view, which need none. Without --masks, --overlays or --save, pictures go to RUN/queries.

    Args:
        run: Folder that train made.
        phrases: What to look for.
        point: X Y on the object, in pixels of the photograph's full size; may be given several times.
        not_point: X Y off the object.
        box: X0 Y0 X1 Y1 around the object.
        view: Photograph that points and box lie in.
        views: Which views to answer in.
        masks: Folder for masks at the photographs' size, PHRASE/VIEW.png (points and boxes: VIEW.png), and scores.json.
        scores: Also write the scores of each view beside its mask, as VIEW.npy.
        overlays: Folder for pictures of what was found.
        gaussians: Score the Gaussians and render those selected, in place of scoring pixels.
        objects: Render the whole objects that phrases mean, as edits take them: what stands on a table, or the table.
        save: File for the Gaussians found: .ply, .compressed.ply, .splat or .spz.
        negative: A phrase that all others have to beat; may be given several times.
        compete: Phrases have to beat each other.
        field: Which field is asked; default the last one that knows text.
        threshold: Scores above are in; default the rule of the field's kind of vocabulary.
        device: auto, cpu, cuda or cuda:N.
        quiet: No progress bar.
    """
    folder = given("query", run, "the folder of a run", 'runs/NAME "red mug"')
    from featuresplat.devices import usable_device
    from featuresplat.query import Prompt, query_scene, views_of
    from featuresplat.scene import Scene

    points = tuple((x, y, 1) for x, y in point) + tuple((x, y, 0) for x, y in not_point)
    prompt = Prompt(phrases, negative, compete, field, threshold, gaussians, points, box, view, objects)
    prompt.check()
    scene = Scene.load(folder).to(usable_device(device))
    if masks is None and overlays is None and save is None:
        overlays = folder / "queries"
    answer = query_scene(
        scene,
        prompt,
        views_of(scene, views),
        masks=masks,
        overlays=overlays,
        maps=scores,
        save=save,
        progress=None if quiet else progress_bar,
    )
    for phrase, found in answer.scores.get("phrases", {}).items():
        print(f"{phrase}: best Gaussian {found['max']:.2f}, {found['gaussians_above_half']} above 0.5")
    for name, count in answer.scores.get("selected", {}).items():
        print(f"{name}: {count} of {len(scene.gaussians)} Gaussians selected")
    for place in (masks, overlays, save):
        if place is not None:
            print(f"written to {place}")
