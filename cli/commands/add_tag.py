"""`backyfs add-tag`: add tags to a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.edits import print_version
from backyfs.cli.tags import given_tags
from backyfs.engine.versions.edit import add_tags

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@version_argument
@click.argument("tags", callback=given_tags)
@click.pass_obj
def command(invocation: Invocation, version: str, tags: tuple[str, ...]) -> None:
    """Add TAGS to VERSION, separated by commas. Put a tag that contains a comma in double quotes.

    Tags that VERSION already has give a warning.
    """
    with invocation.open_repository() as repository:
        report = add_tags(repository, version, tags)
    print_version(invocation, report, no_effect="already has")
