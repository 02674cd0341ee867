"""Parse times: a date, a date with a time, or a duration from now."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from backyfs.cli.ages import UNITS

_FORMS = ("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")


class Moment(click.ParamType[datetime]):
    """A time in UTC: 2026-12-31, 2026-12-31T23:59, or +30d for in 30 days."""

    name = "moment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the time.

        Raises:
            click.BadParameter: the value is not a time.
        """
        if isinstance(value, datetime):
            return value
        moment = _relative(str(value)) or _absolute(str(value))
        if moment is None:
            self.fail(f"{value!r} is not a date; give YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS in UTC, or +30d", param, ctx)
        return moment


def _relative(text: str) -> datetime | None:
    found = re.fullmatch(r"\+([0-9]{1,6})([smhdw])", text)
    if found is not None:
        with suppress(OverflowError):  # after the year 9999
            return datetime.now(UTC) + timedelta(**{UNITS[found[2]]: int(found[1])})
    return None


def _absolute(text: str) -> datetime | None:
    for form in _FORMS:
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    return None


MOMENT = Moment()
