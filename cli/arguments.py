"""Define arguments that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from backyfs.cli.text import stored_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_Command = TypeVar("_Command", bound=Callable[..., Any])


def complete_versions(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Return completions for VERSION: uids and names of versions."""
    from backyfs.cli.completion import version_items  # noqa: PLC0415 - the database is slow to load

    return version_items(context, incomplete)


def _stored_texts(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        stored_text(context, parameter, text)
    return texts


# The argument `version`, in the forms that `metadata.records.versions.find_version` accepts.
version_argument = click.argument(
    "version", metavar="VERSION", callback=stored_text, shell_complete=complete_versions
)


def _versions(*, required: bool) -> Callable[[_Command], _Command]:
    return click.argument(
        "versions",
        metavar="VERSION..." if required else "[VERSION]...",
        nargs=-1,
        required=required,
        callback=_stored_texts,
        shell_complete=complete_versions,
    )


# The argument `versions`: a tuple of such values.
versions_argument = _versions(required=True)
optional_versions_argument = _versions(required=False)
