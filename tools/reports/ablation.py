"""Tables of a study: ablation.csv has a row per run, ablation.md one per variant, as Table 1 of the paper."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from edm2.post_hoc_ema import atomic_output
from edm2.study.study import Failure, Outcome, Scoring, Trial
from edm2.study.summary import (
    Summary,
    best_common_sigma_rel,
    differing_settings,
    geometric_means,
    mean_and_deviation,
    read_diagnostics,
    summarize,
)
from edm2.tools.figures.ablation import draw_distances, draw_losses
from edm2.tools.figures.style import save_figure

Column = Callable[[Summary], str]
"""Function from a variant to its cell."""

HOW_TO_READ_DIAGNOSTICS = """\
- Activation: root of the mean square of one feature, of the averaged network; growth from the middle of the run.
- Raw weights: mean magnitude at the end over that at the start. Relative update: of one step, mean over the blocks.
- Gradient: norm of the gradient of the loss by bin of noise levels, geometric mean of the second half and all seeds;
  the largest over the smallest. 1 would be flat."""


@dataclass(frozen=True)
class StudyReport:
    """Tables and figures of the finished runs of a study."""

    trials: Sequence[Trial]
    results: Sequence[Outcome | Failure]
    scoring: Scoring
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

    def write(self, folder: Path) -> None:
        """Write all tables and figures; those of distances only if there are any."""
        _write_csv(folder / "ablation.csv", ("label", "seed", "settings", *self._cells(), "failure"), self._runs())
        with atomic_output(folder / "ablation.md") as temporary:
            temporary.write_text("\n\n".join(self._paragraphs()) + "\n", encoding="utf-8")
        if self.scored:
            _write_csv(folder / "losses.csv", ("label", "seed", "sigma", "loss", "images"), self._losses())
            figure = draw_distances(self.scored, self.scoring.evaluator.title, self.scored[0].outcomes[0].floor)
            save_figure(figure, folder / "ablation.png")
            save_figure(draw_losses(self.scored), folder / "losses.png")

    def _cells(self) -> dict[str, Callable[[Outcome], object]]:
        """Cells of ablation.csv by column, of runs that were scored."""
        return {
            "best_sigma_rel": lambda o: f"{o.best:.4f}",
            "distance": lambda o: o.distance,
            **{f"distance_at_{s:.4f}": _distance_at(s) for s in self.scoring.sigma_rels},
            "raw": lambda o: o.raw,
            "traditional": lambda o: o.traditional,
            "traditional_sigma_rel": lambda o: o.traditional_length,
            "real_images": lambda o: o.floor,
            "accuracy": lambda o: o.accuracy,
            "heldout_loss": lambda o: o.held_out_loss,
            "training_loss": lambda o: o.training_loss,
            "seconds": lambda o: f"{o.seconds:.1f}",
            "parameters": lambda o: o.parameters,
        }

    def _runs(self) -> Iterable[dict[str, object]]:
        """Rows of ablation.csv: one per run."""
        for summary in self.summaries:
            settings = (f"{n}={_text(v).replace(' ', '')}" for n, v in self.settings[summary.label].items())
            row = {"label": summary.label, "settings": " ".join(settings)}
            for result in sorted(summary.results, key=lambda result: result.seed):
                if isinstance(result, Failure):
                    yield {**row, "seed": result.seed, "failure": result.message}
                else:
                    yield {**row, "seed": result.seed, **{name: cell(result) for name, cell in self._cells().items()}}

    def _losses(self) -> Iterable[dict[str, object]]:
        """Rows of losses.csv: one per run and noise level, lambda(sigma) (D - y)² as EDM weights it, per element."""
        for outcome in (outcome for summary in self.scored for outcome in summary.outcomes):
            images = "held out" if outcome.held_out else "training"
            for sigma, loss in zip(outcome.levels.sigmas, outcome.levels.losses, strict=True):
                yield {"label": outcome.label, "seed": outcome.seed, "sigma": sigma, "loss": loss, "images": images}

    def _paragraphs(self) -> Iterable[str]:
        """Paragraphs of ablation.md: mean and standard deviation over seeds, and the settings that differ."""
        config, missing = self.trials[0].config, len(self.trials) - len(self.results)
        so_far = f" So far: {missing} of {len(self.trials)} runs are missing." if missing else ""
        yield f"# Ablation on {config.data}"
        yield (
            f"Every run is `{self.command}` with the options of its variant and its seed, {config.duration:,} "
            f"images.{so_far}"
        )
        if self.scored:
            common = best_common_sigma_rel(self.scored) if self.fixed is None else self.fixed
            yield self._table(self._columns(common))
            yield "\n".join(f"- {line}" for line in self._how_to_read(common))
        if diagnostics := self._diagnostics():
            yield f"## Diagnostics\n\n{self._table(diagnostics)}\n\n{HOW_TO_READ_DIAGNOSTICS}"
        for failure in (failure for summary in self.summaries for failure in summary.failures):
            yield f"{failure.label}, seed {failure.seed}, failed: {failure.message}"
        yield "## Settings that differ"

        def setting(name: str) -> Column:
            return lambda summary: _text(self.settings[summary.label][name])

        yield self._table({name: setting(name) for name in next(iter(self.settings.values()))})

    def _table(self, columns: dict[str, Column]) -> str:
        """Markdown of a row per variant."""
        rows = [["variant", *columns], ["---"] * (1 + len(columns))]
        rows += [[summary.label, *(cell(summary) for cell in columns.values())] for summary in self.summaries]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def _columns(self, common: float) -> dict[str, Column]:
        """Columns of the table; those that no run has are left out."""

        def cell(quantity: Callable[[Outcome], float | None], form: str = ".4g") -> Column:
            return lambda summary: mean_and_deviation(summary.over_seeds(quantity), form)

        columns = {
            "distance": cell(lambda o: o.distance),
            "best EMA length": lambda s: _range(s.over_seeds(lambda o: o.best)),
            "within 10 %": lambda s: "{:g} to {:g}".format(*s.near) if s.outcomes else "",
            f"at EMA {common:g}": cell(_distance_at(common)),
            "raw weights": cell(lambda o: o.raw),
            "traditional EMA": cell(lambda o: o.traditional),
            "accuracy": cell(lambda o: o.accuracy, ".3f"),
            "held-out loss": cell(lambda o: o.held_out_loss),
            "parameters": lambda s: f"{s.outcomes[0].parameters:,}" if s.outcomes else "",
            "seconds": lambda s: f"{fmean(o.seconds for o in s.outcomes):,.0f}" if s.outcomes else "",
            "seeds": lambda s: str(len(s.outcomes)) + (f" ({len(s.failures)} failed)" if s.failures else ""),
        }
        return {name: column for name, column in columns.items() if any(map(column, self.summaries))}

    def _diagnostics(self) -> dict[str, Column]:
        """Columns of what the instruments of scored runs recorded; none if they recorded nothing."""
        folders = {(trial.label, trial.config.seed): trial.folder.path for trial in self.trials}
        recorded = {
            summary.label: [d for o in summary.outcomes if (d := read_diagnostics(folders[o.label, o.seed]))]
            for summary in self.summaries
        }
        names = next((found[0].numbers for found in recorded.values() if found), None)
        if names is None:
            return {}

        def cell(name: str) -> Column:
            return lambda summary: mean_and_deviation([d.numbers[name] for d in recorded[summary.label]], ".3g")

        def unevenness(summary: Summary) -> str:
            if not recorded[summary.label]:
                return ""
            norms = geometric_means([d.gradients for d in recorded[summary.label]]).values()
            return f"{max(norms) / min(norms):.3g}"

        return {name: cell(name) for name in names} | {"gradient, strongest to weakest bin": unevenness}

    def _how_to_read(self, common: float) -> Iterable[str]:
        sampling, floor = self.scoring.sampling, self.scored[0].outcomes[0].floor
        real = "" if floor is None else f" As many real images score {floor:.4g}."
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
                f"{self._rise(lambda o: o.distance)} with the best EMA length of each, by "
                f"{self._rise(_distance_at(common))} at one length."
            )
        if any(outcome.held_out for summary in self.scored for outcome in summary.outcomes):
            yield "Held-out loss: λ(σ) (D − y)² on images that were not trained on, mean over the levels of losses.csv."

    def _rise(self, quantity: Callable[[Outcome], float]) -> str:
        means = [fmean(map(quantity, summary.outcomes)) for summary in self.scored]
        return f"{max(means) / min(means) - 1:.0%}"


def _distance_at(sigma_rel: float) -> Callable[[Outcome], float]:
    return lambda outcome: outcome.distances[sigma_rel]


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> None:
    with atomic_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _range(values: list[float]) -> str:
    if not values:
        return ""
    span = f" ({min(values):g} to {max(values):g})" if max(values) > min(values) else ""
    return f"{fmean(values):.3g}{span}"
