"""Select schedulers for the commands that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.lists import split_list
from backyfs.cli.options import OptionalValue
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.config import Config, Scheduler

_USUAL = ("daily", "weekly", "monthly")  # the defaults of backy2

schedulers_option = click.option(
    "-s",
    "--schedulers",
    cls=OptionalValue,
    metavar="A,B",
    help="Schedulers of the configuration to use; default: daily, weekly and monthly, where configured.",
)


def usual_schedulers(config: Config) -> list[Scheduler]:
    """Return the default schedulers: daily, weekly and monthly, if they are configured."""
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    return [known[name] for name in _USUAL if name in known]


def chosen_schedulers(config: Config, named: str | None) -> list[Scheduler]:
    """Return the schedulers that the user named, in that order, or the default ones.

    Raises:
        UsageError: a scheduler is not configured, or the value is not a list.
    """
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    if named is None:
        usual = usual_schedulers(config)
        if not usual:
            raise UsageError(
                f"no scheduler daily, weekly or monthly is configured{_known(config)}",
                remedy="write a section [daily] with interval, keep and sla, or name others with --schedulers",
            )
        return usual
    try:
        names = dict.fromkeys(split_list(named))
    except ValueError as error:
        raise UsageError("is not a list of schedulers", subject=repr(named), remedy="give them as a,b") from error
    for name in names:
        if name not in known:
            raise UsageError(
                f"no scheduler {name!r} is configured{_known(config)}", remedy=f"write a section [{name}] for it"
            )
    return [known[name] for name in names]


def _known(config: Config) -> str:
    names = ", ".join(scheduler.name for scheduler in config.schedulers)
    return f" (configured are {names})" if names else ""
