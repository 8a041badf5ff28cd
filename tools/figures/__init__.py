"""Figures of `edm2 plot` by name: each draws one run, or compares several in one colour each.

progress     what every run reports: losses, learning rate, speed
diagnostics  what --diagnostics measures
runs         the runs to draw, read from their folders
panels       axes, curves against images seen or noise levels, legends
style        colours, PNG files
sweep        curves of `edm2 sweep`; ablation: those of `edm2 ablate`
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure

from edm2.tools.figures.diagnostics import (
    draw_activations,
    draw_clipped_and_nonfinite,
    draw_gradients,
    draw_uncertainty,
    draw_updates,
    draw_weights,
)
from edm2.tools.figures.progress import draw_error, draw_holdout, draw_number
from edm2.tools.figures.runs import PlottedRun
from edm2.training.run.logging import Record


@dataclass(frozen=True)
class Source:
    """File of a run that a figure's numbers come from."""

    records: Callable[[PlottedRun], list[Record]]
    """Function that returns the records of a run from which the figure is drawn."""
    remedy: str
    """Reason why there are none, and what to do."""


REPORTS = Source(lambda run: run.stats, "nothing reported yet; wait for the first status line (--status)")
ERROR = Source(
    lambda run: [record for record in run.stats if "error" in record],
    "no error reported: the run is of version 0.1, or its loss has none",
)
HOLDOUT = Source(
    lambda run: [record for record in run.stats if "holdout_loss" in record],
    "no held-out loss measured; train with --holdout",
)
DIAGNOSTICS = Source(lambda run: run.diagnostics, "no diagnostics recorded; train with --diagnostics")

Draw = Callable[[Sequence[PlottedRun]], Figure]

FIGURES: dict[str, tuple[Source, Draw]] = {
    "error": (ERROR, draw_error),
    # The objective that is minimized: comparable between runs of the same weighting only.
    "loss": (REPORTS, partial(draw_number, key="loss", title="Training loss", label="training loss per image")),
    "holdout": (HOLDOUT, draw_holdout),
    "lr": (REPORTS, partial(draw_number, key="lr", title="Learning rate", label="learning rate")),
    "speed": (REPORTS, partial(draw_number, key="images_per_second", title="Speed", label="images per second")),
    "activations": (DIAGNOSTICS, draw_activations),
    "weights": (DIAGNOSTICS, draw_weights),
    "updates": (DIAGNOSTICS, draw_updates),
    "gradients": (DIAGNOSTICS, draw_gradients),
    "uncertainty": (DIAGNOSTICS, draw_uncertainty),
    "shares": (DIAGNOSTICS, draw_clipped_and_nonfinite),
}

__all__ = ["FIGURES", "PlottedRun", "Source"]
