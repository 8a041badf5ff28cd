"""Options of the commands that score images, and what comes of them: metrics, detectors, a table of numbers."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.options.groups import option_group
from edm2.tools.options.parsing import FILE

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from tqdm import tqdm

    from edm2.metrics import Detector
    from edm2.metrics.scores import Metric, Value
    from edm2.training.distributed.processes import Processes

_weights, _scores = map(option_group, ("Weights of detectors; default: fetched once", "Scores"))

WEIGHTS = (
    _weights("--inception", type=FILE, help="Of Inception: inception-2015-12-05.pt."),
    _weights("--dinov2", type=FILE, help="Of DINOv2 ViT-L/14: TorchScript, or as published (.pth)."),
)

SCORES = (
    _scores("--ref", "reference", type=FILE, help="What real images are like: made by edm2 metrics ref, or a .pkl."),
    _scores(
        "--metrics",
        "names",
        help="Detectors, for their Frechet distances; kid, pr (precision and recall), is (Inception score); "
        "default: all Frechet distances that --ref has.",
    ),
    _scores("--detector", metavar="NAME", help="What kid and pr look through; default: the first of the others."),
    _scores("--out", type=FILE, help="JSON file for the numbers."),
)


@dataclass(frozen=True)
class Weights:
    """Values of the options `WEIGHTS`."""

    inception: Path | None
    dinov2: Path | None

    def load(self, names: Iterable[str], device: "torch.device") -> "dict[str, Detector]":
        """Detectors by name. Raises ValueError or OSError where one cannot be had."""
        from edm2.metrics import load_detector

        files = {"fid": self.inception, "fid-clean": self.inception, "is": self.inception, "fd_dinov2": self.dinov2}
        return {name: load_detector(name, files.get(name), device) for name in dict.fromkeys(names)}


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Values of the options `SCORES` and `WEIGHTS`."""

    reference: Path | None
    names: str | None
    detector: str | None
    out: Path | None
    inception: Path | None
    dinov2: Path | None

    def metrics(self) -> "list[Metric]":
        """What to compute; before anything is drawn.

        Raises:
            click.UsageError: nothing to compare with.
            OSError, ValueError: the reference cannot be read, or has not what a metric needs.
        """
        names = [] if self.names is None else [name.strip() for name in self.names.split(",") if name.strip()]
        if self.reference is None and names != ["is"]:
            raise click.UsageError("compared with what? Give --ref, a file that edm2 metrics ref makes of real images")
        from edm2.metrics.scores import metrics_from

        return metrics_from(self.reference, names, self.detector)

    def score(
        self,
        batches: "Iterable[Tensor]",
        sizes: Sequence[int],
        metrics: "Sequence[Metric]",
        device: "torch.device",
        processes: "Processes",
        settings: dict[str, Any],
    ) -> None:
        """Score images and say what came out.

        Args:
            batches: Those of this process's share.
            sizes: Images in the batches of all processes.
            metrics: What to compute.
            device: Where.
            processes: Who shares the work.
            settings: What to write into the file beside the numbers.
        """
        from edm2.metrics.scores import score

        total = sum(sizes)
        if processes.is_first:
            _warn_of_few(total, metrics)
        detectors = Weights(self.inception, self.dinov2).load((m.detector for m in metrics), device)
        with images_bar(total, processes) as bar:
            values = score(batches, len(sizes), total, metrics, detectors, processes, bar.update)
        if processes.is_first:
            _print(values, total)
            if self.out is not None:
                reference = None if self.reference is None else str(self.reference)
                _write(self.out, settings | {"ref": reference, "num_images": total}, values)


@contextmanager
def images_bar(total: int, processes: "Processes") -> "Iterator[tqdm]":
    """A progress bar of the first process, if there is a terminal."""
    from tqdm import tqdm

    with tqdm(total=total, unit="img", leave=False, disable=None if processes.is_first else True) as bar:
        yield bar


def _warn_of_few(count: int, metrics: "Sequence[Metric]") -> None:
    from edm2.metrics.scores import warnings_about

    widths = [metric.width for metric in metrics if metric.width is not None]
    for warning in warnings_about(count, max(widths)) if widths else ():
        click.echo(f"Warning: {warning}", err=True)


def _print(values: "Sequence[Value]", count: int) -> None:
    width = max(len(value.title) for value in values)
    for value in values:
        deviation = "" if value.deviation is None else f" ± {value.deviation:.2g}"
        click.echo(f"{value.title:{width}}  {value.value:.6g}{deviation}  ({count:,} images, {value.detector})")


def _write(path: Path, settings: dict[str, Any], values: "Sequence[Value]") -> None:
    from edm2.post_hoc_ema import atomic_output

    content = settings | {"metrics": [asdict(value) for value in values]}
    with atomic_output(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
