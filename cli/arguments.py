"""Arguments that several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.text import stored_text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def complete_versions(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Return the uids and names of versions that begin so; what a shell offers for VERSION."""
    from backyfs.cli.completion import version_items  # noqa: PLC0415 - the database is slow to load

    return version_items(context, incomplete)


def _stored_texts(context: click.Context, parameter: click.Parameter, texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        stored_text(context, parameter, text)
    return texts


# The argument `version`: what `metadata.versions.find_version` takes.
version_argument = click.argument(
    "version", metavar="VERSION", callback=stored_text, shell_complete=complete_versions
)

# The argument `versions`, one or more of the same: a tuple.
versions_argument = click.argument(
    "versions",
    metavar="VERSION...",
    nargs=-1,
    required=True,
    callback=_stored_texts,
    shell_complete=complete_versions,
)
