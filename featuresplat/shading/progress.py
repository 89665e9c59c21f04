"""The objective of progressive radiance distillation, for pixels or any other samples."""

from __future__ import annotations

from torch import Tensor


def objective(
    mixed: Tensor, truth: Tensor, progress: Tensor | None, weight: float, fit: str = "l1"
) -> dict[str, Tensor]:
    """``physical``: the mean error of the mixture; ``mask``: the pull of the progress to 1.

    With truth I and a converged radiance, the mixture a I_phy + (1 - a) I errs by a |r|, r = I_phy - I, and
    a |r| + weight (1 - a)^2 is least at `stationary`: a residual within 2 weight counts in proportion, one beyond it
    not at all. That makes a truncated robust fit of the physical model.

    Args:
        mixed, truth: [P, 3].
        progress: [P, 1] in 0..1; None leaves the mask out (everything has to be explained).
        fit: "l1", or "l2" for comparison.
    """
    error = mixed - truth
    error = error.abs() if fit == "l1" else error.square()
    terms = {"physical": error.mean() if error.numel() else error.sum()}
    if progress is not None:
        terms["mask"] = weight * (1 - progress).square().mean()
    return terms


def stationary(residual: Tensor, weight: float) -> Tensor:
    """The progress at which `objective` rests: clip(1 - |r| / (2 weight), 0, 1), |r| the mean of channels [..., 3]."""
    return (1 - residual.abs().mean(-1) / (2 * weight)).clamp(0, 1)
