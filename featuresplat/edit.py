"""Edit a finished run into another run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from featuresplat.errors import FeaturesplatError
from featuresplat.io.atomic import check_folder
from featuresplat.io.scene_folder import SCENE
from featuresplat.prompts import language
from featuresplat.prompts.edit_files import load_edits, save_edits
from featuresplat.prompts.edits import Edit, Extract, Remove, apply_all
from featuresplat.prompts.targets import Target
from featuresplat.scene import Scene

EDITS = "edits.yaml"


def plans_of(
    scene: Scene, what: str = "", remove: Sequence[str] = (), keep: str = "", fill: bool = False
) -> list[Edit]:
    """The edits that are asked for: of a file or a sentence, then removals, then what to keep.

    Raises:
        FeaturesplatError: no such file, or a sentence that is not understood.
    """
    edits: list[Edit] = []
    if what.lower().endswith((".yaml", ".yml")):
        edits += load_edits(what)
    elif what:
        edits += [plan.edit for plan in language.parse(what, scene)]
    edits += [Remove(Target(text=_named(thing))) for thing in remove]
    if keep:
        edits.append(Extract(Target(text=_named(keep))))
    return [replace(e, fill=True) if fill and isinstance(e, Remove) else e for e in edits]


def target_folder(run: Path, out: Path | None, overwrite: bool) -> Path:
    """Where an edited run goes.

    Raises:
        FeaturesplatError: it exists, or would be the run itself or something that is no run.
    """
    place = out if out is not None else run.resolve().with_name(run.resolve().name + "-edited")
    if place.resolve() == run.resolve():
        raise FeaturesplatError(f"{place}: is the run itself", "Give another folder with --out.")
    if place.exists() and (place.is_file() or any(place.iterdir())):
        if not overwrite:
            raise FeaturesplatError(f"{place}: exists already", "Give another folder with --out, or --overwrite.")
        if not (place / SCENE).is_file():
            raise FeaturesplatError(f"{place}: is no run, so it is not replaced", "Give another folder with --out.")
    check_folder(place)
    return place


def edit_run(scene: Scene, edits: Sequence[Edit], out: str | Path, source: str | Path = "") -> Scene:
    """Apply edits and write the result as a run folder, with the edits themselves in edits.yaml. Returns it.

    Raises:
        FeaturesplatError: an edit cannot be done; nothing is written then.
    """
    edited = apply_all(scene, edits)
    told = [*scene.info.get("edits", []), *(e.describe() for e in edits)]
    edited = replace(edited, info={**edited.info, "edits": told, "edited_from": str(source)})
    out = Path(out)
    if out.is_dir():  # an old run: its figures and pictures are of another scene
        shutil.rmtree(out)
    edited.to("cpu").save(out)
    save_edits(out / EDITS, edits)
    return edited


def _named(thing: str) -> str:
    """A thing without its article."""
    first, _, rest = thing.strip().partition(" ")
    return rest.strip() if first.lower() in ("the", "a", "an") and rest.strip() else thing.strip()
