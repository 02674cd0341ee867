"""Define the option that names schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.lists import split_list
from backyfs.cli.options import OptionalValue
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

FOUND_BY_CHECK = 2  # the exit status of `due --check` and `sla --check` if there is something to list


def _names(_context: click.Context, _parameter: click.Parameter, text: str | None) -> Sequence[str] | None:
    if text is None:
        return None
    try:
        return split_list(text)
    except ValueError as error:
        raise UsageError("is not a list of schedulers", subject=repr(text), remedy="give them as a,b") from error


# The option `schedulers`: their names, None if none were given.
schedulers_option = click.option(
    "-s",
    "--schedulers",
    cls=OptionalValue,
    callback=_names,
    metavar="A,B",
    help="Schedulers of the configuration to use. Default: daily, weekly and monthly, where configured.",
)
