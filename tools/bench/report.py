"""A benchmark's report for people: lines while it runs, and Markdown afterwards."""

from collections.abc import Sequence

from edm2.tools.bench.results import Comparison, Finding, Measurement, Report, Skipped

MEASURED = ("", "time", "fastest to slowest", "images/s", "GFLOP/s", "of the peaks", "memory")
WIDTHS = (36, 8, 20, 8, 7, 12, 7)
"""Of `MEASURED` on the screen."""
COMPARED = ("", "against", "ours", "theirs", "times as fast", "rounds")


def about(report: Report) -> list[tuple[str, str]]:
    """Subjects and phrases: where, what and how."""
    machine, settings, network = report.machine, report.settings, report.network
    height, width = _size(network["img_resolution"])
    how = "compiled, " if settings["compile"] else ""
    return [
        ("machine", f"{_device(machine)}, torch {machine['torch']}, edm2 {machine['edm2']}, {machine['date'][:10]}"),
        (
            "network",
            f"{settings['preset']}: {network['parameters']:,} parameters, {network['img_channels']}x{height}x{width}, "
            f"{network['flops_per_image'] / 2e9:.3g} G multiply-adds per image",
        ),
        ("batch", f"{settings['batch']} images, {how}{settings['precision']}"),
        ("clock", f"{settings['clock']}; medians of {settings['repeats']} after {settings['warmup']} to warm up"),
        *(("peak", f"{peak.flops_per_second / 1e9:,.1f} GFLOP/s: {peak.name}") for peak in report.peaks),
    ]


def markdown(report: Report) -> str:
    """What `about` says, a table of what was measured, and one of comparisons."""
    lines = [f"- {subject}: {phrase}" for subject, phrase in about(report)]
    notes = []
    if rows := [measured_row(finding) for finding in report.of(Measurement)]:
        lines += ["", *table(MEASURED, rows)]
        notes += [legend(report)]
    notes += [f"- {finding.part}: {finding.note}." for finding in report.of(Measurement) if finding.note]
    notes += [f"- {finding.section} was skipped: {finding.why}." for finding in report.of(Skipped)]
    lines += ["", *notes] if notes else []
    if comparisons := report.of(Comparison):
        lines += ["", *table(COMPARED, [compared_row(finding) for finding in comparisons]), ""]
        lines += [f"- {finding.part}, {finding.rival}: {finding.what}." for finding in comparisons]
    return "\n".join(lines) + "\n"


def legend(report: Report) -> str:
    """What the last columns are."""
    kept = size_text(report.network["bytes_kept_in_training"])
    return (
        "- Of the peaks: of the matrix product's and of the convolution's. "
        f"Memory: beside weights, optimizer and averages, which take {kept} in training."
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Of Markdown, its columns aligned for those who read it as it is."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    padded = ["| " + " | ".join(_pad(row, widths)) + " |" for row in (head, *rows)]
    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return [padded[0], rule, *padded[1:]]


def line(finding: Finding) -> str:
    """One finding, for the screen."""
    if isinstance(finding, Skipped):
        return f"{finding.section}: skipped, {finding.why}"
    if isinstance(finding, Measurement):
        return "  ".join(_pad(measured_row(finding), WIDTHS)).rstrip()
    row = compared_row(finding)
    return f"{row[0]}, {row[1]}: {row[4]} times as fast ({row[5]}), ours {row[2]}, theirs {row[3]}"


def heading() -> str:
    """Above the lines of what is measured."""
    return "  ".join(_pad(MEASURED, WIDTHS)).rstrip()


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
        "" if finding.peak_memory is None else size_text(finding.peak_memory),
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


def size_text(size: float) -> str:
    """Three digits: "1.23 GB", "45.6 MB"."""
    return f"{_digits(size / 1e9)} GB" if size >= 1e9 else f"{_digits(size / 1e6)} MB"


def _digits(value: float) -> str:
    return f"{value:,.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f}"


def _pad(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first cell to the left, the others to the right."""
    first, *others = (
        f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return [first, *others]


def _device(machine: dict) -> str:
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] != 1 else "")
    if machine["device"] == "cpu":
        return f"{machine['processor']} ({machine['cpu_capability']}), {threads} of {machine['cores']} cores"
    return f"{machine['device']}, {machine['processor']}"


def _size(resolution: int | Sequence[int]) -> tuple[int, int]:
    height, width = (resolution, resolution) if isinstance(resolution, int) else resolution
    return height, width
