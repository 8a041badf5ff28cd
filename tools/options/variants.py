"""The variants of a study: each is a name for some options of `edm2 train`, which its own parser reads."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from edm2.tools.cli import cli
from edm2.tools.commands.train import configure_run, train

if TYPE_CHECKING:
    from edm2.training import Dataset, TrainingConfig

FIXED = {"data": "--data", "out": "--out", "seed": "--seeds", "dry_run": "--report", "measure": "--report",
         "lengths": "--std", "eval_every": "--std", "eval_samples": "--samples", "eval_detector": "--detector",
         "eval_data": "--data", "eval_ref": "--ref"}  # fmt: skip
"""Parameters of `edm2 train` that a study decides, and the option of `edm2 ablate` that does."""


@dataclass(frozen=True)
class StudyVariant:
    """One row of the table."""

    label: str
    options: tuple[str, ...]
    """Options of `edm2 train`."""

    @property
    def folder_name(self) -> str:
        """The label, without characters that do not belong into a file name."""
        return re.sub(r"[^\w.=+-]+", "_", self.label)


def variants(configs: str | None, weightings: str | None, varied: Sequence[str]) -> list[StudyVariant]:
    """Collect all variants that the texts of --configs, --weightings and --vary ask for, each once."""
    found = [StudyVariant(name, ("--config", name)) for name in (config_names(configs) if configs else ())]
    found += [StudyVariant(name, ("--weighting", name)) for name in _parts(weightings or "")]
    found += [variant for text in varied for variant in _varied(text)]
    if not found:
        raise click.UsageError("nothing to compare: give --configs, --weightings or --vary")
    by_folder: dict[str, StudyVariant] = {}
    for variant in found:
        check_not_fixed(variant.options)
        other = by_folder.setdefault(variant.folder_name.lower(), variant)
        if other != variant:
            raise click.UsageError(f"{other.label} and {variant.label} would share a folder: leave one out")
    return list(by_folder.values())


def config_names(text: str) -> list[str]:
    """Architectures of the ladder: "A,G", or "A,B,...,G", where dots stand for all in between."""

    def filled_up(match: re.Match) -> str:
        return "".join(f"{chr(code)}," for code in range(ord(match[1]), ord(match[2])))

    filled = re.sub(r"(\w),\.\.\.,(?=(\w))", filled_up, text.upper().replace(" ", ""))
    if "..." in filled:
        raise click.UsageError(f"--configs {text}: dots stand between two letters, as in A,B,...,G")
    return _parts(filled)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _varied(text: str) -> Iterator[StudyVariant]:
    """Variants of "decay=150,600"; of a switch, its name or its opposite's is the option."""
    name, _, values = text.partition("=")
    name = name.strip().removeprefix("--")
    if not _parts(values):
        raise click.UsageError(f"--vary {text}: write OPTION=VALUE,VALUE, as in decay=150,600,2400")
    option = next((p for p in train.params if isinstance(p, click.Option) and f"--{name}" in p.opts), None)
    for value in _parts(values):
        words: tuple[str, ...] = (f"--{name}", value)
        if option is not None and option.is_flag:
            is_on = click.BOOL.convert(value, option, None)
            words = (f"--{name}",) if is_on else tuple(option.secondary_opts[:1])
        yield StudyVariant(f"{name}={value}", words)


# -------------------------------------------------------------------------------------------- options of `edm2 train`


def given(options: Sequence[str]) -> dict[str, Any]:
    """Parameters of `edm2 train` that the options give, by name; mistakes in them are found by `planned`."""
    context = _context(options, resilient_parsing=True)
    written = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in context.params.items() if context.get_parameter_source(name) is written}


def check_not_fixed(options: Sequence[str]) -> None:
    """Raise click.UsageError for options that a study decides, or does without."""
    for name in given(options):
        if name in FIXED:
            raise click.UsageError(f"{' '.join(options)}: {FIXED[name]} decides that for all runs")
        if name == "max_seconds":
            raise click.UsageError(
                f"{' '.join(options)}: a study has no --max-time; stop it when you like, the same command goes on"
            )


def _context(words: Sequence[str], resilient_parsing: bool = False) -> click.Context:
    return train.make_context("edm2 train", list(words), resilient_parsing=resilient_parsing, **cli.context_settings)


def planned(dataset: "Dataset", data: str, out: str, seed: int, options: Sequence[str]) -> "TrainingConfig":
    """Describe the run of `edm2 train --data DATA --out OUT --seed SEED OPTIONS`."""
    from edm2.networks import NetworkConfig
    from edm2.training import TrainingConfig

    parameters = _context(["--data", data, "--out", out, "--seed", str(seed), *options]).params
    settings = {field.name for kind in (NetworkConfig, TrainingConfig) for field in fields(kind)}
    settings |= {"asked_conditions", "condition_dropouts", "condition_noises"}
    choices = {name: value for name, value in parameters.items() if name in settings - {"data", "out", "preset"}}
    preset, architecture, conditional = (parameters[name] for name in ("preset", "architecture", "conditional"))
    return configure_run(dataset, data, out, preset, architecture, conditional, choices)
