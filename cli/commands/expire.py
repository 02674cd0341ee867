"""`backyfs expire`: set or remove the date when a version expires."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.commands.ls import print_version
from backyfs.cli.moments import MOMENT
from backyfs.metadata.records.versions import find_version, set_expiry

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@version_argument
@click.argument("date")
@click.pass_context
def command(context: click.Context, version: str, date: str) -> None:
    """Let VERSION expire at DATE: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS in UTC, or +30d; '' lets it never expire.

    Nothing is removed by itself at that date: `backyfs rm --expired` and `backyfs ls --expired` go by it.
    """
    invocation: Invocation = context.obj
    moment = MOMENT.convert(date, None, context) if date else None
    with invocation.open_repository() as repository, repository.database.write() as connection:
        wanted = find_version(connection, version)
        set_expiry(connection, wanted.id, moment)
        changed = find_version(connection, wanted.uid)
        block_size = repository.block_size
    print_version(invocation, changed, block_size)
