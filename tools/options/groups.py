"""Options of a command under headings in its help text."""

from collections.abc import Callable
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

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options; headings are in the order of their first options."""
        sections: dict[str, list[tuple[str, str]]] = {}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for parameter in sorted(options, key=lambda option: not isinstance(option, GroupedOption)):
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "group", "Other options"), []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option_group(heading: str) -> Callable[..., Callable]:
    """Return a `click.option` that puts its options under `heading`."""
    return partial(click.option, cls=GroupedOption, group=heading)


def with_options(*options: Callable) -> Callable[[Callable], Callable]:
    """Return a decorator that adds several options to a command."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):  # decorators apply from below
            command = option(command)
        return command

    return add
