"""The figures of `edm2 plot`: each draws one run, or compares several in one colour each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from edm2.tools.figures.magnitudes import draw_activations, draw_weights
from edm2.tools.figures.noise_levels import draw_gradients, draw_uncertainty
from edm2.tools.figures.progress import draw_holdout, draw_learning_rate, draw_loss, draw_speed
from edm2.tools.figures.runs import PlottedRun
from edm2.tools.figures.shares import draw_shares
from edm2.tools.figures.updates import draw_updates
from edm2.training.run.logging import Record


@dataclass(frozen=True)
class Source:
    """Where a figure's numbers come from."""

    records: Callable[[PlottedRun], list[Record]]
    """Those of a run that the figure can be drawn from."""
    remedy: str
    """Why there are none, and what to do."""


REPORTS = Source(lambda run: run.stats, "nothing reported yet; wait for the first status line (--status)")
HOLDOUT = Source(
    lambda run: [record for record in run.stats if "holdout_loss" in record],
    "no held-out loss measured; train with --holdout",
)
DIAGNOSTICS = Source(lambda run: run.diagnostics, "no diagnostics recorded; train with --diagnostics")

Draw = Callable[[Sequence[PlottedRun]], Figure]

FIGURES: dict[str, tuple[Source, Draw]] = {
    "loss": (REPORTS, draw_loss),
    "holdout": (HOLDOUT, draw_holdout),
    "lr": (REPORTS, draw_learning_rate),
    "speed": (REPORTS, draw_speed),
    "activations": (DIAGNOSTICS, draw_activations),
    "weights": (DIAGNOSTICS, draw_weights),
    "updates": (DIAGNOSTICS, draw_updates),
    "gradients": (DIAGNOSTICS, draw_gradients),
    "uncertainty": (DIAGNOSTICS, draw_uncertainty),
    "shares": (DIAGNOSTICS, draw_shares),
}
"""By name: what a figure needs, and the function that draws it."""

__all__ = ["FIGURES", "PlottedRun", "Source"]
