"""Write the Gaussians of a run in a file."""

from __future__ import annotations

from typing import Annotated

import tyro

from featuresplat.verbs._shared import Flag, Run, given

ORDER = 60


def run(
    run: Run = "",
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT", help_behavior_hint="")] = "",
    plain: Flag = False,
) -> None:
    """Write the Gaussians of a run, or of a file, in the format that the ending of OUT chooses.

    Args:
        run: Folder that train made, or a .ply, .compressed.ply, .splat or .spz file.
        out: File to write: .ply (everything), .compressed.ply, .splat or .spz.
        plain: Only the properties that every tool knows: no features.
    """
    source = given("export", run, "the folder of a run, or a file of Gaussians", "runs/NAME OUT.ply")
    target = given("export", out, "the file to write", f"{run} OUT.ply")
    from featuresplat.export import export_run

    count = export_run(source, target, plain=plain)
    print(f"{target}: {count} Gaussians, {target.stat().st_size / 1e6:.1f} MB")
