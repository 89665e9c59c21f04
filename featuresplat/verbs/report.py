"""Write report.html of a run."""

from __future__ import annotations

from featuresplat.verbs._shared import Run, given

ORDER = 70


def run(run: Run = "") -> None:
    """Write report.html of a run: one self-contained file of pictures, curves and numbers.

    Args:
        run: Folder that train made.
    """
    folder = given("report", run, "the folder of a run", "runs/NAME")
    from featuresplat.report import write_report

    print(f"open {write_report(folder).resolve().as_uri()}")
