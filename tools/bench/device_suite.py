"""Everything that a GPU is to answer, by one command: `python -m edm2.tools.bench.device_suite --out DIR --minutes 9`.

From the root of a checkout, whose tests/golden it reads. It needs no network and no data. Each section runs in a
process of its own with its own time limit; what it found is written at once to results.json and results.md, which goes
into docs/performance.md as it is, and a section that fails says why. What a section prints is in log.txt.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import IO, Any

import click

from edm2.post_hoc_ema import atomic_output
from edm2.tools.bench.device.findings import Finding, Parts, failed, findings_of, section_markdown
from edm2.tools.bench.device.machine import measured_ceilings
from edm2.tools.bench.device.setup import SCALES, Setup


@dataclass(frozen=True)
class Section:
    """A section of the suite."""

    title: str
    weight: float
    """Fraction of the time that is left when it begins, relative to those of the sections after it."""
    module: str = ""
    """Module whose `parts` it runs, in edm2.tools.bench.device."""

    def parts(self, setup: Setup) -> Parts:
        """Parts of the section."""
        parts: Callable[[Setup], Parts] = import_module(f"edm2.tools.bench.device.{self.module}").parts
        return parts(setup)


SECTIONS = {
    "machine": Section("The device and its ceilings", 4, "machine"),
    "parity": Section("Parity with golden numbers", 12, "parity"),
    "training": Section("Training steps", 33, "training"),
    "sampling": Section("Sampling", 23, "sampling"),
    "updates": Section("Updates of all weights, and memory", 10, "updates"),
    "recovery": Section("Out of memory, checkpoints, copies", 6, "recovery"),
    "run": Section("A run", 12, "real_run"),
}
"""Sections by name, the most valuable first; the last one gets what the others leave."""


@dataclass(frozen=True)
class Results:
    """Findings by section, and the two files that hold them."""

    out: Path
    findings: dict[str, list[Finding]]

    def add(self, section: str, finding: Finding) -> None:
        """Add a finding, and write both files."""
        self.findings.setdefault(section, []).append(finding)
        lines = [
            line for name, found in self.findings.items() for line in section_markdown(SECTIONS[name].title, found)
        ]
        for name, text in (("results.json", json.dumps(self.findings, indent=1)), ("results.md", "\n".join(lines))):
            with atomic_output(self.out / name) as temporary:
                temporary.write_text(text, encoding="utf-8")


def run_suite(
    setup: Setup, names: Sequence[str], sections: Mapping[str, Section], command: Callable[[str, Setup], list[str]]
) -> Results:
    """Run sections one after another, each in a process, within `setup.seconds` together.

    Args:
        setup: Surroundings of all sections.
        names: Sections to run, in this order.
        sections: Sections by name.
        command: Command that runs a section: see `child_command`.
    """
    results, end = Results(Path(setup.out), {}), time.monotonic() + setup.seconds
    with open(results.out / "log.txt", "w", encoding="utf-8") as log:
        for k, name in enumerate(names):
            left, weights = end - time.monotonic(), [sections[other].weight for other in names[k:]]
            own = replace(setup, seconds=left * weights[0] / sum(weights))
            if left <= 0:
                results.add(name, failed(name, "no time was left"))
                continue
            click.echo(f"{name}: at most {own.seconds:.0f} s")
            run_section(name, own, command(name, own), results, log)
            setup = replace(setup, ceilings=measured_ceilings(results.findings.get("machine", [])) or setup.ceilings)
    return results


def run_section(name: str, setup: Setup, command: Sequence[str], results: Results, log: IO[str]) -> None:
    """Run a section's process, whose standard output is findings as lines of JSON, until it ends or time is up."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)

    def receive() -> None:
        for line in process.stdout or ():
            try:
                finding = json.loads(line)
            except ValueError:  # cut off when the process was killed
                return
            results.add(name, finding)
            click.echo(f"  {finding['part']}: {finding.get('failed') or finding.get('values')}")

    receiver = Thread(target=receive)
    receiver.start()
    why = ""
    try:
        if code := process.wait(timeout=setup.seconds):
            why = f"its process ended with code {code}; see log.txt"
    except subprocess.TimeoutExpired:
        why = f"stopped after {setup.seconds:.0f} s"
    finally:
        with suppress(ProcessLookupError):  # what it started, too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        receiver.join()
    if why:
        results.add(name, failed(name, why))
    click.echo(f"  {time.monotonic() - start:.0f} s")


def child_command(name: str, setup: Setup) -> list[str]:
    """Return the command of this very program that runs one section."""
    given = json.dumps(setup.to_json())
    return [sys.executable, "-m", "edm2.tools.bench.device_suite", "--out", setup.out, "--section", name, given]


def run_parts(parts: Parts, output: IO[str]) -> None:
    """Write the findings of a section as lines of JSON, each at once."""
    for finding in findings_of(parts):
        print(json.dumps(finding), file=output, flush=True)


def redirected_output() -> IO[str]:
    """Return standard output, and let what others print there go to standard error from now on."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def plan_lines(setup: Setup, names: Sequence[str]) -> Iterator[str]:
    """Describe what would run."""
    weights = [SECTIONS[name].weight for name in names]
    for name, weight in zip(names, weights, strict=True):
        yield f"{name}: {SECTIONS[name].title}, about {setup.seconds * weight / sum(weights):.0f} s"
        for part in SECTIONS[name].parts(setup):
            yield f"    {part}"


def _names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[str]:
    """Parse names of sections, and keep their order here."""
    wanted = list(SECTIONS) if text is None else [name.strip() for name in text.split(",")]
    if unknown := [name for name in wanted if name not in SECTIONS]:
        raise click.UsageError(f"--only {unknown[0]} is unknown; there are {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in wanted]


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the results.")
@click.option(
    "--minutes", type=click.FloatRange(0, min_open=True), default=9.0, show_default=True, help="Time for all."
)
@click.option("--data", type=click.Path(exists=True), help="Dataset of the run, such as a ZIP file of 32x32 images.")
@click.option("--only", "names", callback=_names, metavar="NAMES", help=f"Sections: {', '.join(SECTIONS)}.")
@click.option("--scale", type=click.Choice(list(SCALES)), default="full", show_default=True, help="tiny: to try it.")
@click.option("--device", help="Default: cuda; cpu for --scale tiny where there is no GPU.")
@click.option("--dry", is_flag=True, help="Say what would run, and stop.")
@click.option("--section", nargs=2, hidden=True, help="Name of one section to run here, and its setup as JSON.")
def main(
    out: Path, minutes: float, data: str | None, names: list[str], scale: str, device: str | None, dry: bool,
    section: tuple[str, str] | None,
) -> None:  # fmt: skip
    """Measure a GPU: parity, training, sampling, updates, recovery and a run, within a few minutes."""
    import torch

    if section is not None:
        from edm2.tools.process import convolve_in_float32

        name, given = section
        output = redirected_output()
        convolve_in_float32()
        run_parts(SECTIONS[name].parts(Setup.from_json(json.loads(given))), output)
        return
    device = device or ("cuda" if scale == "full" or torch.cuda.is_available() else "cpu")
    setup = Setup(SCALES[scale], device, 60 * minutes, str(out), data)
    if dry:
        for line in plan_lines(setup, names):
            click.echo(line)
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.UsageError("torch finds no GPU here; --scale tiny tries the suite on a CPU")
    out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = run_suite(setup, names, SECTIONS, child_command).findings
    missing = [finding["part"] for found in results.values() for finding in found if "failed" in finding]
    click.echo(f"{out / 'results.md'}: {sum(map(len, results.values()))} findings, {len(missing)} of them failures")


if __name__ == "__main__":
    main()
