"""The command `edm2`. A command's module is imported only when that command is used, so help answers at once."""

import importlib
import os
import sys

import click

from edm2 import __version__
from edm2.post_hoc_ema.files import one_line, plain_line
from edm2.tools.process import keep_freed_memory, print_whatever_happens, quiet_libraries, sleep_while_waiting

COMMANDS = {
    "dataset": "Make a dataset of images or latents, or measure one.",
    "train": "Train a network on your images.",
    "reconstruct": "Choose the EMA length after training.",
    "generate": "Draw samples.",
    "distill": "Make a network that draws in one to four evaluations.",
    "sweep": "Score EMA lengths, times and guidance of a run; plot it.",
    "autoguide": "Train a guide, and find the best guidance of a run.",
    "ablate": "Compare configurations, weightings or settings in one study.",
    "report": "Show runs on one page: EMA slider, plots, samples.",
    "plot": "Draw what runs have recorded, and compare runs.",
    "metrics": "Score samples, or look for training images among them.",
    "convert": "Published checkpoints to snapshots; snapshots to diffusers.",
    "export": "A network as an ONNX file, for programs without PyTorch.",
    "info": "Describe a snapshot, a run or a dataset.",
    "plan": "Forecast training on a cluster: memory, days, disk.",
    "bench": "Measure how fast this machine trains and samples.",
    "docs": "Print a page of the documentation.",
    "demo": "Train, sweep and sample on handwritten digits, in minutes.",
}

EPILOG = """\b
Examples:
  edm2 generate digits8 --seeds 0-79 --grid digits.png
  edm2 train --data my-images.zip --out runs/mine
  edm2 reconstruct runs/mine --std 0.05,0.10,0.15
  edm2 demo
"""


class LazyGroup(click.Group):
    """A group that lists its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which a user needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of this name, and return its function of the same name."""
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"edm2.tools.commands.{cmd_name}"), cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="edm2")
def cli() -> None:
    """The open EDM2: diffusion models that keep magnitudes, and EMA lengths chosen after training.

    `edm2 COMMAND --help` shows what a command does, with examples to paste.
    """


def main() -> None:
    """Run the command line. Errors that a user can cause are one line; exit code 2 for usage, 1 for the rest.

    Set EDM2_DEBUG=1 for a traceback.
    """
    print_whatever_happens()
    keep_freed_memory()
    sleep_while_waiting()
    quiet_libraries()
    try:
        sys.exit(cli(prog_name="edm2", standalone_mode=False))  # outside of standalone mode click returns exit codes
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        if os.environ.get("EDM2_DEBUG"):
            raise
        click.echo(f"Error: {error_line(error)}", err=True)
        sys.exit(1)


def error_line(error: Exception) -> str:
    """Message of an error in one line; with the file's name, where the operating system reports one."""
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = " ".join(str(error).split("Set TORCH")[0].split())  # the rest is for the authors of torch
        return f"this machine cannot compile the network: leave out --compile ({plain_line(reason)})"
    if isinstance(error, MemoryError):
        return "not enough memory: a number may be larger than meant, or an image than this machine can hold"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return plain_line(f"{error.filename}: {error.strerror}")
    return one_line(error, longest=2000)
