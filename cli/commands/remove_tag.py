"""`backyfs remove-tag`: take tags from a version."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.commands.ls import print_version
from backyfs.cli.tags import given_tags
from backyfs.metadata.records.versions import find_version, remove_tags

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation

_log = logging.getLogger("backyfs.cli")


@click.command()
@version_argument
@click.argument("tags", callback=given_tags)
@click.pass_obj
def command(invocation: Invocation, version: str, tags: tuple[str, ...]) -> None:
    """Take the TAGS, separated by commas, from VERSION; a tag with a comma stands in double quotes.

    A tag that it does not have is told as a warning.
    """
    if not tags:
        _log.warning("no tags were given; nothing is changed")
    with invocation.open_repository() as repository, repository.database.write() as connection:
        wanted = find_version(connection, version)
        remove_tags(connection, wanted.id, tags)
        left = find_version(connection, wanted.uid)
        block_size = repository.block_size
    for tag in sorted(set(tags) - wanted.tag_names):
        _log.warning("version %s has no tag %s", wanted.uid, tag)
    print_version(invocation, left, block_size)
