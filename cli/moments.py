"""Moments as people write them: a date, a date with a time, or so long from now."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_FORMS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """A time in UTC: 2026-12-31, 2026-12-31T23:59, or +30d for in 30 days."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time.

        Raises:
            click.BadParameter: it is no time.
        """
        if isinstance(value, datetime):
            return value
        relative = re.fullmatch(r"\+([0-9]{1,6})([smhdw])", str(value))
        if relative is not None:
            return datetime.now(UTC) + timedelta(**{_UNITS[relative[2]]: int(relative[1])})
        for form in _FORMS:
            try:
                return datetime.strptime(str(value), form).replace(tzinfo=UTC)
            except ValueError:
                continue
        self.fail(f"{value!r} is no date; give YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS in UTC, or +30d", param, ctx)


MOMENT = Moment()
