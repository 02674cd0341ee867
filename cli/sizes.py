"""Sizes as people read them."""

from __future__ import annotations

import re
from typing import Any

import click

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def human_size(size_bytes: int) -> str:
    """Return a size with the unit that makes it a number below 1,024: `1.5 GiB`."""
    size = float(size_bytes)
    for unit in _UNITS:
        if abs(size) < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


class Size(click.ParamType[int]):
    """A number of bytes, with a unit perhaps: 64M and 64MiB are 67,108,864."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes.

        Raises:
            click.BadParameter: it is no size.
        """
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"([0-9]{1,15})([KMGT]?)(?:i?B)?", str(value), re.IGNORECASE)
        if found is None:
            self.fail(f"{value!r} is no size; give bytes, or a number with K, M, G or T, as in 256M", param, ctx)
        return int(found[1]) << 10 * " KMGT".index(found[2].upper() or " ")
