"""Retention: versions, schedulers and the time -> what is due, what breaches, what may go. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from backyfs.model import Version

_DAILY, _WEEKLY, _MONTHLY = "b_daily", "b_weekly", "b_monthly"


def automatic_tags(versions_of_name: Iterable[Version], now: datetime) -> tuple[str, ...]:
    """Return the tags of a new version of a name for which none were given, by the rule of backy2."""
    last: dict[str, datetime] = {}
    for version in versions_of_name:
        for tag in version.tags:
            last[tag] = max(version.created_at, last.get(tag, version.created_at))
    tags = []
    if _DAILY not in last or last[_DAILY].date() < now.date():
        tags.append(_DAILY)
    if _WEEKLY not in last or (now.date() - last[_WEEKLY].date()).days >= 7:
        tags.append(_WEEKLY)
    if _MONTHLY not in last or _months(now) - _months(last[_MONTHLY]) >= 1:
        tags.append(_MONTHLY)
    return tuple(tags)


def _months(moment: datetime) -> int:
    return moment.year * 12 + moment.month
