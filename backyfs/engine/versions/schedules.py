"""What the schedulers of the configuration ask for: which of them count, due backups, breaches."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from backyfs.errors import UsageError
from backyfs.metadata.records.versions import list_versions
from backyfs.remedies import Advice
from backyfs.retention import find_breaches, find_due

if TYPE_CHECKING:
    from collections.abc import Sequence

    from backyfs.config import Config, Scheduler
    from backyfs.model import Version
    from backyfs.repository import Repository
    from backyfs.retention import Breach, Due

_USUAL = ("daily", "weekly", "monthly")  # the schedulers that backy2 goes by when none are named


def usual_schedulers(config: Config) -> list[Scheduler]:
    """Return the schedulers that count if none are named: daily, weekly and monthly, where configured."""
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    return [known[name] for name in _USUAL if name in known]


def chosen_schedulers(config: Config, names: Sequence[str] | None) -> list[Scheduler]:
    """Return the schedulers that were named, in that order, each once; the usual ones for None.

    Raises:
        UsageError: one of them is not configured, or none is.
    """
    known = {scheduler.name: scheduler for scheduler in config.schedulers}
    if names is None:
        usual = usual_schedulers(config)
        if not usual:
            raise UsageError(
                f"no scheduler daily, weekly or monthly is configured{_configured(config)}",
                remedy=Advice.CONFIGURE_SCHEDULER(),
            )
        return usual
    for name in names:
        if name not in known:
            raise UsageError(
                f"no scheduler {name!r} is configured{_configured(config)}", remedy=f"write a section [{name}] for it"
            )
    return [known[name] for name in dict.fromkeys(names)]


def keeping_schedulers(config: Config, names: Sequence[str] | None) -> list[Scheduler]:
    """Return the schedulers by which versions are kept. `keep: 0` counts for one that was named.

    In backy2 it turns a scheduler off, and somebody who means "keep none" names it.

    Raises:
        UsageError: as `chosen_schedulers`.
    """
    chosen = chosen_schedulers(config, names)
    return [scheduler for scheduler in chosen if scheduler.keep] if names is None else chosen


def due_backups(repository: Repository, names: Sequence[str] | None, *, name: str | None = None) -> list[Due]:
    """Return the backups that are due, of all names or of one, the longest due first; `names` are of schedulers.

    Raises:
        UsageError: as `chosen_schedulers`.
        DatabaseError: the database cannot be read.
    """
    chosen = chosen_schedulers(repository.config, names)
    return find_due(_versions(repository, name), chosen, datetime.now(UTC), names=[name] if name else [])


def breaches(repository: Repository, names: Sequence[str] | None, *, name: str | None = None) -> list[Breach]:
    """Return where backups break their schedules, of all names or of one; `names` are of schedulers.

    Raises:
        UsageError: as `chosen_schedulers`.
        DatabaseError: the database cannot be read.
    """
    chosen = chosen_schedulers(repository.config, names)
    return find_breaches(
        _versions(repository, name),
        chosen,
        datetime.now(UTC),
        others=repository.config.schedulers,
        names=[name] if name else [],
    )


def _versions(repository: Repository, name: str | None) -> list[Version]:
    with repository.database.read() as connection:
        return list_versions(connection, name=name)


def _configured(config: Config) -> str:
    names = ", ".join(scheduler.name for scheduler in config.schedulers)
    return f" (configured are {names})" if names else ""
