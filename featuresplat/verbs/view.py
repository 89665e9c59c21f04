"""Look at a run in the browser: ask, click, edit, export."""

from __future__ import annotations

from typing import Annotated

import tyro

from featuresplat.verbs._shared import Flag, given

ORDER = 40
Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN", help_behavior_hint="")]


def run(
    run: Source = "",
    host: str = "127.0.0.1",
    port: int = 8080,
    token: str | None = None,
    device: str = "auto",
    open: Flag = False,
) -> None:
    """Serve a viewer for the browser until Ctrl-C.

    Args:
        run: Folder that train made, or a file of Gaussians (.ply, .compressed.ply, .splat, .spz).
        host: 127.0.0.1 answers this machine only; 0.0.0.0 answers everybody who knows the token.
        port: Or the next one that is free; it is printed.
        token: What other machines have to know; default a new one each time, printed.
        device: auto, cpu, cuda or cuda:N.
        open: Open a browser here.
    """
    source = given("view", run, "the folder of a run, or a file of Gaussians", "runs/NAME")
    from featuresplat.viewer import start  # pyright: ignore[reportMissingImports]

    app, lines = start(source, host=host, port=port, token=token, device=device)
    print("\n".join(lines))
    print("Ctrl-C ends the viewer.", flush=True)
    if open:
        import webbrowser

        webbrowser.open(lines[0].split()[-1])
    app.wait()
