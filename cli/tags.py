"""Tags as people write them: one line of CSV."""

from __future__ import annotations

import csv
from typing import Any

import click

from backyfs.model import NAME_LENGTH


class Tags(click.ParamType[tuple[str, ...]]):
    """Tags, separated by commas; quotes let a tag hold one."""

    name = "tags"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the tags.

        Raises:
            click.BadParameter: there is none, or one that cannot be stored.
        """
        if isinstance(value, tuple):
            return value
        try:
            str(value).encode()
            [tags] = csv.reader([str(value)], strict=True)
        except (UnicodeEncodeError, ValueError, csv.Error):
            self.fail(f"{value!r} are no tags; give them as a,b in UTF-8", param, ctx)
        if not tags or not all(0 < len(tag) <= NAME_LENGTH for tag in tags):
            self.fail(f"{value!r} has an empty or too long tag; give tags as a,b", param, ctx)
        return tuple(tags)


TAGS = Tags()
