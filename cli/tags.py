"""Parse tags in one line of CSV."""

from __future__ import annotations

import logging
from typing import Any

import click

from backyfs.cli.lists import split_list
from backyfs.model import NAME_LENGTH

_log = logging.getLogger("backyfs.cli")


class Tags(click.ParamType[tuple[str, ...]]):
    """Tags separated by commas. A quoted tag may contain a comma. White space around a tag is dropped."""

    name = "tags"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Return the tags.

        Raises:
            click.BadParameter: a tag is empty or cannot be stored.
        """
        if isinstance(value, tuple):
            return value
        try:
            str(value).encode()
            tags = split_list(str(value))
        except ValueError:  # UnicodeEncodeError is one
            self.fail(f"{value!r} is not a list of tags; give them as a,b in UTF-8", param, ctx)
        if not all(0 < len(tag) <= NAME_LENGTH for tag in tags):
            self.fail(f"{value!r} has an empty or too long tag; give tags as a,b", param, ctx)
        return tags


class OneTag(click.ParamType[str]):
    """One tag to search for. Commas and quotes are part of it, but not white space around it."""

    name = "tag"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None  # noqa: ARG002
    ) -> str:
        """Return the tag."""
        return str(value).strip()


TAGS = Tags()
ONE_TAG = OneTag()


def given_tags(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Return the tags of an argument; none, with a warning, if it is empty. A click callback.

    Raises:
        click.BadParameter: a tag is empty or cannot be stored.
    """
    if text.strip():
        return TAGS.convert(text, parameter, context)
    _log.warning("no tags were given; nothing is changed")
    return ()
