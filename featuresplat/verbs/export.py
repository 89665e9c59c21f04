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
    labels: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar='"PHRASE" ...')] = None,
    instances: Flag = False,
    time: float | None = None,
    frames: int | None = None,
) -> None:
    """Write the Gaussians of a run, or of a file, in the format that the ending of OUT chooses.

    Args:
        run: Folder that train made, or a .ply, .compressed.ply, .splat or .spz file.
        out: File to write: .ply (everything), .compressed.ply, .splat or .spz; of a run of mode inverse also .hdr, .exr
            or .npy: the light that was found, as an environment map.
        plain: Only the properties that every tool knows: no features.
        labels: Add the column `label`: which of these phrases a Gaussian is, -1 for none. Without phrases: those that
            the run's field knows by itself.
        instances: Add the column `instance`: the object a Gaussian belongs to, -1 for none.
        time: In 0..1, of a scene that moves.
        frames: Of a scene that moves: a sequence of so many files over the whole time, OUT_0000.ply and so on.
            OUT.motion.safetensors is the whole motion in one file.
    """
    source = given("export", run, "the folder of a run, or a file of Gaussians", "runs/NAME OUT.ply")
    target = given("export", out, "the file to write", f"{run} OUT.ply")
    from featuresplat.export import export_run

    count = export_run(source, target, plain, labels=labels, instances=instances, time=time, frames=frames)
    if frames is not None:
        print(f"{frames} files {target.stem}_NNNN{target.suffix}: {count} Gaussians each")
        return
    if target.suffix.lower() in (".hdr", ".exr", ".npy"):
        print(f"{target}: environment map, {2 * count}x{count}, {target.stat().st_size / 1e6:.1f} MB")
        return
    print(f"{target}: {count} Gaussians, {target.stat().st_size / 1e6:.1f} MB")
