"""Support options that scripts pass with an empty value, such as `-e "$EXPIRE"`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from backyfs.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping


def real_path(_context: click.Context, parameter: click.Parameter, path: str | None) -> str | None:
    """Refuse - for a path that cannot be a stream. A click callback.

    Raises:
        UsageError: the path is -.
    """
    if path == "-":
        raise UsageError(
            "cannot be -, standard input or output",
            subject=parameter.opts[0],
            remedy="name a path, such as ./- for a file with this name",
        )
    return path


class OptionalValue(click.Option):
    """An option whose empty or blank value counts as not given, as in backy2.

    This is used for every option of backy2 with a value, and for options of newer commands with the same meaning.
    """

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Process the values from the command line, without empty ones."""
        return super().handle_parse_result(ctx, self._without_empty(opts), args)

    def _without_empty(self, opts: Mapping[str, Any]) -> Mapping[str, Any]:
        given = opts.get(self.name or "")
        if isinstance(given, str) and not given.strip():
            return {name: value for name, value in opts.items() if name != self.name}
        if self.multiple and isinstance(given, list):
            return {**opts, self.name: [value for value in given if value.strip()]}
        return opts
