"""`backyfs remove-tag`: remove tags from a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.edits import print_version
from backyfs.cli.tags import given_tags
from backyfs.engine.versions.edit import remove_tags

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@version_argument
@click.argument("tags", callback=given_tags)
@click.pass_obj
def command(invocation: Invocation, version: str, tags: tuple[str, ...]) -> None:
    """Remove TAGS, separated by commas, from VERSION. Put a tag that contains a comma in double quotes.

    Tags that VERSION does not have give a warning.
    """
    with invocation.open_repository() as repository:
        report = remove_tags(repository, version, tags)
    print_version(invocation, report, no_effect="has no")
