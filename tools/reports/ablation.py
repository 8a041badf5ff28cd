"""Tables of a study: ablation.csv has a row per run, ablation.md one per variant, as Table 1 of the paper."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edm2.post_hoc_ema import atomic_output
from edm2.study.diagnostics import DiagnosticsSummary, geometric_means, read_diagnostics_summary, unevenness
from edm2.study.study import Failure, Outcome, Scoring, Trial
from edm2.study.summary import Spread, Summary, best_common_length, differing_settings, spread, summarize
from edm2.tools.figures.ablation import draw_distances, draw_losses
from edm2.tools.figures.style import save_figure
from edm2.training.diagnostics.holdout import LossPerLevel

Row = Sequence[object]


@dataclass(frozen=True)
class Report:
    """What a study has found so far."""

    trials: Sequence[Trial]
    """All of the study; those of one variant after those of another, or seed by seed."""
    results: Sequence[Outcome | Failure]
    """Of those that are finished."""
    scoring: Scoring
    """How they were scored."""
    command: str
    """What makes a run, but for variant and seed."""
    fixed: float | None = None
    """EMA length to compare all variants at; None: the one that suits all best."""

    @cached_property
    def summaries(self) -> list[Summary]:
        """Of the variants, in the order asked for."""
        return summarize(list(dict.fromkeys(trial.label for trial in self.trials)), self.results)

    @property
    def scored(self) -> list[Summary]:
        """Of those with at least one finished run."""
        return [summary for summary in self.summaries if summary.outcomes]

    @property
    def outcomes(self) -> list[Outcome]:
        """Variant by variant."""
        return [outcome for summary in self.summaries for outcome in summary.outcomes]

    @cached_property
    def settings(self) -> dict[str, dict[str, object]]:
        """By variant, those that differ."""
        return differing_settings(self.trials)

    @cached_property
    def common_length(self) -> float:
        """The one length for all variants."""
        return best_common_length(self.scored) if self.fixed is None else self.fixed

    @cached_property
    def readings(self) -> dict[str, list[DiagnosticsSummary]]:
        """By variant, of its runs that recorded diagnostics."""
        done = {(outcome.label, outcome.seed) for outcome in self.outcomes}
        finished = [trial for trial in self.trials if (trial.label, trial.seed) in done]
        found = [(trial.label, read_diagnostics_summary(trial.folder.path)) for trial in finished]
        return {s.label: [r for label, r in found if label == s.label and r is not None] for s in self.summaries}

    @property
    def real_data_fd(self) -> float | None:
        """Distance of as many real images."""
        return self.outcomes[0].real_data_fd

    def write(self, folder: Path) -> None:
        """All tables and figures; those of distances only if there are any."""
        write_runs(folder / "ablation.csv", self)
        write_table(folder / "ablation.md", self)
        if self.scored:
            write_losses(folder / "losses.csv", self.outcomes)
            title = self.scoring.evaluator.title
            save_figure(draw_distances(self.scored, title, self.real_data_fd), folder / "ablation.png")
            save_figure(draw_losses(self.scored), folder / "losses.png")


# ------------------------------------------------------------------------------------------------------- CSV tables


def write_runs(path: Path, report: Report) -> None:
    """ablation.csv: one row per run."""
    lengths = report.scoring.sigma_rels
    rows: list[Row] = [(
        "label", "seed", "settings", "best_sigma_rel", "distance", *(f"distance_at_{s:.4f}" for s in lengths), "raw",
        "traditional", "traditional_sigma_rel", "real_images", "accuracy", "heldout_loss", "training_loss", "seconds",
        "parameters", "failure",
    )]  # fmt: skip
    for summary in report.summaries:
        settings = " ".join(f"{name}={value}" for name, value in _plain(report.settings[summary.label]).items())
        found = sorted([*summary.outcomes, *summary.failures], key=lambda result: result.seed)
        rows += [(result.label, result.seed, settings, *_cells(result, lengths)) for result in found]
    _write_csv(path, rows)


def _cells(result: Outcome | Failure, lengths: Sequence[float]) -> Row:
    if isinstance(result, Failure):
        return *[""] * (len(lengths) + 11), result.message
    return (
        f"{result.best:.4f}", result.distance, *(result.distances[s] for s in lengths), result.raw, result.traditional,
        result.traditional_length, result.real_data_fd, result.accuracy, result.levels.mean if result.held_out else None,
        result.training_loss, f"{result.seconds:.1f}", result.parameters, "",
    )  # fmt: skip


def write_losses(path: Path, outcomes: Iterable[Outcome]) -> None:
    """losses.csv: one row per run and noise level, with lambda(sigma) (D - y)² as EDM weights it, per element."""
    rows: list[Row] = [("label", "seed", "sigma", "loss", "images")]
    for outcome in outcomes:
        images = "held out" if outcome.held_out else "training"
        rows += [(outcome.label, outcome.seed, *level, images) for level in _pairs(outcome.levels)]
    _write_csv(path, rows)


def _pairs(levels: LossPerLevel) -> Iterable[tuple[float, float]]:
    return zip(levels.sigmas, levels.losses, strict=True)


def _write_csv(path: Path, rows: Iterable[Row]) -> None:
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def _plain(settings: dict[str, object]) -> dict[str, str]:
    """Values as people write them, without spaces."""
    return {name: _text(value).replace(" ", "") for name, value in settings.items()}


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------- Markdown table

Column = Callable[[Summary], str]


def write_table(path: Path, report: Report) -> None:
    """ablation.md: variants with mean and standard deviation over seeds, and the settings in which they differ."""
    parts = [_heading(report)]
    if report.scored:
        parts += [_markdown(_columns(report), report.summaries), _how_to_read(report)]
    if any(report.readings.values()):
        parts += ["## Diagnostics", _markdown(_diagnostics(report), report.summaries), HOW_TO_READ_DIAGNOSTICS]
    parts += [f"{failure.label}, seed {failure.seed}, failed: {failure.message}" for failure in _failures(report)]
    settings = {name: _setting(report, name) for name in next(iter(report.settings.values()))}
    parts.append("## Settings that differ\n\n" + _markdown(settings, report.summaries))
    with atomic_output(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _heading(report: Report) -> str:
    config, missing = report.trials[0].config, len(report.trials) - len(report.results)
    so_far = f" So far: {missing} of {len(report.trials)} runs are missing." if missing else ""
    return (
        f"# Ablation on {config.data}\n\nEvery run is `{report.command}` with the options of its variant and its seed, "
        f"{config.duration:,} images.{so_far}"
    )


def _columns(report: Report) -> dict[str, Column]:
    """What the table shows; what no run has is left out."""
    columns: dict[str, Column] = {
        "distance": lambda s: _spread(s.over_seeds(lambda o: o.distance)),
        "best EMA length": lambda s: _range(s.over_seeds(lambda o: o.best)),
        "within 10 %": lambda s: "{:g} to {:g}".format(*s.near) if s.outcomes else "",
        f"at EMA {report.common_length:g}": lambda s: _spread(s.at(report.common_length)),
        "raw weights": lambda s: _spread(s.over_seeds(lambda o: o.raw)),
        "traditional EMA": lambda s: _spread(s.over_seeds(lambda o: o.traditional)),
        "accuracy": lambda s: _spread(s.over_seeds(lambda o: o.accuracy), ".3f"),
        "held-out loss": lambda s: _spread(s.over_seeds(lambda o: o.levels.mean if o.held_out else None)),
        "parameters": lambda s: f"{s.outcomes[0].parameters:,}" if s.outcomes else "",
        "seconds": lambda s: f"{s.over_seeds(lambda o: o.seconds).mean:,.0f}" if s.outcomes else "",
        "seeds": lambda s: str(len(s.outcomes)) + (f" ({len(s.failures)} failed)" if s.failures else ""),
    }
    return {name: cell for name, cell in columns.items() if any(map(cell, report.summaries))}


def _diagnostics(report: Report) -> dict[str, Column]:
    """What the instruments of the runs recorded."""

    def over_runs(quantity: Callable[[DiagnosticsSummary], float]) -> Column:
        return lambda summary: _spread(spread(map(quantity, report.readings[summary.label])), ".3g")

    def uneven(summary: Summary) -> str:
        curves = [readings.gradients for readings in report.readings[summary.label]]
        return f"{unevenness(geometric_means(curves)):.3g}" if curves else ""

    return {
        "largest activation": over_runs(lambda r: r.activation),
        "its growth in the second half": over_runs(lambda r: r.activation_growth),
        "growth of raw weights": over_runs(lambda r: r.weight_growth),
        "relative update": over_runs(lambda r: r.update),
        "gradient, strongest to weakest bin": uneven,
    }


HOW_TO_READ_DIAGNOSTICS = """\
- Activation: root of the mean square of one feature, of the averaged network; growth from the middle of the run.
- Raw weights: mean magnitude at the end over that at the start. Relative update: of one step, mean over the blocks.
- Gradient: norm of the gradient of the loss by bin of noise levels, geometric mean of the second half and all seeds;
  the largest over the smallest. 1 would be flat."""


def _setting(report: Report, name: str) -> Column:
    return lambda summary: _text(report.settings[summary.label][name])


def _markdown(columns: dict[str, Column], summaries: Sequence[Summary]) -> str:
    rows = [["variant", *columns], ["---"] * (1 + len(columns))]
    rows += [[summary.label, *(cell(summary) for cell in columns.values())] for summary in summaries]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _how_to_read(report: Report) -> str:
    scoring, length = report.scoring, report.common_length
    chosen = "the one that suits all best" if report.fixed is None else "as asked for"
    lines = [
        f"Distance: {scoring.evaluator.title} of {scoring.sampling.count:,} samples of {scoring.sampling.num_steps} "
        "steps, at the best EMA length of each run; mean ± standard deviation over seeds."
        + (f" As many real images score {report.real_data_fd:.4g}." if report.real_data_fd is not None else ""),
        "Within 10 %: the EMA lengths around the best one at which the mean distance is at most 10 % above the lowest.",
        f"One EMA length for all: {length:g}, {chosen}.",
    ]
    if len(report.scored) > 1:
        lines.append(
            f"From the best variant to the worst, the distance rises by {_rise(report.scored, lambda o: o.distance)} "
            f"with the best EMA length of each, by {_rise(report.scored, lambda o: o.distances[length])} at one length."
        )
    if any(outcome.held_out for outcome in report.outcomes):
        lines.append(
            "Held-out loss: λ(σ) (D − y)² on images that were not trained on, mean over the levels of losses.csv."
        )
    return "\n".join(f"- {line}" for line in lines)


def _rise(summaries: Sequence[Summary], quantity: Callable[[Outcome], float]) -> str:
    means = [summary.over_seeds(quantity).mean for summary in summaries]
    return f"{max(means) / min(means) - 1:.0%}"


def _failures(report: Report) -> list[Failure]:
    return [failure for summary in report.summaries for failure in summary.failures]


def _spread(value: Spread | None, form: str = ".4g") -> str:
    if value is None:
        return ""
    return format(value.mean, form) + ("" if value.deviation is None else f" ± {value.deviation:.2g}")


def _range(value: Spread | None) -> str:
    if value is None:
        return ""
    span = f" ({value.lowest:g} to {value.highest:g})" if value.highest > value.lowest else ""
    return f"{value.mean:.3g}{span}"
