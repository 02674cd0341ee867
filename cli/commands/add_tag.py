"""`backyfs add-tag`: give a version tags."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.commands.ls import print_version
from backyfs.cli.tags import given_tags
from backyfs.metadata.records.versions import add_tags, find_version

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")


@click.command()
@version_argument
@click.argument("tags", callback=given_tags)
@click.pass_obj
def command(invocation: Invocation, version: str, tags: tuple[str, ...]) -> None:
    """Give VERSION the TAGS, separated by commas; a tag with a comma stands in double quotes.

    A tag that it has already is told as a warning.
    """
    if not tags:
        _log.warning("no tags were given; nothing is changed")
    with invocation.open_repository() as repository, repository.database.write() as connection:
        wanted = find_version(connection, version)
        new = add_tags(connection, wanted.id, tags)
        tagged = find_version(connection, wanted.uid)
        block_size = repository.block_size
    for tag in set(tags) - set(new):
        _log.warning("version %s has tag %s already", wanted.uid, tag)
    print_version(invocation, tagged, block_size)
