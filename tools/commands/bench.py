"""`edm2 bench`: measure the speed of this machine in training, sampling, decoding and averaging."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2.planning.presets import PRESETS
from edm2.tools.options.groups import GroupedCommand, option_group
from edm2.tools.options.parsing import DEVICE, FILE, PRECISION

if TYPE_CHECKING:
    from edm2.tools.bench.report import Report

EPILOG = """\b
Examples:
  # The network of the digits, in a minute or two
  edm2 bench
\n\b
  # A network of the paper, with fewer images at once; tables for people and programs
  edm2 bench --preset edm2-img512-xs --batch 4 --out bench.json --markdown bench.md
\n\b
  # How much faster than the plain form, at bf16 and compiled
  edm2 bench --only training,sampling --precision bf16 --compile --against plain
\n\b
  # Against another implementation too (pip install --no-deps --target DIR denoising-diffusion-pytorch einops,
  # and DIR into PYTHONPATH)
  edm2 bench --only training --against plain,karras-unet

\b
What is measured (--only):
  training   a step on random images, whole and by parts
  sampling   an evaluation, and Heun's method with and without guidance
  vae        decoding latents; with random weights unless --vae names a VAE
  ema        an update of two averages, and the reconstruction of one

\b
Implementations to compare with (--against), measured by turns in the same process:
  plain        the same network and training written as in the paper, without compilation
  karras-unet  KarrasUnet of denoising-diffusion-pytorch with as many parameters, forward and backward

With one CPU thread (OMP_NUM_THREADS=1) times are processor time, which other programs hardly change; with several
threads and on a GPU they are wall-clock time.
"""


KNOWN = {"sections": ("training", "sampling", "vae", "ema"), "against": ("plain", "karras-unet")}
"""Sections and rivals, by the parameter that takes their names."""


def _names(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """Parse names separated by commas, each once."""
    if text is None:
        return None
    names, known = tuple(dict.fromkeys(filter(None, map(str.strip, text.split(","))))), KNOWN[str(parameter.name)]
    if unknown := [name for name in names if name not in known]:
        raise click.UsageError(f"{parameter.opts[0]} {unknown[0]} is unknown; there are {', '.join(known)}")
    if not names and parameter.name == "sections":
        raise click.UsageError(f"nothing to measure; there are {', '.join(known)}")
    return names


_what = option_group("What is measured")
_how = option_group("How")
_where = option_group("Where it goes")


@click.command(cls=GroupedCommand, epilog=EPILOG)
@_what(
    "--preset",
    type=click.Choice(list(PRESETS)),
    metavar="NAME",
    help="As in edm2 train; default: digits8, on a GPU edm2-img512-s.",
)
@_what("--batch", type=click.IntRange(1), metavar="N", help="Images per batch; default: 64, of 64x64 on a CPU 2.")
@_what("--channels", type=click.IntRange(1), metavar="N", help="Base width of the network in place of the preset's.")
@_what("--only", "sections", callback=_names, metavar="NAMES", help="Sections to measure (see below); default: all.")
@_what("--against", callback=_names, metavar="NAMES", default="", help="Implementations to compare with (see below).")
@_what("--vae", metavar="NAME", help="VAE to measure, folder or hub id.")
@_how("--device", type=DEVICE, help="cpu, cuda or mps; default: the fastest here.")
@_how("--precision", type=PRECISION, help="Precision of our activations; default: as in edm2 train.")
@_how("--against-precision", type=PRECISION, help="Of the others; default: fp32, on a GPU fp16 if ours is not fp32.")
@_how("--compile/--no-compile", "compile", default=False, help="Compile our network.")
@_how("--repeats", type=click.IntRange(1), metavar="N", help="Measurements to take the median of; default: 9.")
@_how("--steps", type=click.IntRange(1), metavar="N", help="Steps of Heun's method; default: 4, on a GPU 32.")
@_how("--quick", is_flag=True, help="Measure everything once, to see that it works.")
@_where("--out", type=FILE, help="JSON file for all numbers.")
@_where("--markdown", type=FILE, help="Markdown file for the tables.")
def bench(device: str | None, quick: bool, out: Path | None, markdown: Path | None, **choices: Any) -> None:
    """Measure how fast this machine trains, samples, decodes and averages.

    Prints times, images per second, achieved FLOP/s and their fraction of the device's peak, which is measured too.
    Needs no data; writes only the files of --out and --markdown.
    """
    from edm2.post_hoc_ema import atomic_output
    from edm2.post_hoc_ema.files import check_output
    from edm2.tools.bench import report as text
    from edm2.tools.bench.measuring import measure
    from edm2.tools.bench.workload import settings_for
    from edm2.tools.process import convolve_in_float32
    from edm2.tools.run import default_device

    chosen = {name: value for name, value in choices.items() if value is not None}
    settings = settings_for(device or default_device(), chosen, quick)
    if settings.against and not {"training", "sampling"} & set(settings.sections):
        raise click.UsageError("--against compares training and sampling; --only must name one of them")

    for file in filter(None, (out, markdown)):
        check_output(file)

    def print_start(report: "Report") -> None:
        for subject, phrase in text.about(report):
            click.echo(f"{subject + ':':<9}{phrase}")
        click.echo(f"\n{text.heading()}")

    convolve_in_float32()
    report = measure(settings, print_start, lambda finding: click.echo(text.line(finding)))
    contents = {out: json.dumps(report.to_json(), indent=1) + "\n", markdown: text.markdown(report)}
    for path, content in contents.items():
        if path is not None:
            with atomic_output(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
