"""`backyfs initdb`: create the repository that an existing configuration names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm, noting_signals
from backyfs.cli.output import print_object
from backyfs.cli.text import printable
from backyfs.reports.init import database_as_object

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.command()
@click.pass_obj
def command(invocation: Invocation) -> None:
    """Create the repository that the configuration names: database tables, key slot, storage directory.

    Use this with an existing configuration; `backyfs init` also writes one. A repository that exists is not changed,
    except for an upgrade of its schema; as in backy2, that is not an error. The storage may hold blocks of a lost
    database: import the exports of its versions next. If the storage holds a catalog, use `backyfs recover` instead.
    """
    with noting_signals(invocation.interrupted):
        report = invocation.service.make_repository()
    if invocation.form is OutputForm.JSON:
        print_object(database_as_object(report))
    elif invocation.form is OutputForm.TABLE:
        what = "was created" if report.made else "already exists"
        click.echo(f"repository {report.uid} {what} in {printable(report.database)}")
        if report.key_check is not None:
            click.echo(f"key {report.key_check}")
        elif report.plain:
            click.echo("no encryption: anyone who can read the blocks can read the data")
