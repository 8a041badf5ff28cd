"""Options of a command under headings in its help text."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import click


class GroupedOption(click.Option):
    """An option that its command's help lists under a heading, its `group`."""

    def __init__(self, *declarations: Any, group: str, **attributes: Any) -> None:
        super().__init__(*declarations, **attributes)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists its options heading by heading, those without a heading last."""

    def is_shown(self, option: click.Option, ctx: click.Context) -> bool:
        """True if the help lists an option."""
        return True

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options; headings are in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        options = [option for option in options if self.is_shown(option, ctx)]
        for parameter in sorted(options, key=lambda option: not isinstance(option, GroupedOption)):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "group", "Other options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


SHOW_ALL = "edm2.help_all"
"""Entry of a context whose command shows all of its help."""


class TwoLevelCommand(GroupedCommand):
    """A command whose --help shows the options that one needs at first, and whose --help-all shows the rest too.

    Args:
        first: Names of the parameters that --help shows.
        reference: Text behind the epilog of --help-all.
    """

    def __init__(self, *arguments: Any, first: Collection[str], reference: str = "", **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.first = frozenset(first)
        self.reference = reference
        self.params.append(
            click.Option(
                ["--help-all"], is_flag=True, is_eager=True, expose_value=False, callback=_print_all_help,
                help="Show all options and exit.",
            )
        )  # fmt: skip

    def is_shown(self, option: click.Option, ctx: click.Context) -> bool:
        return option.name in self.first or SHOW_ALL in ctx.meta or not isinstance(option, GroupedOption)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog; how to see more, or what there is more."""
        brief, more = self.epilog, self.reference
        self.epilog = f"{brief}\n\n{more}" if SHOW_ALL in ctx.meta else f"{brief}\n\n--help-all shows all options."
        super().format_epilog(ctx, formatter)
        self.epilog = brief


def _print_all_help(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        ctx.meta[SHOW_ALL] = True
        click.echo(ctx.get_help())
        ctx.exit()


def option_group(heading: str) -> Callable[..., Callable]:
    """Return a `click.option` that puts its options under `heading`."""
    return partial(click.option, cls=GroupedOption, group=heading)


def options_of(command: click.Command, names: Collection[str]) -> Callable[[Callable], Callable]:
    """Return a decorator that adds options of another command, by the names of their parameters."""
    found = {parameter.name: parameter for parameter in command.params}

    def add(function: Callable) -> Callable:
        for name in reversed(list(names)):  # decorators apply from below
            function.__click_params__ = [*getattr(function, "__click_params__", []), found[name]]  # type: ignore[attr-defined]
        return function

    return add


def with_options(*options: Callable) -> Callable[[Callable], Callable]:
    """Return a decorator that adds several options to a command."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):  # decorators apply from below
            command = option(command)
        return command

    return add
