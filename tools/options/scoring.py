"""Options of the commands that score images, and the metrics, detectors and tables that they ask for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.metrics.registry import CLASSIFIERS, DETECTORS, METRICS, WEIGHTS_OPTIONS
from edm2.post_hoc_ema.files import check_output
from edm2.tools.options.groups import option_group
from edm2.tools.options.parsing import FILE

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from edm2.metrics import Detector
    from edm2.metrics.scores import Metric, MetricValue
    from edm2.training.distributed.processes import Processes

_weights, _scores = map(option_group, ("Weights of detectors; default: fetched once", "Scores"))

WEIGHTS = tuple(_weights(f"--{option}", type=FILE, help=text) for option, text in WEIGHTS_OPTIONS.items())
"""One option for each file of weights that a registered detector takes."""

SCORES = (
    _scores("--ref", "reference", type=FILE, help="Statistics of real images: made by edm2 metrics ref, or a .pkl."),
    _scores(
        "--metrics",
        "names",
        help=f"Detectors, for their Frechet distances; {', '.join(METRICS)} (kernel distance, precision and recall, "
        "Inception score); default: all Frechet distances that --ref has.",
    ),
    _scores("--detector", metavar="NAME", help="Detector of kid and pr; default: the first of the others."),
    _scores("--out", type=FILE, help="JSON file for the numbers."),
)


def load_detectors(
    names: Iterable[str], weights: "Mapping[str, Path | None]", device: "torch.device"
) -> "dict[str, Detector]":
    """Load detectors by name, with the values of the options `WEIGHTS`."""
    from edm2.metrics import load_detector

    options = {name: detector.weights_option for name, detector in (DETECTORS | CLASSIFIERS).items()}
    return {name: load_detector(name, weights.get(options.get(name) or ""), device) for name in dict.fromkeys(names)}


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Values of the options `SCORES` and `WEIGHTS`."""

    reference: Path | None
    names: str | None
    detector: str | None
    out: Path | None
    weights: "Mapping[str, Path | None]"
    """Values of `WEIGHTS` by their names."""

    @classmethod
    def pop_from(cls, given: dict[str, Any]) -> "ScoringOptions":
        """Take the values of `SCORES` and `WEIGHTS` out of a command's parameters."""
        weights = {option: given.pop(option) for option in WEIGHTS_OPTIONS}
        return cls(weights=weights, **{name: given.pop(name) for name in ("reference", "names", "detector", "out")})

    def metrics(self) -> "list[Metric]":
        """Make the metrics that are asked for, and see that --out can be written, before anything is drawn."""
        from edm2.metrics.scores import NoReferenceError, metrics_from

        names = [] if self.names is None else [name.strip() for name in self.names.split(",") if name.strip()]
        if self.detector is not None and not (METRICS.keys() - CLASSIFIERS) & {*names}:
            raise click.UsageError(
                f"--detector {self.detector} is that of kid and pr; for its Frechet distance give "
                f"--metrics {self.detector}"
            )
        try:
            wanted = metrics_from(self.reference, names, self.detector)
        except NoReferenceError as error:
            raise click.UsageError(str(error)) from None
        if self.out is not None:
            check_output(self.out)
        return wanted

    def score(
        self,
        batches: "Iterable[Tensor]",
        sizes: Sequence[int],
        metrics: "Sequence[Metric]",
        device: "torch.device",
        processes: "Processes",
        settings: dict[str, Any],
    ) -> None:
        """Score images, print the numbers and write them to --out, beside the JSON of `settings`.

        `batches` are those of this process, `sizes` the numbers of images in those of all processes.
        """
        from edm2.metrics.scores import score
        from edm2.tools.progress import progress_bar

        total = sum(sizes)
        if processes.is_first:
            _warn_of_few(total, metrics)
        detectors = load_detectors((m.detector for m in metrics), self.weights, device)
        with progress_bar(total, hidden=not processes.is_first) as bar:
            values = score(batches, len(sizes), total, metrics, detectors, processes, bar.update)
        if processes.is_first:
            _print(values, total)
            if self.out is not None:
                reference = None if self.reference is None else str(self.reference)
                _write(self.out, settings | {"ref": reference, "num_images": total}, values)


def _warn_of_few(count: int, metrics: "Sequence[Metric]") -> None:
    from edm2.metrics.scores import FrechetMetric, warnings_about

    numbers = [metric.num_features or 0 for metric in metrics if isinstance(metric, FrechetMetric)]
    for warning in warnings_about(count, max(numbers)) if numbers else ():
        click.echo(f"Warning: {warning}", err=True)


def _print(values: "Sequence[MetricValue]", count: int) -> None:
    width = max(len(value.title) for value in values)
    for value in values:
        deviation = "" if value.deviation is None else f" ± {value.deviation:.2g}"
        click.echo(f"{value.title:{width}}  {value.value:.6g}{deviation}  ({count:,} images, {value.detector})")


def _write(path: Path, settings: dict[str, Any], values: "Sequence[MetricValue]") -> None:
    from edm2.training.run.files import write_json

    write_json(path, settings | {"metrics": [asdict(value) for value in values]})
