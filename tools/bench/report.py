"""Findings of a benchmark: as data for JSON, as lines while it runs, and as Markdown.

Field names and properties of the dataclasses are keys of the JSON of `edm2 bench`.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from edm2.tools.bench.timing import Timing
from edm2.training.run.speed import with_unit


@dataclass(frozen=True)
class Measurement:
    """Time of one part of our work."""

    section: str
    """training, sampling, vae or ema."""
    part: str
    timing: Timing
    images: float = 0
    """Images that the work makes or trains on; 0 where they do not count."""
    flops: float = 0
    """Operations of convolutions, linear layers and attention (a multiplication and an addition are two)."""
    shares: tuple[float, ...] = ()
    """Fractions of the device's peaks that the FLOP/s reach."""
    peak_memory: int | None = None
    """Bytes beside weights, optimizer and averages; None where not measured."""
    note: str = ""

    @property
    def images_per_second(self) -> float | None:
        """Speed; None where images do not count."""
        return self.images / self.timing.seconds if self.images else None

    @property
    def flops_per_second(self) -> float | None:
        """FLOP/s; None where they are not counted."""
        return self.flops / self.timing.seconds if self.flops else None


@dataclass(frozen=True)
class Comparison:
    """Times of our work and of another implementation's, in rounds in which both took turns."""

    section: str
    part: str
    rival: str
    """Name of the other implementation."""
    precisions: tuple[str, str]
    """Seconds of ours and of theirs."""
    what: str
    """Description of what exactly both did."""
    ours: Timing
    theirs: Timing
    ratios: tuple[float, ...]
    """Their time over ours in each round."""

    @property
    def ratio(self) -> float:
        """Median over rounds."""
        return statistics.median(self.ratios)


@dataclass(frozen=True)
class Skipped:
    """A section that could not be measured, and why."""

    section: str
    why: str


Finding = Measurement | Comparison | Skipped


@dataclass(frozen=True)
class Peak:
    """The most that the device can do at one kind of work."""

    name: str
    flops_per_second: float


@dataclass
class Report:
    """Findings of a benchmark, with the machine and the settings."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    network: dict[str, Any]
    peaks: list[Peak]
    findings: list[Finding] = field(default_factory=list)

    def of(self, kind: type) -> list[Any]:
        """List the findings of one kind, in order."""
        return [finding for finding in self.findings if isinstance(finding, kind)]

    def to_json(self) -> dict[str, Any]:
        """Return plain values, one list per kind of finding."""

        def listed(kind: type, *derived: str) -> list[dict[str, Any]]:
            return [asdict(x) | {name: getattr(x, name) for name in derived} for x in self.of(kind)]

        return {
            "machine": self.machine,
            "settings": self.settings,
            "network": self.network,
            "peaks": [asdict(peak) for peak in self.peaks],
            "measurements": listed(Measurement, "images_per_second", "flops_per_second"),
            "comparisons": listed(Comparison, "ratio"),
            "skipped": listed(Skipped),
        }


# ----------------------------------------------------------------------------------------------------------------------
# Text

MEASURED = ("", "time", "fastest to slowest", "images/s", "GFLOP/s", "of the peaks", "memory")
WIDTHS = (36, 8, 20, 8, 7, 12, 7)
"""Widths of the columns of `MEASURED` on the screen."""
COMPARED = ("", "against", "ours", "theirs", "times as fast", "rounds")


def about(report: Report) -> list[tuple[str, str]]:
    """List subjects and phrases: machine, network and settings."""
    machine, settings, network = report.machine, report.settings, report.network
    size = network["img_resolution"]
    height, width = (size, size) if isinstance(size, int) else size
    device = f"{machine['device']}, {machine['processor']}"
    if machine["device"] == "cpu":
        threads = f"{machine['threads']} thread" + "s" * (machine["threads"] != 1)
        device = f"{machine['processor']} ({machine['cpu_capability']}), {threads} of {machine['cores']} cores"
    how = "compiled, " if settings["compile"] else ""
    return [
        ("machine", f"{device}, torch {machine['torch']}, edm2 {machine['edm2']}, {machine['date'][:10]}"),
        (
            "network",
            f"{settings['preset']}: {network['parameters']:,} parameters, {network['img_channels']}x{height}x{width}, "
            f"{network['flops_per_image'] / 2e9:.3g} G multiply-adds per image",
        ),
        ("batch", f"{settings['batch']} images, {how}{settings['precision']}"),
        ("clock", f"{settings['clock']}; medians of {settings['repeats']} after {settings['warmup']} to warm up"),
        *(("peak", f"{peak.flops_per_second / 1e9:,.1f} GFLOP/s: {peak.name}") for peak in report.peaks),
    ]


def heading() -> str:
    """Heading of the lines of measurements."""
    return _aligned(MEASURED)


def line(finding: Finding) -> str:
    """One finding, for the screen."""
    if isinstance(finding, Skipped):
        return f"{finding.section}: skipped, {finding.why}"
    if isinstance(finding, Measurement):
        return _aligned(measured_row(finding))
    part, rival, ours, theirs, ratio, rounds = compared_row(finding)
    return f"{part}, {rival}: {ratio} times as fast ({rounds}), ours {ours}, theirs {theirs}"


def markdown(report: Report) -> str:
    """The whole report: a list of `about`, a table of measurements, and one of comparisons."""
    measurements, comparisons, skipped = report.of(Measurement), report.of(Comparison), report.of(Skipped)
    lines = [f"- {subject}: {phrase}" for subject, phrase in about(report)]
    if measurements:
        kept = with_unit(report.network["bytes_kept_in_training"], "B")
        lines += [
            "", *table(MEASURED, list(map(measured_row, measurements))), "",
            "- Of the peaks: of the matrix product's and of the convolution's. "
            f"Memory: beside weights, optimizer and averages, which take {kept} in training.",
        ]  # fmt: skip
    lines += [f"- {finding.part}: {finding.note}." for finding in measurements if finding.note]
    lines += [f"- {finding.section} was skipped: {finding.why}." for finding in skipped]
    if comparisons:
        lines += ["", *table(COMPARED, list(map(compared_row, comparisons))), ""]
        lines += [f"- {finding.part}, {finding.rival}: {finding.what}." for finding in comparisons]
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first are aligned to the right."""
    first, *others = (f"| {' | '.join(row)} |" for row in (head, *rows))
    return [first, "|---" + "|---:" * (len(head) - 1) + "|", *others]


def measured_row(finding: Measurement) -> list[str]:
    """Cells of `MEASURED`."""
    timing = finding.timing
    return [
        f"{finding.section}: {finding.part}",
        time_text(timing.seconds),
        f"{time_text(timing.low)} to {time_text(timing.high)}",
        "" if finding.images_per_second is None else _digits(finding.images_per_second),
        "" if finding.flops_per_second is None else _digits(finding.flops_per_second / 1e9),
        " / ".join(f"{share:.0%}" for share in finding.shares),
        "" if finding.peak_memory is None else with_unit(finding.peak_memory, "B"),
    ]


def compared_row(finding: Comparison) -> list[str]:
    """Cells of `COMPARED`."""
    ours, theirs = finding.precisions
    return [
        f"{finding.section}: {finding.part}",
        finding.rival,
        f"{time_text(finding.ours.seconds)} {ours}",
        f"{time_text(finding.theirs.seconds)} {theirs}",
        f"{finding.ratio:.2f}",
        f"{min(finding.ratios):.2f} to {max(finding.ratios):.2f}",
    ]


def time_text(seconds: float) -> str:
    """Three digits: "1.23 s", "45.6 ms", "789 us"."""
    for unit, length in (("s", 1), ("ms", 1e-3)):
        if seconds >= length * 0.9995:
            return f"{_digits(seconds / length)} {unit}"
    return f"{_digits(seconds / 1e-6)} us"


def _digits(value: float) -> str:
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _aligned(row: Sequence[str]) -> str:
    """The first cell to the left, the others to the right."""
    first, *others = zip(row, WIDTHS, strict=True)
    return "  ".join([f"{first[0]:<{first[1]}}", *(f"{cell:>{width}}" for cell, width in others)]).rstrip()
