"""Write times as text: `2026-01-31` and `2026-01-31 23:59:58`, always with four digits for the year.

`strftime("%Y")` writes the year 1 as `1`, which no parser accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


def date_text(moment: datetime) -> str:
    """Return the date of a time, in the time's own zone."""
    return moment.date().isoformat()


def time_text(moment: datetime, *, separator: str = " ", to: str = "seconds") -> str:
    """Return a time without its zone; `to` is the precision, as in the `timespec` of `datetime.isoformat`."""
    return moment.replace(tzinfo=None).isoformat(separator, to)


def time_name(moment: datetime) -> str:
    """Return a time for use in a file name, without colons: `2026-01-31T23-59-58`."""
    return time_text(moment, separator="T").replace(":", "-")
