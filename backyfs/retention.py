"""Decide from versions, schedulers and the time which backups are due, late or no longer needed. Pure.

A version belongs to a scheduler if it is valid and has the scheduler's name as a tag. Rules and sentences are the same
as in backy2, so scripts that read its output keep working.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING

from backyfs.model import VersionStatus
from backyfs.moments import time_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from backyfs.config import Scheduler
    from backyfs.model import Version

_DAILY, _WEEKLY, _MONTHLY = "b_daily", "b_weekly", "b_monthly"
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # a name without a backup has been due since then
_TOLERATED_EXCESS = 2                      # versions beyond `keep` that are not a breach: removal takes time
_LATE_REMOVAL = timedelta(days=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A name that needs a backup now."""

    name: str
    schedulers: tuple[str, ...]
    expire_at: datetime  # of the backup to be made
    due_since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One way in which the backups of a name break their schedule."""

    name: str
    scheduler: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Whether a version is needed, and why."""

    version: Version
    needed: bool
    reason: str


def automatic_tags(versions_of_name: Iterable[Version], now: datetime) -> tuple[str, ...]:
    """Return the tags that a new version gets if the user gave none, by the rule of backy2.

    A new version gets b_daily if the last one with that tag is from an earlier day, b_weekly if it is seven or more
    days old, b_monthly if it is a calendar month old or more, and each of them if there is none. Days are in UTC.
    Versions dated in the future do not count, because they would suppress all tags until then.
    """
    today = now.astimezone(UTC).date()
    last: dict[str, date] = {}
    for version in _not_in_the_future(versions_of_name, now):
        for tag in version.tags:
            last[tag] = max(version.created_at.astimezone(UTC).date(), last.get(tag, date.min))
    rules = (
        (_DAILY, lambda day: day < today),
        (_WEEKLY, lambda day: (today - day).days >= 7),
        (_MONTHLY, lambda day: _a_month_after(day) <= today),
    )
    return tuple(tag for tag, is_due in rules if tag not in last or is_due(last[tag]))


def find_due(
    versions: Iterable[Version], schedulers: Sequence[Scheduler], now: datetime, *, names: Iterable[str] = ()
) -> list[Due]:
    """Return the names that are due for a backup, the longest overdue first.

    `names` are checked in addition to the names of the versions; one without a version is due for every scheduler.
    Versions dated in the future do not count, because each would be the newest one until then.
    """
    by_name = _by_name(versions, names)
    found = []
    for name, of_name in by_name.items():
        since = {
            scheduler: due_since
            for scheduler in schedulers
            if (due_since := _due_since(_scheduled(of_name, scheduler, now), scheduler, now)) is not None
        }
        if since:
            longest = max((each.keep + 1) * each.interval_s for each in since)
            found.append(
                Due(
                    name=name,
                    schedulers=tuple(each.name for each in since),
                    expire_at=_shifted(now, longest),
                    due_since=min(since.values()),
                )
            )
    return sorted(found, key=lambda due: (due.due_since, due.name))


def find_breaches(
    versions: Iterable[Version],
    schedulers: Sequence[Scheduler],
    now: datetime,
    *,
    others: Iterable[Scheduler] = (),
    names: Iterable[str] = (),
) -> list[Breach]:
    """Return how the backups of each name break the given schedules, by name.

    `others` are further schedulers that keep versions. `names` are checked in addition to the names of the versions.
    Versions dated in the future do not count.
    """
    everyone = dict.fromkeys([*schedulers, *others])
    return [
        Breach(name=name, scheduler=scheduler.name, sentence=f"{scheduler.name}: {sentence}")
        for name, of_name in _by_name(versions, names).items()
        for scheduler in schedulers
        for sentence in _breaches(_without_kept_for_others(of_name, scheduler, everyone, now), scheduler, now)
    ]


def due_tags(
    versions_of_name: Iterable[Version], schedulers: Sequence[Scheduler], now: datetime, *, name: str
) -> tuple[str, ...]:
    """Return the schedulers for which this name is due. As tags, they assign a new version to these schedulers."""
    return tuple(tag for due in find_due(versions_of_name, schedulers, now, names=[name]) for tag in due.schedulers)


def plan_removal(
    versions: Iterable[Version], chosen: Sequence[Scheduler], others: Sequence[Scheduler], now: datetime
) -> list[Decision]:
    """Return for each version whether it is needed, ordered by name and date.

    A `chosen` scheduler needs the newest versions up to its `keep`. Also needed are versions that are protected, expire
    in the future, or have a tag of one of the `others` or of no scheduler, and the newest valid version of each name.
    Versions dated in the future are kept, and do not count as the newest ones.
    """
    return [
        decision
        for of_name in _by_name(versions, ()).values()
        for decision in _plan_name(of_name, chosen, {scheduler.name for scheduler in others}, now)
    ]


def _plan_name(
    of_name: Sequence[Version], chosen: Sequence[Scheduler], others: set[str], now: datetime
) -> Iterator[Decision]:
    valid = [version for version in _not_in_the_future(of_name, now) if version.status is VersionStatus.VALID]
    newest = valid[-1] if valid else None
    kept = {scheduler: _newest(_scheduled(of_name, scheduler, now), scheduler.keep) for scheduler in chosen}
    for version in of_name:
        reason = _reason_to_keep(version, newest, others, now)
        if reason is not None:
            yield Decision(version=version, needed=True, reason=reason)
        else:
            yield _by_schedule(version, kept)


def _reason_to_keep(version: Version, newest: Version | None, others: set[str], now: datetime) -> str | None:
    """Return why a version is kept regardless of the schedulers."""
    if version.protected:
        return "protected"
    if version.expire_at is not None and version.expire_at > now:
        return f"expires {time_text(version.expire_at)}"
    return _reason_of_date(version, newest, now) or _reason_of_tags(version, others)


def _reason_of_date(version: Version, newest: Version | None, now: datetime) -> str | None:
    if version.is_dated_in_the_future(now):
        return f"dated in the future, {time_text(version.created_at)}"
    if version is newest:
        return "the newest valid version of its name"
    if newest is None or newest.created_at < version.created_at:
        # The readable part of an invalid version may be all that is left.
        fact = "incomplete, and can be continued" if version.status is VersionStatus.INCOMPLETE else "invalid"
        return f"{fact}: no valid version is newer"
    return None


def _reason_of_tags(version: Version, others: set[str]) -> str | None:
    foreign = sorted(others.intersection(version.tag_names))
    return f"of a schedule that was not asked for: {', '.join(foreign)}" if foreign else None


def _by_schedule(version: Version, kept: dict[Scheduler, list[Version]]) -> Decision:
    own = {scheduler: of_scheduler for scheduler, of_scheduler in kept.items() if scheduler.name in version.tag_names}
    if version.status is VersionStatus.INCOMPLETE:
        return Decision(version=version, needed=False, reason="incomplete, and a valid version is newer")
    if not own:
        return Decision(version=version, needed=True, reason="of no schedule: it has the tag of none")
    if version.status is VersionStatus.INVALID:
        enough = all(
            len(of_scheduler) == scheduler.keep and all(each.created_at > version.created_at for each in of_scheduler)
            for scheduler, of_scheduler in own.items()
        )
        reason = f"invalid, {'and enough' if enough else 'but not enough'} valid ones are newer"
        return Decision(version=version, needed=not enough, reason=reason)
    needed_by = [
        f"{scheduler.name} {len(of_scheduler) - of_scheduler.index(version)} of {scheduler.keep}"
        for scheduler, of_scheduler in own.items()
        if version in of_scheduler
    ]
    if needed_by:
        return Decision(version=version, needed=True, reason=", ".join(needed_by))
    older = (
        f"older than the {scheduler.keep} of {scheduler.name}" if scheduler.keep else f"{scheduler.name} keeps none"
        for scheduler in own
    )
    return Decision(version=version, needed=False, reason=", ".join(older))


def _by_name(versions: Iterable[Version], names: Iterable[str]) -> dict[str, list[Version]]:
    """Return versions by name, in the order of the names, the oldest version first."""
    found: dict[str, list[Version]] = {name: [] for name in names}
    for version in versions:
        found.setdefault(version.name, []).append(version)
    return {name: sorted(found[name], key=lambda version: (version.created_at, version.id)) for name in sorted(found)}


def _not_in_the_future(versions: Iterable[Version], now: datetime) -> Iterator[Version]:
    return (version for version in versions if not version.is_dated_in_the_future(now))


def _scheduled(of_name: Iterable[Version], scheduler: Scheduler, now: datetime) -> list[Version]:
    return [
        version
        for version in _not_in_the_future(of_name, now)
        if version.status is VersionStatus.VALID and scheduler.name in version.tag_names
    ]


def _without_kept_for_others(
    of_name: Sequence[Version], scheduler: Scheduler, everyone: Iterable[Scheduler], now: datetime
) -> list[Version]:
    """Return the versions of a scheduler, without old ones that another scheduler still needs.

    A version that is both daily and monthly is kept longer than a daily one. This does not break the daily schedule.
    The other scheduler gets the same tolerance for removal as in `_breaches`.
    """
    scheduled = _scheduled(of_name, scheduler, now)
    newest = {version.id for version in _newest(scheduled, scheduler.keep)}
    for_others = {
        version.id
        for other in everyone
        if other is not scheduler and other.keep
        for version in _newest(_scheduled(of_name, other, now), other.keep + _TOLERATED_EXCESS)
    }
    return [version for version in scheduled if version.id in newest or version.id not in for_others]


def _newest(scheduled: list[Version], count: int) -> list[Version]:
    return scheduled[len(scheduled) - min(count, len(scheduled)) :]


def _due_since(scheduled: Sequence[Version], scheduler: Scheduler, now: datetime) -> datetime | None:
    if scheduler.keep == 0:
        return None
    if not scheduled:
        return _NEVER
    since = _shifted(scheduled[-1].created_at, scheduler.interval_s - scheduler.sla_s)
    return since if now > since else None


def _breaches(scheduled: Sequence[Version], scheduler: Scheduler, now: datetime) -> Iterator[str]:
    count, keep = len(scheduled), scheduler.keep
    least_s, most_s = scheduler.interval_s - scheduler.sla_s, scheduler.interval_s + scheduler.sla_s
    if count < keep:
        yield f"Too few backups. Found {count}, should be {keep}."
    if count > keep + _TOLERATED_EXCESS:
        yield f"Too many backups. Found {count}, should be {keep}."
    if not scheduled:
        return
    oldest, newest = scheduled[0], scheduled[-1]
    overdue_since = _shifted(newest.created_at, most_s)
    if overdue_since < now:
        yield (
            f"Latest backup is too old. Version {newest.uid} has date {time_text(newest.created_at)}, "
            f"new backup due since {time_text(overdue_since)}."
        )
    for before, version in pairwise(scheduled):
        first, last = _shifted(before.created_at, least_s), _shifted(before.created_at, most_s)
        if not first <= version.created_at <= last:
            # backy2 prints "shoud", and scripts may search for it.
            yield (
                f"Version {version.uid} is not in SLA range. It was created at {time_text(version.created_at)} "
                f"and shoud be between {time_text(first)} and {time_text(last)}."
            )
    oldest_allowed = _shifted(now, -keep * scheduler.interval_s - scheduler.sla_s) - _LATE_REMOVAL
    if oldest.created_at < oldest_allowed:
        yield (
            f"Backup too old. Found version_uid {oldest.uid} with backup date {time_text(oldest.created_at)}. "
            f"Oldest allowed date is {time_text(oldest_allowed)}."
        )


def _a_month_after(day: date) -> date:
    """Return the same day of the next month, or the last day of a shorter month."""
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return date(year, month, min(day.day, calendar.monthrange(year, month)[1]))


def _shifted(moment: datetime, seconds: int) -> datetime:
    """Return a time shifted by `seconds`, limited to the range of datetime."""
    try:
        return moment + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if seconds > 0 else datetime(2, 1, 1, tzinfo=UTC)
