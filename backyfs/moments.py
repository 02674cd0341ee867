"""Moments as text: `2026-01-31` and `2026-01-31 23:59:58`, with four digits of the year whatever it is.

`strftime("%Y")` writes the year 1 as `1`, which nothing reads back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def date_text(moment: datetime) -> str:
    """Return the date of a time, in the zone that the time has."""
    return moment.date().isoformat()


def time_text(moment: datetime, *, separator: str = " ", to: str = "seconds") -> str:
    """Return a time without its zone; `to` is how fine it is, as `datetime.isoformat` names that."""
    return moment.replace(tzinfo=None).isoformat(separator, to)


def time_name(moment: datetime) -> str:
    """Return a time as a part of a file name, without colons: `2026-01-31T23-59-58`."""
    return time_text(moment, separator="T").replace(":", "-")
