"""Parse sizes such as 64M."""

from __future__ import annotations

import re
from typing import Any

import click


class Size(click.ParamType[int]):
    """A number of bytes, optionally with a unit: 64M and 64MiB are 67,108,864."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number of bytes.

        Raises:
            click.BadParameter: the value is not a size.
        """
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is not a size; give bytes, or a number with K, M, G or T, as in 256M", param, ctx)
        return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")
