"""Edit a run: by a sentence, a file of edits, or flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from featuresplat.errors import FeaturesplatError
from featuresplat.verbs._shared import Flag, Run, given

ORDER = 40

What = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar='[EDITS.yaml | "SENTENCE"]', help_behavior_hint="")]
Things = tyro.conf.UseAppendAction[tuple[str, ...]]


def run(
    run: Run = "",
    what: What = "",
    remove: Things = (),
    keep: str = "",
    fill: Flag = False,
    out: Path | None = None,
    overwrite: Flag = False,
    dry: Flag = False,
    device: str = "auto",
) -> None:
    """Edit a run and write the result as another run; the run itself stays as it is.

    A sentence is English, by fixed rules: "remove the mug and make the duck blue". A file holds the same as data:

        edits:
        - {kind: remove, target: the mug}
        - {kind: recolor, target: {text: rubber duck}, color: blue}

    Kinds are remove, extract, recolor, transform, duplicate, insert and opacity, and what the run's mode adds. What was
    understood is printed before anything is done, and written to OUT/edits.yaml.

    Args:
        run: Folder that train made.
        what: File of edits (.yaml), or a sentence.
        remove: A thing to remove; may be given several times.
        keep: The only thing to keep.
        fill: Fit the holes of what is removed again, from the views that see behind it.
        out: Run folder to write; default RUN-edited.
        overwrite: Replace OUT if it exists.
        dry: Only say what was understood.
        device: auto, cpu, cuda or cuda:N.
    """
    folder = given("edit", run, "the folder of a run", 'runs/NAME "remove the mug"')
    if not (what or remove or keep):
        raise FeaturesplatError(
            "edit: expected a sentence, a file of edits or --remove, got nothing",
            f'Say what to do: featuresplat edit {run} "remove the mug".',
        )
    from featuresplat.devices import usable_device
    from featuresplat.edit import edit_run, plans_of, target_folder
    from featuresplat.scene import Scene

    place = target_folder(folder, out, overwrite)
    scene = Scene.load(folder)
    edits = plans_of(scene, what, remove, keep, fill)
    for edit in edits:
        print(f"understood: {edit.describe()}")
    if dry:
        return
    edited = edit_run(scene.to(usable_device(device)), edits, place, folder)
    print(f"{len(scene.gaussians)} Gaussians before, {len(edited.gaussians)} after")
    print(f"run     {place}")
    print(f"edits   {place / 'edits.yaml'}")
