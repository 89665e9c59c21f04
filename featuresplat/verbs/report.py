"""Write report.html of a run."""

from __future__ import annotations

from featuresplat.verbs._shared import Run, given

ORDER = 70


def run(run: Run = "", prompts: tuple[str, ...] = ()) -> None:
    """Write report.html of a run: one self-contained file of pictures, curves and numbers.

    Args:
        run: Folder that train made.
        prompts: Phrases whose relevancy is shown, for runs with a field that answers text.
    """
    folder = given("report", run, "the folder of a run", "runs/NAME")
    from featuresplat.report import write_report

    print(f"open {write_report(folder, prompts=prompts).resolve().as_uri()}")
