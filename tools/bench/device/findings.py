"""Findings of the device suite: rows of numbers whose columns say the unit, as JSON and as Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from edm2.post_hoc_ema.files import first_line
from edm2.tools.bench.report import table

Finding = dict[str, Any]
"""`part` and `values` by column, or `part` and `failed`, the reason why there are none."""

Parts = Mapping[str, Callable[[], Iterator[Finding]]]
"""Parts of a section by name."""


def row(part: str, **values: Any) -> Finding:
    """Make a finding; columns are the names of `values`, with spaces in place of underscores."""
    return {"part": part, "values": {name.replace("_", " "): value for name, value in values.items()}}


def failed(part: str, why: object) -> Finding:
    """Make the finding that something could not be measured; `why` is an error or a phrase."""
    reason = f"{type(why).__name__}: {first_line(why)}" if isinstance(why, BaseException) else str(why)
    return {"part": part, "failed": reason}


def findings_of(parts: Parts) -> Iterator[Finding]:
    """Yield the findings of all parts; one that fails says why, and the next one follows."""
    for name, part in parts.items():
        try:
            yield from part()
        except Exception as error:  # whatever a device may raise
            yield failed(name, error)


def section_markdown(title: str, findings: Sequence[Finding]) -> list[str]:
    """Lines of a section: a heading, a table per run of rows with the same columns, and what failed."""
    lines = [f"### {title}"]
    for columns, group in groupby(findings, lambda finding: tuple(finding.get("values", ()))):
        rows = [[finding["part"], *map(cell, finding.get("values", {}).values())] for finding in group if columns]
        lines += ["", *table(("", *columns), rows)] if columns else []
    missing = [f"- {finding['part']} failed: {finding['failed']}" for finding in findings if "failed" in finding]
    return [*lines, *([""] if missing else []), *missing, ""]


def cell(value: Any) -> str:
    """Three digits of a number; nothing for None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return {None: "", True: "yes", False: "no"}.get(value, str(value))
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
