"""The variants of a study: each is a name for some options of `edm2 train`, whose own parser says what they mean."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.cli import cli
from edm2.tools.commands.train import configure_run, train

if TYPE_CHECKING:
    from edm2.training import Dataset, TrainingConfig

FIXED = {
    "data": "--data",
    "out": "--out",
    "seed": "--seeds",
    "dry_run": "--report",
    "measure": "--report",
    "lengths": "--std",
}
"""Parameters of `edm2 train` that a study decides, and the option of `edm2 ablate` that does."""


@dataclass(frozen=True)
class Variant:
    """One row of the table."""

    label: str
    options: tuple[str, ...]
    """Of `edm2 train`."""

    @property
    def folder_name(self) -> str:
        """The label, without what does not belong into a file name."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)


def letters(text: str) -> list[str]:
    """Letters of configurations: "A,G", or "A,B,...,G", where dots stand for all in between.

    Raises:
        click.UsageError: dots that stand for nothing.
    """
    found: list[str] = []
    parts = [part.strip().upper() for part in text.split(",")]
    for before, part, after in zip(["", *parts], parts, [*parts[1:], ""], strict=False):
        if part != "...":
            found.append(part)
        elif len(before) == len(after) == 1 and before < after:
            found += map(chr, range(ord(before) + 1, ord(after)))
        else:
            raise click.UsageError(f"--configs {text}: dots stand between two letters, as in A,B,...,G")
    return found


def variants(configs: str | None, weightings: str | None, varied: Sequence[str]) -> list[Variant]:
    """The union of all that is asked for; each once.

    Args:
        configs: As `letters` takes it.
        weightings: Names separated by commas.
        varied: Texts OPTION=V1,V2,... of any option of `edm2 train`.

    Raises:
        click.UsageError: none at all, or an option that is unknown or the same in all runs.
    """
    found = [Variant(letter, ("--config", letter)) for letter in (letters(configs) if configs else ())]
    found += [Variant(name, ("--weighting", name)) for name in _parts(weightings or "")]
    for text in varied:
        found += _varied(text)
    if not found:
        raise click.UsageError("nothing to compare: give --configs, --weightings or --vary")
    return list(dict.fromkeys(found))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _varied(text: str) -> Iterator[Variant]:
    name, equals, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not equals or not _parts(values):
        raise click.UsageError(f"--vary {text}: write OPTION=VALUE,VALUE, as in decay=150,600,2400")
    option = next((p for p in train.params if isinstance(p, click.Option) and f"--{name}" in p.opts), None)
    if option is None:
        raise click.NoSuchOption(f"--{name}", f"--vary {text}: edm2 train has no option --{name}")
    if option.name in FIXED:
        raise click.UsageError(f"--vary {text}: {FIXED[option.name]} decides that for all runs")
    for value in _parts(values):
        yield Variant(f"{name}={value}", _words(option, name, value))


def _words(option: click.Option, name: str, value: str) -> tuple[str, ...]:
    """The option with a value; of a switch, its name or its opposite's."""
    if not option.is_flag:
        return f"--{name}", value
    if click.BOOL.convert(value, option, None):
        return (f"--{name}",)
    return tuple(option.secondary_opts[:1])


# -------------------------------------------------------------------------------------------- options of `edm2 train`


def check_common(options: Sequence[str]) -> None:
    """Raises click.UsageError for options that a study decides."""
    for name in given(options):
        if name in FIXED:
            option = next(p for p in train.params if p.name == name)
            raise click.UsageError(f"{option.opts[-1]} among the options of edm2 train: {FIXED[name]} decides that")


def given(options: Sequence[str]) -> dict[str, Any]:
    """What options say: parameters of `edm2 train` by name, without defaults; mistakes are found by `planned`."""
    context = _context(options, resilient_parsing=True)
    written = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in context.params.items() if context.get_parameter_source(name) is written}


def _context(words: Sequence[str], resilient_parsing: bool = False) -> click.Context:
    """What click makes of `edm2 train WORDS`."""
    return train.make_context("edm2 train", list(words), resilient_parsing=resilient_parsing, **cli.context_settings)


def planned(dataset: "Dataset", data: str, out: str, seed: int, options: Sequence[str]) -> "TrainingConfig":
    """The run that `edm2 train --data DATA --out OUT --seed SEED OPTIONS` describes.

    Raises:
        click.UsageError: as that command does.
    """
    from edm2.networks import NetworkConfig
    from edm2.training import TrainingConfig

    words = ["--data", data, "--out", out, "--seed", str(seed), *options]
    parameters: Mapping[str, Any] = _context(words).params
    settings = {field.name for kind in (NetworkConfig, TrainingConfig) for field in fields(kind)}
    choices = {name: value for name, value in parameters.items() if name in settings - {"data", "out", "preset"}}
    run = (parameters[name] for name in ("preset", "architecture", "conditional"))
    return configure_run(dataset, data, out, *run, choices)
