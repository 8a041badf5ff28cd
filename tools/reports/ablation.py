"""Tables of a study: ablation.csv has a row per run, ablation.md one per variant, as Table 1 of the paper."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from edm2.post_hoc_ema import atomic_output
from edm2.study.diagnostics import DiagnosticsSummary, geometric_means, read_diagnostics_summary, unevenness
from edm2.study.study import Failure, Outcome, Scoring, Trial
from edm2.study.summary import Spread, Summary, best_common_sigma_rel, differing_settings, spread, summarize
from edm2.tools.figures.ablation import draw_distances, draw_losses
from edm2.tools.figures.style import save_figure

Column = Callable[[Summary], str]
"""Function from a variant to its cell."""

COLUMNS = (
    "label", "seed", "settings", "best_sigma_rel", "distance", "raw", "traditional", "traditional_sigma_rel",
    "real_images", "accuracy", "heldout_loss", "training_loss", "seconds", "parameters", "failure",
)  # fmt: skip
"""Columns of ablation.csv; distances at all EMA lengths stand after `distance`."""

HOW_TO_READ_DIAGNOSTICS = """\
- Activation: root of the mean square of one feature, of the averaged network; growth from the middle of the run.
- Raw weights: mean magnitude at the end over that at the start. Relative update: of one step, mean over the blocks.
- Gradient: norm of the gradient of the loss by bin of noise levels, geometric mean of the second half and all seeds;
  the largest over the smallest. 1 would be flat."""


@dataclass(frozen=True)
class StudyReport:
    """Tables and figures of the finished runs of a study."""

    trials: Sequence[Trial]
    """All trials of the study."""
    results: Sequence[Outcome | Failure]
    """Results of the finished ones."""
    scoring: Scoring
    """Settings of the scoring."""
    command: str
    """Command of a run, without variant and seed."""
    fixed: float | None = None
    """sigma_rel to compare all variants at; None: the one that suits all best."""

    @cached_property
    def summaries(self) -> list[Summary]:
        """Variants in the order asked for."""
        return summarize((trial.label for trial in self.trials), self.results)

    @cached_property
    def scored(self) -> list[Summary]:
        """Variants with at least one outcome."""
        return [summary for summary in self.summaries if summary.outcomes]

    @cached_property
    def settings(self) -> dict[str, dict[str, object]]:
        """Settings that differ, by variant."""
        return differing_settings(self.trials)

    @cached_property
    def common_sigma_rel(self) -> float:
        """The one EMA length for all variants."""
        return best_common_sigma_rel(self.scored) if self.fixed is None else self.fixed

    @property
    def real_data_fd(self) -> float | None:
        """Distance of as many real images."""
        return self.scored[0].outcomes[0].floor

    def write(self, folder: Path) -> None:
        """Write all tables and figures; those of distances only if there are any."""
        distances = (f"distance_at_{sigma_rel:.4f}" for sigma_rel in self.scoring.sigma_rels)
        columns = [*COLUMNS[:5], *distances, *COLUMNS[5:]]
        _write_csv(folder / "ablation.csv", columns, self._runs())
        with atomic_output(folder / "ablation.md") as temporary:
            temporary.write_text("\n\n".join(self._parts()) + "\n", encoding="utf-8")
        if self.scored:
            _write_csv(folder / "losses.csv", ("label", "seed", "sigma", "loss", "images"), self._losses())
            figure = draw_distances(self.scored, self.scoring.evaluator.title, self.real_data_fd)
            save_figure(figure, folder / "ablation.png")
            save_figure(draw_losses(self.scored), folder / "losses.png")

    # --------------------------------------------------------------------------------------------------- CSV tables

    def _runs(self) -> Iterable[dict[str, object]]:
        """Rows of ablation.csv: one per run."""
        for summary in self.summaries:
            settings = [f"{n}={_text(v).replace(' ', '')}" for n, v in self.settings[summary.label].items()]
            results: list[Outcome | Failure] = [*summary.outcomes, *summary.failures]
            for result in sorted(results, key=lambda result: result.seed):
                row = {"label": result.label, "seed": result.seed, "settings": " ".join(settings)}
                if isinstance(result, Failure):
                    yield row | {"failure": result.message}
                    continue
                yield row | {
                    "best_sigma_rel": f"{result.best:.4f}",
                    "distance": result.distance,
                    **{f"distance_at_{sigma_rel:.4f}": value for sigma_rel, value in result.distances.items()},
                    "raw": result.raw,
                    "traditional": result.traditional,
                    "traditional_sigma_rel": result.traditional_length,
                    "real_images": result.floor,
                    "accuracy": result.accuracy,
                    "heldout_loss": result.held_out_loss,
                    "training_loss": result.training_loss,
                    "seconds": f"{result.seconds:.1f}",
                    "parameters": result.parameters,
                }

    def _losses(self) -> Iterable[dict[str, object]]:
        """Rows of losses.csv: one per run and noise level, lambda(sigma) (D - y)² as EDM weights it, per element."""
        for outcome in (outcome for summary in self.scored for outcome in summary.outcomes):
            images = "held out" if outcome.held_out else "training"
            for sigma, loss in zip(outcome.levels.sigmas, outcome.levels.losses, strict=True):
                yield {"label": outcome.label, "seed": outcome.seed, "sigma": sigma, "loss": loss, "images": images}

    # ----------------------------------------------------------------------------------------------- Markdown table

    def _parts(self) -> Iterable[str]:
        """Paragraphs of ablation.md: mean and standard deviation over seeds, and the settings that differ."""
        config, missing = self.trials[0].config, len(self.trials) - len(self.results)
        so_far = f" So far: {missing} of {len(self.trials)} runs are missing." if missing else ""
        yield f"# Ablation on {config.data}"
        yield (
            f"Every run is `{self.command}` with the options of its variant and its seed, {config.duration:,} "
            f"images.{so_far}"
        )
        if self.scored:
            columns = {name: cell for name, cell in self._columns().items() if any(map(cell, self.summaries))}
            yield self._markdown(columns)
            yield "\n".join(f"- {line}" for line in self._how_to_read())
        if diagnostics := self._diagnostics():
            yield "## Diagnostics"
            yield self._markdown(diagnostics)
            yield HOW_TO_READ_DIAGNOSTICS
        for failure in (failure for summary in self.summaries for failure in summary.failures):
            yield f"{failure.label}, seed {failure.seed}, failed: {failure.message}"
        yield "## Settings that differ"
        names = next(iter(self.settings.values()))

        def setting(name: str) -> Column:
            return lambda summary: _text(self.settings[summary.label][name])

        yield self._markdown({name: setting(name) for name in names})

    def _markdown(self, columns: dict[str, Column]) -> str:
        rows = [["variant", *columns], ["---"] * (1 + len(columns))]
        rows += [[summary.label, *(cell(summary) for cell in columns.values())] for summary in self.summaries]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _columns(self) -> dict[str, Column]:
        """Columns of the table; those that no run has are left out."""
        common = self.common_sigma_rel
        return {
            "distance": lambda s: _cell(s.over_seeds(lambda o: o.distance)),
            "best EMA length": lambda s: _range(s.over_seeds(lambda o: o.best)),
            "within 10 %": lambda s: "{:g} to {:g}".format(*s.near) if s.outcomes else "",
            f"at EMA {common:g}": lambda s: _cell(s.over_seeds(lambda o: o.distances[common])),
            "raw weights": lambda s: _cell(s.over_seeds(lambda o: o.raw)),
            "traditional EMA": lambda s: _cell(s.over_seeds(lambda o: o.traditional)),
            "accuracy": lambda s: _cell(s.over_seeds(lambda o: o.accuracy), ".3f"),
            "held-out loss": lambda s: _cell(s.over_seeds(lambda o: o.held_out_loss)),
            "parameters": lambda s: f"{s.outcomes[0].parameters:,}" if s.outcomes else "",
            "seconds": lambda s: f"{s.over_seeds(lambda o: o.seconds).mean:,.0f}" if s.outcomes else "",
            "seeds": lambda s: str(len(s.outcomes)) + (f" ({len(s.failures)} failed)" if s.failures else ""),
        }

    def _diagnostics(self) -> dict[str, Column]:
        """Columns of what the runs' instruments recorded; none if they recorded nothing."""
        scored = {(outcome.label, outcome.seed) for summary in self.scored for outcome in summary.outcomes}
        recorded: dict[str, list[DiagnosticsSummary]] = {summary.label: [] for summary in self.summaries}
        for trial in self.trials:
            if (trial.label, trial.config.seed) in scored and (found := read_diagnostics_summary(trial.folder.path)):
                recorded[trial.label].append(found)
        if not any(recorded.values()):
            return {}

        def over_runs(quantity: str) -> Column:
            return lambda s: _cell(spread(getattr(found, quantity) for found in recorded[s.label]), ".3g")

        def uneven(summary: Summary) -> str:
            curves = [found.gradients for found in recorded[summary.label]]
            return f"{unevenness(geometric_means(curves)):.3g}" if curves else ""

        return {
            "largest activation": over_runs("activation"),
            "its growth in the second half": over_runs("activation_growth"),
            "growth of raw weights": over_runs("weight_growth"),
            "relative update": over_runs("update"),
            "gradient, strongest to weakest bin": uneven,
        }

    def _how_to_read(self) -> Iterable[str]:
        sampling, common = self.scoring.sampling, self.common_sigma_rel
        real = "" if self.real_data_fd is None else f" As many real images score {self.real_data_fd:.4g}."
        yield (
            f"Distance: {self.scoring.evaluator.title} of {sampling.count:,} samples of {sampling.num_steps} steps, at "
            f"the best EMA length of each run; mean ± standard deviation over seeds.{real}"
        )
        yield (
            "Within 10 %: the EMA lengths around the best one at which the mean distance is at most 10 % above the "
            "lowest."
        )
        yield f"One EMA length for all: {common:g}, {'as asked for' if self.fixed else 'the one that suits all best'}."
        if len(self.scored) > 1:
            yield (
                "From the best variant to the worst, the distance rises by "
                f"{_rise(self.scored, lambda o: o.distance)} with the best EMA length of each, by "
                f"{_rise(self.scored, lambda o: o.distances[common])} at one length."
            )
        if any(outcome.held_out for summary in self.scored for outcome in summary.outcomes):
            yield "Held-out loss: λ(σ) (D − y)² on images that were not trained on, mean over the levels of losses.csv."


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _rise(summaries: Sequence[Summary], quantity: Callable[[Outcome], float]) -> str:
    means = [found.mean for summary in summaries if (found := summary.over_seeds(quantity))]
    return f"{max(means) / min(means) - 1:.0%}"


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cell(value: Spread | None, form: str = ".4g") -> str:
    if value is None:
        return ""
    return format(value.mean, form) + ("" if value.deviation is None else f" ± {value.deviation:.2g}")


def _range(value: Spread | None) -> str:
    if value is None:
        return ""
    span = f" ({value.lowest:g} to {value.highest:g})" if value.highest > value.lowest else ""
    return f"{value.mean:.3g}{span}"
