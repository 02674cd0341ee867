"""`backyfs db`: operations on the database as a whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from backyfs.cli.invocation import OutputForm
from backyfs.cli.output import print_object
from backyfs.cli.text import printable
from backyfs.reports.db import as_object

if TYPE_CHECKING:
    from backyfs.cli.invocation import Invocation


@click.group("db")
def command() -> None:
    """Work on the database as a whole."""


@command.command()
@click.argument("from_url")
@click.argument("to_url")
@click.pass_obj
def copy(invocation: Invocation, from_url: str, to_url: str) -> None:
    """Copy all metadata from the database FROM_URL to the empty database TO_URL, on any engine.

    Wait until running commands have ended. Afterwards set `engine` in the configuration to TO_URL.
    """
    from backyfs.engine.transfer.database_copy import copy_database  # noqa: PLC0415 - SQLAlchemy is slow to load

    report = copy_database(from_url, to_url)
    if invocation.form is OutputForm.JSON:
        print_object(as_object(report))
    elif invocation.form is OutputForm.PIPE:
        for table, rows in report.rows.items():
            click.echo(f"{table}|{rows}")
    else:
        rows = sum(report.rows.values())
        click.echo(f"{rows} rows of {len(report.rows)} tables were copied to {printable(report.target)}, and compared.")
        click.echo("Now set `engine` in [MetaBackend] to its URL. The old database was not changed.")
