"""What the commands that go by schedulers share: which ones were asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.lists import split_list
from backyfs.cli.options import OptionalValue
from backyfs.errors import UsageError

if TYPE_CHECKING:
    from backyfs.config import Config, Scheduler

_USUAL = ("daily", "weekly", "monthly")  # what backy2 takes when none are named

schedulers_option = click.option(
    "-s",
    "--schedulers",
    cls=OptionalValue,
    metavar="A,B",
    help="Schedulers of the configuration to go by; default: daily, weekly and monthly, where configured.",
)


def usual_schedulers(config: Config) -> list[Scheduler]:
    """Return the schedulers that count where none are named: daily, weekly and monthly, where configured."""
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    return [known[name] for name in _USUAL if name in known]


def chosen_schedulers(config: Config, named: str | None) -> list[Scheduler]:
    """Return the schedulers that were asked for, in that order.

    Raises:
        UsageError: one of them is not configured, or none is, or it is not a list.
    """
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    if named is None:
        usual = usual_schedulers(config)
        if not usual:
            raise UsageError(
                f"no scheduler daily, weekly or monthly is configured{_known(config)}; write a section [daily] with "
                "interval, keep and sla, or name others with --schedulers"
            )
        return usual
    try:
        names = dict.fromkeys(split_list(named))
    except ValueError as error:
        raise UsageError(f"{named!r} is not a list of schedulers; give them as a,b") from error
    for name in names:
        if name not in known:
            raise UsageError(f"no scheduler {name!r} is configured{_known(config)}; write a section [{name}] for it")
    return [known[name] for name in names]


def _known(config: Config) -> str:
    names = ", ".join(scheduler.name for scheduler in config.schedulers)
    return f" (configured are {names})" if names else ""
