"""Options that scripts pass empty: `-e "$EXPIRE"`, where the variable may hold nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def real_path(_context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse - as the name of something that cannot be a stream; click calls it.

    Raises:
        UsageError: it is -.
    """
    if path == "-":
        raise UsageError(
            f"{parameter.opts[0]} cannot be -, standard input or output; name a path, such as ./- if that is meant"
        )
    return path


class OptionalValue(click.Option):
    """An option for which an empty or blank value counts as not given, as in backy2.

    Every option of backy2 that takes a value is one, and so are the options of newer commands that mean the same.
    """

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Process what the command line gave, without empty values."""
        return super().handle_parse_result(ctx, self._without_empty(opts), args)

    def _without_empty(self, opts: Mapping[str, Any]) -> Mapping[str, Any]:
        given = opts.get(self.name or "")
        if isinstance(given, str) and not given.strip():
            return {name: value for name, value in opts.items() if name != self.name}
        if self.multiple and isinstance(given, list):
            return {**opts, self.name: [value for value in given if value.strip()]}
        return opts
