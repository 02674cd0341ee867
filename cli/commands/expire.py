"""`backyfs expire`: set or remove the date when a version expires."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.arguments import version_argument
from backyfs.cli.edits import print_version
from backyfs.cli.moments import MOMENT
from backyfs.engine.versions.edit import expire

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@version_argument
@click.argument("date")
@click.pass_context
def command(context: click.Context, version: str, date: str) -> None:
    """Set the date when VERSION expires. DATE is YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS in UTC, or +30d; '' means never.

    Nothing is removed automatically on that date: `backyfs rm --expired` and `backyfs ls --expired` go by it.
    """
    invocation: Invocation = context.obj
    moment = MOMENT.convert(date, None, context) if date else None
    with invocation.open_repository() as repository:
        report = expire(repository, version, moment)
    print_version(invocation, report)
