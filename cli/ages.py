"""Parse ages such as 30d or 12h."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import click

UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Age(click.ParamType[timedelta]):
    """A duration: a whole number with s, m, h, d or w."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Return the duration.

        Raises:
            click.BadParameter: the value is not a duration.
        """
        if isinstance(value, timedelta):
            return value
        found = re.fullmatch(r"([0-9]{1,5})([smhdw])", str(value))
        if found is None:
            self.fail(f"{value!r} is not an age; give a number with s, m, h, d or w, as in 30d", param, ctx)
        return timedelta(**{UNITS[found[2]]: int(found[1])})


AGE = Age()
